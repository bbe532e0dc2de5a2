/* canonicalize: folds constants, removes ops that do nothing, and puts constants on the right.
 *
 *   needs     nothing
 *   keeps     the stage; every bit of every result, but for the sign of a zero (x + 0 becomes x)
 *   refuses   to fold what f32 arithmetic does not round exactly (exp, silu, ...): a kernel's polynomial may differ
 *
 * before:  %y = mul %one, %x          after:  … %y replaced by %x
 *          %b = reshape %a                    %b = reshape (the operand of %a)
 *
 * Rules look only at an op and its operands' definitions, so one sweep in order of execution reaches the end.
 */
#include "ir/build.h"
#include "passes/match.h"
#include "passes/pass.h"
#include "runtime/base/dtype.h"

#include <math.h>

typedef enum rewrite_kind {
    NOTHING,
    VALUE, /* the result is `value` */
    FOLD,  /* the result is the constant `number` */
    INPUT, /* operand 0 becomes `value` */
    SWAP   /* operands 0 and 1 change places */
} rewrite_kind;

typedef struct rewrite {
    rewrite_kind kind;
    mc_value *value;
    double number;
} rewrite;

static const rewrite nothing = {NOTHING, NULL, 0};

static rewrite
to_value(const mc_op *op, mc_value *v)
{
    return v->type == op->results[0].type ? (rewrite){VALUE, v, 0} : nothing;
}

static rewrite
fold(double number)
{
    return (rewrite){FOLD, NULL, number};
}

static rewrite
fold_binary(mc_opcode opcode, float a, float b)
{
    switch ((int)opcode) {
    case MC_OP_ADD: return fold(a + b);
    case MC_OP_SUB: return fold(a - b);
    case MC_OP_MUL: return fold(a * b);
    case MC_OP_DIV: return fold(a / b);
    }
    return nothing;
}

static rewrite
binary(const mc_op *op)
{
    mc_value *a = mc_operand(op, 0), *b = mc_operand(op, 1);
    double x, y;
    bool const_a = mc_is_const(a, &x), const_b = mc_is_const(b, &y);
    if (const_a && const_b) return fold_binary(op->opcode, (float)x, (float)y);
    bool commutes = op->opcode == MC_OP_ADD || op->opcode == MC_OP_MUL;
    if (const_a && commutes) return (rewrite){SWAP, NULL, 0};
    if (!const_b) return nothing;
    bool adds = op->opcode == MC_OP_ADD || op->opcode == MC_OP_SUB;
    return y == (adds ? 0.0 : 1.0) ? to_value(op, a) : nothing;
}

static rewrite
clamp(const mc_op *op)
{
    double lo = mc_attr_float(op, "lo"), hi = mc_attr_float(op, "hi"), x;
    if (lo == -HUGE_VAL && hi == HUGE_VAL) return to_value(op, mc_operand(op, 0));
    if (!mc_is_const(mc_operand(op, 0), &x) || isnan(x)) return nothing;
    return fold((float)fmin(fmax(x, lo), hi));
}

static rewrite
unary(const mc_op *op)
{
    mc_value *x = mc_operand(op, 0);
    const mc_op *inner = mc_def_is(x, MC_OP_NEG);
    if (op->opcode == MC_OP_NEG && inner) return to_value(op, mc_operand(inner, 0));
    if (op->opcode == MC_OP_CLAMP) return clamp(op);
    double number;
    if (!mc_is_const(x, &number)) return nothing;
    float f = (float)number;
    switch ((int)op->opcode) {
    case MC_OP_NEG: return fold(-f);
    case MC_OP_RELU: return isnan(f) ? nothing : fold(f > 0 ? f : 0);
    case MC_OP_SQRT: return fold(sqrtf(f));
    case MC_OP_FLOOR: return fold(floorf(f));
    }
    return nothing;
}

/* Whether every value of `from` is also one of `to`. */
static bool
widens(moec_dtype from, moec_dtype to)
{
    if (from == to) return true;
    if (to == MOEC_F64) return mc_dtype_is_float(from) || from == MOEC_I32 || from == MOEC_I8 || from == MOEC_U8;
    if (to == MOEC_F32) return mc_dtype_is_float(from) && from != MOEC_F64;
    return false;
}

static rewrite
cast(const mc_op *op)
{
    mc_value *x = mc_operand(op, 0);
    if (x->type == op->results[0].type) return to_value(op, x);
    const mc_op *inner = mc_def_is(x, MC_OP_CAST);
    if (!inner) return nothing;
    mc_value *source = mc_operand(inner, 0);
    return widens(source->type->dtype, x->type->dtype) ? (rewrite){INPUT, source, 0} : nothing;
}

static rewrite
reshape(const mc_op *op)
{
    mc_value *x = mc_operand(op, 0);
    if (x->type == op->results[0].type) return to_value(op, x);
    const mc_op *inner = mc_def_is(x, MC_OP_RESHAPE);
    /* inference compares products of axes, and a product of all must exist for any two shapes to be comparable */
    mc_dim all;
    if (inner && !mc_dims_product(x->type->dims, x->type->rank, &all)) return nothing;
    return inner ? (rewrite){INPUT, mc_operand(inner, 0), 0} : nothing;
}

static rewrite
transpose(const mc_op *op)
{
    const mc_attr *perm = mc_attr_get(op, "perm");
    for (size_t i = 0; i < perm->as.ints.n; i++)
        if (perm->as.ints.items[i] != (int64_t)i) return nothing;
    return to_value(op, mc_operand(op, 0));
}

static rewrite
find(const mc_op *op)
{
    switch ((int)op->opcode) {
    case MC_OP_ADD:
    case MC_OP_SUB:
    case MC_OP_MUL:
    case MC_OP_DIV: return binary(op);
    case MC_OP_CAST: return cast(op);
    case MC_OP_RESHAPE: return reshape(op);
    case MC_OP_TRANSPOSE: return transpose(op);
    case MC_OP_EXPAND:
    case MC_OP_TILE: return mc_attr_int(op, "n") == 1 ? to_value(op, mc_operand(op, 0)) : nothing;
    /* equal types mean the whole axis, one part, one operand */
    case MC_OP_SLICE:
    case MC_OP_SPLIT: return op->n_results == 1 ? to_value(op, mc_operand(op, 0)) : nothing;
    case MC_OP_CONCAT: return op->n_operands == 1 ? to_value(op, mc_operand(op, 0)) : nothing;
    }
    return mc_is_unary_elementwise(op->opcode) ? unary(op) : nothing;
}

/* False: the op is gone. */
static bool
apply(mc_pass *p, mc_op *op, rewrite r)
{
    if (r.kind == INPUT) {
        mc_op_set_operand(op, 0, r.value);
        return true;
    }
    if (r.kind == SWAP) {
        mc_value *a = mc_operand(op, 0), *b = mc_operand(op, 1);
        mc_op_set_operand(op, 0, b);
        mc_op_set_operand(op, 1, a);
        return true;
    }
    if (r.kind == FOLD) {
        mc_builder b = mc_builder_before(op, p->diags);
        r.value = mc_build_const(&b, r.number);
    }
    mc_value_replace_uses(&op->results[0], r.value);
    mc_op_remove(op);
    return false;
}

static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    mc_pass_result result = MC_UNCHANGED;
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        for (rewrite r = find(op); r.kind != NOTHING && mc_fuel(p, op); r = find(op)) {
            result = MC_CHANGED;
            if (!apply(p, op, r)) break;
        }
    }
    return result;
}

mc_pass_result
mc_pass_canonicalize(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run);
}
