/* Types and dims: from the text, and against each other. A name in a block's formal that was not seen before is bound
 * by the call; one that was is checked. */
#include "frontend/elab.h"
#include "frontend/walk.h"

#include <string.h>

#include "runtime/base/dtype.h"

mc_str
mc_shape_text(mc_elab *e, const mc_type *t)
{
    mc_str text = mc_type_text(e->module, t, e->arena);
    const char *bracket = memchr(text.data, '[', text.len);
    if (!bracket) return MC_STR("[]");
    return mc_str_slice(text, (size_t)(bracket - text.data), text.len);
}

bool
mc_shape_dim(mc_elab *e, mc_val v, mc_span span, mc_dim *out)
{
    if (v.kind == MC_VAL_POISON) return false;
    if (v.kind == MC_VAL_DIM) {
        *out = v.as.dim;
        return true;
    }
    if (v.kind == MC_VAL_INT && v.as.i >= 1 && v.as.i <= MC_MAX_DIM) {
        *out = mc_dim_const(v.as.i);
        return true;
    }
    mc_str text = mc_val_str(e->module, v, e->arena);
    if (v.kind == MC_VAL_INT)
        mc_elab_error(e, span, v.as.i < 1 ? MC_E0306 : MC_E0319, "a dimension cannot be %.*s", MC_FMT(text));
    else if (v.kind == MC_VAL_REAL)
        mc_elab_error(e, span, MC_E0314, "a dimension cannot be '%.*s' = %.*s: it is no whole number",
                      MC_FMT(mc_elab_quote(e, span)), MC_FMT(text));
    else
        mc_elab_error(e, span, mc_val_is_tensor(v) ? MC_E0309 : MC_E0306, "a dimension must be a number, this is %s",
                      mc_val_kind_text(v));
    return false;
}

int
mc_shape_dims(mc_elab *e, const mc_type_expr *t, mc_dim *dims)
{
    int n = 0;
    for (const mc_arg *a = t->dims; a; a = a->next) {
        if (n == MC_MAX_RANK) {
            mc_elab_error(e, t->span, MC_E0319, "more than %d axes", MC_MAX_RANK);
            return -1;
        }
        if (a->value->kind == MC_EXPR_ELLIPSIS) {
            mc_elab_error(e, a->value->span, MC_E0306, "'...' stands only in the signature of a block");
            return -1;
        }
        if (!mc_shape_dim(e, mc_eval(e, a->value), a->value->span, &dims[n++])) return -1;
    }
    return n;
}

bool
mc_shape_dtype(mc_elab *e, mc_word word, moec_dtype none, moec_dtype *out)
{
    *out = word.text.len ? mc_dtype_parse(word.text) : none;
    if (!word.text.len || *out == MOEC_F32 || *out == MOEC_BF16 || *out == MOEC_F16 || *out == MOEC_I32) return true;
    mc_elab_error(e, word.span, MC_E0318, "'%.*s' is no element type of a tensor here; there are f32, bf16, f16, i32",
                  MC_FMT(word.text));
    return false;
}

bool
mc_shape_broadcast(const mc_type *a, const mc_type *b)
{
    const mc_dim one = mc_dim_const(1);
    for (int i = 1; i <= a->rank && i <= b->rank; i++) {
        mc_dim x = a->dims[a->rank - i], y = b->dims[b->rank - i];
        if (!mc_dim_eq(x, y) && !mc_dim_eq(x, one) && !mc_dim_eq(y, one)) return false;
    }
    return true;
}

/* ---- formals ---- */

/* A name that the signature may bind: not yet a formal, and for the user's own blocks not a param or dim either. */
static bool
is_free(mc_elab *e, const mc_expr *x)
{
    if (x->kind != MC_EXPR_NAME || mc_scope_find(e, x->as.text)) return false;
    if (e->scope->block && e->scope->block->is_prelude) return true;
    return !mc_map_has(&e->values, x->as.text) && !mc_str_is(x->as.text, "C");
}

static bool
mismatch(mc_elab *e, const mc_formal *f, mc_value *t, mc_span use, mc_str callee, const mc_expr *dim, mc_str wanted)
{
    mc_elab_error(e, use, MC_E0310, "%.*s: '%.*s' is declared %.*s with %.*s = %.*s, but is given %.*s", MC_FMT(callee),
                  MC_FMT(f->name.text), MC_FMT(mc_elab_quote(e, f->type.span)), MC_FMT(mc_elab_quote(e, dim->span)),
                  MC_FMT(wanted), MC_FMT(mc_shape_text(e, t->type)));
    mc_elab_note(e, f->type.span, "declared here");
    return false;
}

