/* Inlines an expert's body over rows of all experts. Each of its values is one of two kinds: rows [A, ...], or stacked,
 * which is something per expert [E, ...] made of weights alone. linear on a stacked weight is a grouped matmul; a
 * stacked value may be read by nothing else but elementwise ops that keep it stacked. */
#include "passes/expert_body.h"

#include "passes/match.h"

#include <assert.h>

typedef struct body {
    mc_clone *clone;
    mc_builder *at;
    int64_t experts;
    mc_value *rows, *offsets;
    bool *stacked; /* by id of the body's value */
} body;

static bool
refuse(mc_diags *d, const mc_op *op, const char *why)
{
    return mc_error(d, op->span, MC_E0505, "'%s' in an expert: %s", mc_op_info_of(op)->text, why);
}

static bool
keeps_rows(const mc_op *op, int64_t axis)
{
    const mc_value *x = mc_operand(op, 0);
    return x && (axis < 0 ? axis + x->type->rank : axis) != 0;
}

/* Rows stay rows, or there were none: a reshape of constants and weights may do as it likes. */
static bool
reshape_keeps_rows(const mc_op *op)
{
    const mc_type *from = mc_operand(op, 0)->type, *to = op->results[0].type;
    for (int i = 0; i < from->rank; i++)
        if (!mc_dim_is_const(from->dims[i])) return to->rank > 0 && mc_dim_eq(from->dims[0], to->dims[0]);
    return true;
}

/* Whether the op treats each row by itself, so that the rows of all experts can go through it together. */
static bool
is_row_wise(const mc_op *op)
{
    const mc_attr *perm;
    switch ((int)op->opcode) {
    case MC_OP_WEIGHT:
    case MC_OP_CONST:
    case MC_OP_RETURN:
    case MC_OP_CAST:
    case MC_OP_LINEAR:
    case MC_OP_GATED_LINEAR:
    case MC_OP_ADD:
    case MC_OP_SUB:
    case MC_OP_MUL:
    case MC_OP_DIV: return true;
    /* along the last axis, which must not be that of the rows */
    case MC_OP_RMSNORM:
    case MC_OP_LAYERNORM:
    case MC_OP_L2NORM:
    case MC_OP_SOFTMAX:
    case MC_OP_ROUTE_RENORM:
    case MC_OP_SPLIT: return keeps_rows(op, -1);
    case MC_OP_CONCAT:
    case MC_OP_SLICE:
    case MC_OP_EXPAND:
    case MC_OP_TILE: return keeps_rows(op, mc_attr_int(op, "axis"));
    case MC_OP_RESHAPE: return reshape_keeps_rows(op);
    case MC_OP_TRANSPOSE: perm = mc_attr_get(op, "perm"); return perm->as.ints.n == 0 || perm->as.ints.items[0] == 0;
    }
    return mc_is_unary_elementwise(op->opcode);
}

/* NULL, or why the op cannot stand in a body. */
static const char *
fault_of(const mc_op *op, int64_t experts)
{
    if (mc_op_has(op, MC_TRAIT_BODY)) return "experts do not nest";
    if (op->opcode == MC_OP_CALL) return "a body is one straight list of ops";
    if (!is_row_wise(op)) return "it does not treat each row by itself";
    int64_t stacked = op->opcode == MC_OP_WEIGHT ? mc_attr_int(op, "experts") : 0;
    return stacked && stacked != experts ? "it is for another number of experts" : NULL;
}

bool
mc_expert_body_check(const mc_op *site, const mc_func *func, int64_t experts, mc_diags *diags)
{
    bool ok = true;
    if (func->formals.n != 1 || !func->last || func->last->opcode != MC_OP_RETURN || func->last->n_operands != 1)
        return mc_error(diags, site->span, MC_E0505, "expert '%.*s' must map one tensor of rows to one",
                        MC_FMT(func->name));
    MC_FOR_OPS(op, func)
    {
        const char *why = fault_of(op, experts);
        if (!why) continue;
        ok = refuse(diags, op, why);
        mc_note(diags, site->span, "the experts are used here");
    }
    return ok;
}

static mc_value *
mapped(const body *b, const mc_value *v)
{
    return v ? b->clone->values[v->id] : NULL;
}

static bool
is_stacked(const body *b, const mc_value *v)
{
    return v && b->stacked[v->id];
}

/* The body's value `from` is `to` from here on. */
static void
define(body *b, const mc_value *from, mc_value *to, bool stacked)
{
    if (to->name.len == 0) to->name = from->name;
    b->clone->values[from->id] = to;
    b->stacked[from->id] = stacked;
}

static bool
stack_weight(body *b, const mc_op *op)
{
    mc_module *m = b->clone->module;
    const mc_type *one = op->results[0].type;
    if (one->rank == MC_MAX_RANK) return refuse(b->at->diags, op, "it has too many axes to be stacked");
    mc_dim dims[MC_MAX_RANK] = {mc_dim_const(b->experts)};
    for (int i = 0; i < one->rank; i++) dims[i + 1] = one->dims[i];
    const mc_type *all = mc_type_get(m, one->dtype, dims, one->rank + 1);
    mc_op *w = mc_op_create(m, MC_OP_WEIGHT, NULL, 0, &all, 1, op->attrs, op->span);
    mc_op_insert_before(b->at->func, b->at->before, w);
    mc_op_set_attr(w, "experts", (mc_attr){.kind = MC_ATTR_NONE});
    define(b, &op->results[0], &w->results[0], true);
    return true;
}

