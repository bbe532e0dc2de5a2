/* Arithmetic on tensors, and slices of them. Numbers become constants; weights and other narrow values are widened to
 * f32 first, since all activations are f32. */
#include "frontend/elab.h"

mc_val
mc_emit(mc_elab *e, mc_span span, mc_opcode opcode, mc_value *const *operands, int n_operands,
        const mc_named_attr *attrs, int n_attrs)
{
    int before = e->diags->n_errors;
    e->frame->builder.span = mc_elab_user_span(e, span);
    mc_value *v = mc_build1(&e->frame->builder, opcode, operands, n_operands, attrs, n_attrs);
    if (e->diags->n_errors > before) {
        e->n_errors++;
        e->note_ok = true;
        mc_elab_call_notes(e, span);
    }
    return mc_val_tensor(v, span);
}

mc_value *
mc_tensor_of(mc_elab *e, mc_val v, mc_span span, const char *what)
{
    if (v.kind == MC_VAL_POISON) return NULL;
    if (!e->frame) {
        mc_elab_error(e, span, MC_E0309, "tensors exist only inside a block or model");
        return NULL;
    }
    if (v.kind == MC_VAL_TENSOR) return v.as.tensor;
    if (v.kind == MC_VAL_WREF) return mc_weight_ref(e, v.as.s, span);
    mc_elab_error(e, span, MC_E0306, "%s must be a tensor, this is %s", what, mc_val_kind_text(v));
    return NULL;
}

mc_value *
mc_tensor_cast(mc_elab *e, mc_value *x, moec_dtype to)
{
    if (!x || x->type->dtype == to) return x;
    const mc_named_attr attrs[] = {MC_A_DTYPE("to", to)};
    return mc_build1(&e->frame->builder, MC_OP_CAST, &x, 1, attrs, 1);
}

mc_value *
mc_tensor_operand(mc_elab *e, mc_val v, mc_span span)
{
    if (mc_val_is_number(v)) return mc_build_const(&e->frame->builder, mc_val_number(v));
    mc_value *t = mc_tensor_of(e, v, span, "this operand");
    if (!t) return NULL;
    if (!mc_type_is_float(t->type)) {
        mc_elab_error(e, span, MC_E0318, "arithmetic needs floats, this is %.*s; write cast(x, f32)",
                      MC_FMT(mc_type_text(e->module, t->type, e->arena)));
        return NULL;
    }
    return mc_tensor_cast(e, t, MOEC_F32);
}

static const struct binop_text {
    mc_binop op;
    mc_opcode opcode;
    const char *verb, *join;
} binop_texts[] = {{MC_BIN_ADD, MC_OP_ADD, "add", "and"},
                   {MC_BIN_SUB, MC_OP_SUB, "subtract", "and"},
                   {MC_BIN_MUL, MC_OP_MUL, "multiply", "and"},
                   {MC_BIN_DIV, MC_OP_DIV, "divide", "by"}};

static void
note_origin(mc_elab *e, const mc_expr *x, mc_val v, mc_value *t)
{
    bool elsewhere = v.span.file && (v.span.begin < x->span.begin || v.span.end > x->span.end);
    if (elsewhere)
        mc_elab_note(e, v.span, "'%.*s' got its shape %.*s here", MC_FMT(mc_elab_quote(e, x->span)),
                     MC_FMT(mc_shape_text(e, t->type)));
}

mc_val
mc_tensor_binary(mc_elab *e, const mc_expr *x, mc_val a, mc_val b)
{
    const struct binop_text *t = binop_texts;
    while (t->op != x->op) t++;
    if (!e->frame) return mc_elab_error(e, x->span, MC_E0309, "tensors exist only inside a block or model");
    mc_value *left = mc_tensor_operand(e, a, x->a->span);
    mc_value *right = left ? mc_tensor_operand(e, b, x->b->span) : NULL;
    if (!right) return mc_val_poison();
    if (!mc_shape_broadcast(left->type, right->type)) {
        mc_elab_error(e, x->span, MC_E0310, "cannot %s %.*s %s %.*s", t->verb, MC_FMT(mc_shape_text(e, left->type)),
                      t->join, MC_FMT(mc_shape_text(e, right->type)));
        note_origin(e, x->a, a, left);
        note_origin(e, x->b, b, right);
        return mc_val_poison();
    }
    return mc_emit(e, x->span, t->opcode, (mc_value *[]){left, right}, 2, NULL, 0);
}