static bool
bind_dim(mc_elab *e, const mc_formal *f, const mc_expr *x, mc_value *t, int axis, mc_span use, mc_str callee)
{
    mc_dim have = t->type->dims[axis], want;
    if (is_free(e, x)) {
        mc_scope_declare(e, x->as.text, mc_val_dim(have, use));
        return true;
    }
    mc_val v = mc_eval(e, x);
    if (!mc_shape_dim(e, v, x->span, &want)) return false;
    return mc_dim_eq(want, have) || mismatch(e, f, t, use, callee, x, mc_val_str(e->module, v, e->arena));
}

static void
count_dims(const mc_formal *f, int *before, int *after, bool *dots)
{
    *before = *after = 0;
    *dots = false;
    for (const mc_arg *a = f->type.dims; a; a = a->next) {
        if (a->value->kind == MC_EXPR_ELLIPSIS) {
            *dots = true;
        } else if (*dots) {
            ++*after;
        } else {
            ++*before;
        }
    }
}

static bool
check_dtype(mc_elab *e, const mc_formal *f, mc_value *t, mc_span use, mc_str callee)
{
    moec_dtype want;
    if (!mc_shape_dtype(e, f->type.dtype, t->type->dtype, &want)) return false;
    if (mc_dtype_is_float(want) == mc_type_is_float(t->type)) return true;
    mc_elab_error(e, use, MC_E0318, "%.*s: '%.*s' is declared %.*s, but is given %.*s", MC_FMT(callee),
                  MC_FMT(f->name.text), MC_FMT(f->type.dtype.text), MC_FMT(mc_type_text(e->module, t->type, e->arena)));
    return false;
}

bool
mc_shape_bind(mc_elab *e, const mc_formal *f, mc_val v, mc_span use, mc_str callee)
{
    int before, after;
    bool dots;
    mc_value *t = mc_tensor_of(e, v, use, "this argument");
    if (!t || !check_dtype(e, f, t, use, callee)) return false;
    count_dims(f, &before, &after, &dots);
    int rank = t->type->rank;
    if (dots ? rank < before + after : rank != before) {
        mc_elab_error(e, use, MC_E0310, "%.*s: '%.*s' is declared %.*s, but is given %.*s", MC_FMT(callee),
                      MC_FMT(f->name.text), MC_FMT(mc_elab_quote(e, f->type.span)), MC_FMT(mc_shape_text(e, t->type)));
        mc_elab_note(e, f->type.span, "declared here");
        return false;
    }
    int axis = 0;
    for (const mc_arg *a = f->type.dims; a; a = a->next) {
        if (a->value->kind == MC_EXPR_ELLIPSIS) {
            axis = rank - after;
        } else if (!bind_dim(e, f, a->value, t, axis++, use, callee)) {
            return false;
        }
    }
    return true;
}

/* Where the names of the declared dims got their values. */
static void
note_dim(void *context, const mc_expr *x)
{
    mc_elab *e = context;
    const mc_binding *b = x->kind == MC_EXPR_NAME ? mc_scope_find(e, x->as.text) : NULL;
    if (b && (b->value.kind == MC_VAL_INT || b->value.kind == MC_VAL_DIM))
        mc_elab_note(e, b->value.span, "%.*s = %.*s from here", MC_FMT(b->name),
                     MC_FMT(mc_val_str(e->module, b->value, e->arena)));
}

static bool
wrong_result(mc_elab *e, const mc_formal *f, mc_val v, mc_span at, const mc_item *item)
{
    mc_elab_error(e, at, MC_E0310, "%.*s returns %.*s, but declares %.*s", MC_FMT(item->name.text),
                  MC_FMT(mc_shape_text(e, v.as.tensor->type)), MC_FMT(mc_elab_quote(e, f->type.span)));
    if (v.span.file && (v.span.begin < at.begin || v.span.end > at.end))
        mc_elab_note(e, v.span, "it got its shape here");
    mc_elab_note(e, f->type.span, "declared here");
    mc_walk_args(f->type.dims, note_dim, e);
    return false;
}

bool
mc_shape_check_result(mc_elab *e, const mc_formal *f, mc_val v, mc_span at, const mc_item *item)
{
    const mc_type *t = v.as.tensor->type;
    int before, after;
    bool dots;
    count_dims(f, &before, &after, &dots);
    int rank = t->rank, axis = 0;
    if (dots ? rank < before + after : rank != before) return wrong_result(e, f, v, at, item);
    for (const mc_arg *a = f->type.dims; a; a = a->next) {
        mc_dim want;
        if (a->value->kind == MC_EXPR_ELLIPSIS) {
            axis = rank - after;
            continue;
        }
        if (!mc_shape_dim(e, mc_eval(e, a->value), a->value->span, &want)) return false;
        if (!mc_dim_eq(want, t->dims[axis++])) return wrong_result(e, f, v, at, item);
    }
    return true;
}