static bool
stack_elementwise(body *b, const mc_op *op)
{
    if (op->opcode != MC_OP_CAST && !mc_is_unary_elementwise(op->opcode))
        return refuse(b->at->diags, op, "it reads a weight that differs by expert; only linear does that");
    mc_value *x = mapped(b, mc_operand(op, 0));
    const mc_type *type = mc_type_with_dtype(b->clone->module, x->type, op->results[0].type->dtype);
    mc_op *copy = mc_op_create(b->clone->module, op->opcode, &x, 1, &type, 1, op->attrs, op->span);
    mc_op_insert_before(b->at->func, b->at->before, copy);
    define(b, &op->results[0], &copy->results[0], true);
    return true;
}

/* x * w^T + bias with whatever of it differs by expert; NULL when refused. */
static mc_value *
matmul(body *b, const mc_op *op, const mc_value *x, const mc_value *w, const mc_value *bias, const mc_value *scale)
{
    mc_diags *d = b->at->diags;
    if (is_stacked(b, x)) return refuse(d, op, "its input is a weight that differs by expert"), NULL;
    if (!is_stacked(b, w)) {
        if (is_stacked(b, bias) || is_stacked(b, scale))
            return refuse(d, op, "its bias or scale differs by expert but its weight does not"), NULL;
        return mc_build1(b->at, MC_OP_LINEAR,
                         (mc_value *[]){mapped(b, x), mapped(b, w), mapped(b, bias), mapped(b, scale)}, 4, NULL, 0);
    }
    const mc_type *t = mapped(b, x)->type;
    if (t->rank != 2 || !mc_dim_eq(t->dims[0], b->rows->type->dims[0]))
        return refuse(d, op, "its input no longer has one row per assignment"), NULL;
    if (scale && !is_stacked(b, scale))
        return refuse(d, op, "its weight differs by expert but its scale does not"), NULL;
    mc_value *own_bias = is_stacked(b, bias) ? mapped(b, bias) : NULL;
    mc_value *y =
        mc_build1(b->at, MC_OP_GROUPED_MATMUL,
                  (mc_value *[]){mapped(b, x), mapped(b, w), b->offsets, own_bias, mapped(b, scale)}, 5, NULL, 0);
    return y && bias && !own_bias ? mc_build_binary(b->at, MC_OP_ADD, y, mapped(b, bias)) : y;
}

static mc_value *
linear(body *b, const mc_op *op)
{
    mc_value *residual = mc_operand_named(op, "residual");
    if (is_stacked(b, residual))
        return refuse(b->at->diags, op, "its residual is a weight that differs by expert"), NULL;
    mc_value *y = matmul(b, op, mc_operand_named(op, "x"), mc_operand_named(op, "w"), mc_operand_named(op, "bias"),
                         mc_operand_named(op, "scale"));
    return y && residual ? mc_build_binary(b->at, MC_OP_ADD, mapped(b, residual), y) : y;
}

static mc_value *
gated_linear(body *b, const mc_op *op)
{
    const mc_value *x = mc_operand_named(op, "x");
    mc_value *gate = matmul(b, op, x, mc_operand_named(op, "w_gate"), mc_operand_named(op, "bias_gate"),
                            mc_operand_named(op, "scale_gate"));
    mc_value *up = gate ? matmul(b, op, x, mc_operand_named(op, "w_up"), mc_operand_named(op, "bias_up"),
                                 mc_operand_named(op, "scale_up"))
                        : NULL;
    if (!up) return NULL;
    mc_opcode act = mc_opcode_find(mc_attr_str(op, "act"));
    if (!mc_is_fused_act(act)) return refuse(b->at->diags, op, "its activation is unknown"), NULL;
    mc_value *h = mc_build_unary(b->at, act, gate);
    return h ? mc_build_binary(b->at, MC_OP_MUL, h, up) : NULL;
}

static bool
emit(body *b, const mc_op *op)
{
    if (op->opcode == MC_OP_WEIGHT && mc_attr_int(op, "experts")) return stack_weight(b, op);
    bool any_stacked = false;
    for (int i = 0; i < op->n_operands; i++) any_stacked |= is_stacked(b, mc_operand(op, i));
    if (any_stacked && op->opcode != MC_OP_LINEAR && op->opcode != MC_OP_GATED_LINEAR) return stack_elementwise(b, op);
    if (!any_stacked) {
        for (int i = 0; i < op->n_results; i++) b->stacked[op->results[i].id] = false;
        return mc_clone_op(b->clone, b->at, op) ||
               refuse(b->at->diags, op, "its shape for the rows of all experts has too many symbols");
    }
    b->at->span = op->span;
    mc_value *y = op->opcode == MC_OP_LINEAR ? linear(b, op) : gated_linear(b, op);
    if (y) define(b, &op->results[0], y, false);
    return y != NULL;
}

mc_value *
mc_expert_body_inline(mc_clone *c, mc_builder *at, const mc_func *func, int64_t experts, mc_value *rows,
                      mc_value *offsets)
{
    mc_clone_unbind(c);
    if (!mc_clone_formal(c, func->formals.items[0], rows)) {
        mc_error(at->diags, at->span, MC_E0505, "the rows given to expert '%.*s' do not have its type",
                 MC_FMT(func->name));
        return NULL;
    }
    body b = {.clone = c,
              .at = at,
              .experts = experts,
              .rows = rows,
              .offsets = offsets,
              .stacked = MC_NEW_N(c->scratch, bool, c->n_values)};
    mc_span span = at->span;
    bool ok = true;
    for (const mc_op *op = func->first; ok && op != func->last; op = op->next) ok = emit(&b, op);
    at->span = span;
    const mc_value *result = mc_operand(func->last, 0);
    if (ok && is_stacked(&b, result)) ok = refuse(at->diags, func->last, "its result is a weight");
    return ok ? mapped(&b, result) : NULL;
}