/* ---- x[..., 0:64] ---- */

static bool
bound(mc_elab *e, const mc_expr *x, int64_t size, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (!x) return true;
    if (!mc_eval_int(e, x, "the bound", -size, size, out)) return false;
    if (*out < 0) *out += size;
    return true;
}

/* One item of the index on one axis; *gone when the axis disappears. NULL after an error. */
static mc_value *
slice_axis(mc_elab *e, const mc_expr *item, mc_value *t, int axis, bool *gone)
{
    mc_dim d = t->type->dims[axis];
    bool whole = item->kind == MC_EXPR_SLICE && !item->a && !item->b;
    *gone = item->kind != MC_EXPR_SLICE;
    if (whole) return t;
    if (!mc_dim_is_const(d)) {
        mc_elab_error(e, item->span, MC_E0314, "only axes of constant size can be cut, this one is %.*s",
                      MC_FMT(mc_val_str(e->module, mc_val_dim(d, item->span), e->arena)));
        return NULL;
    }
    int64_t begin, end;
    if (*gone) {
        if (!mc_eval_int(e, item, "the index", -d.mul, d.mul - 1, &begin)) return NULL;
        if (begin < 0) begin += d.mul;
        end = begin + 1;
    } else if (!bound(e, item->a, d.mul, 0, &begin) || !bound(e, item->b, d.mul, d.mul, &end)) {
        return NULL;
    }
    if (begin >= end) {
        mc_elab_error(e, item->span, MC_E0306, "%lld:%lld selects nothing", (long long)begin, (long long)end);
        return NULL;
    }
    const mc_named_attr attrs[] = {MC_A_INT("axis", axis), MC_A_INT("begin", begin), MC_A_INT("end", end)};
    mc_val v = mc_emit(e, item->span, MC_OP_SLICE, &t, 1, attrs, 3);
    return v.kind == MC_VAL_TENSOR ? v.as.tensor : NULL;
}

mc_val
mc_tensor_index(mc_elab *e, const mc_expr *x, mc_val a)
{
    mc_value *t = mc_tensor_of(e, a, x->a->span, "what is indexed");
    if (!t) return mc_val_poison();
    int rank = t->type->rank, n = 0, ellipses = 0;
    for (const mc_arg *i = x->items; i; i = i->next) {
        if (i->value->kind == MC_EXPR_ELLIPSIS) ellipses++;
        n++;
    }
    int skipped = rank - (n - ellipses);
    if (ellipses > 1 || skipped < 0)
        return mc_elab_error(e, x->span, MC_E0310,
                             ellipses > 1 ? "'...' may stand once" : "%d indices for the %d axes of %.*s", n, rank,
                             MC_FMT(mc_shape_text(e, t->type)));
    bool gone[MC_MAX_RANK] = {false};
    int axis = 0;
    for (const mc_arg *i = x->items; i; i = i->next) {
        if (i->value->kind == MC_EXPR_ELLIPSIS) {
            axis += skipped;
            continue;
        }
        t = slice_axis(e, i->value, t, axis, &gone[axis]);
        if (!t) return mc_val_poison();
        axis++;
    }
    mc_dim dims[MC_MAX_RANK];
    int kept = 0;
    for (int i = 0; i < rank; i++) {
        if (!gone[i]) dims[kept++] = t->type->dims[i];
    }
    if (kept < rank) t = mc_build_reshape(&e->frame->builder, t, dims, kept);
    return mc_val_tensor(t, x->span);
}
