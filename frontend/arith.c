/* Compile-time arithmetic: checked 64-bit integers, doubles, and dims (an integer times symbols). Whole numbers stay
 * whole as long as the result is exact; nothing ever wraps around. */
#include "frontend/elab.h"

#include <math.h>

static mc_val
too_large(mc_elab *e, mc_span span)
{
    return mc_elab_error(e, span, MC_E0319, "the value of '%.*s' does not fit in 64 bits",
                         MC_FMT(mc_elab_quote(e, span)));
}

static mc_val
checked_real(mc_elab *e, mc_span span, double r)
{
    if (isfinite(r)) return mc_val_real(r, span);
    return mc_elab_error(e, span, MC_E0306, "'%.*s' is not a finite number", MC_FMT(mc_elab_quote(e, span)));
}

static bool
int_power(int64_t base, int64_t exponent, int64_t *out)
{
    int64_t result = 1;
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) return false;
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) return false;
    }
    *out = result;
    return true;
}

static mc_val
divide_by_zero(mc_elab *e, mc_span span)
{
    return mc_elab_error(e, span, MC_E0306, "'%.*s' divides by zero", MC_FMT(mc_elab_quote(e, span)));
}

static mc_val
int_arith(mc_elab *e, mc_span span, mc_binop op, int64_t a, int64_t b)
{
    int64_t r = 0;
    bool overflow = false;
    switch ((int)op) {
    case MC_BIN_ADD: overflow = __builtin_add_overflow(a, b, &r); break;
    case MC_BIN_SUB: overflow = __builtin_sub_overflow(a, b, &r); break;
    case MC_BIN_MUL: overflow = __builtin_mul_overflow(a, b, &r); break;
    case MC_BIN_DIV:
        if (b == 0) return divide_by_zero(e, span);
        if (b == -1) {
            overflow = __builtin_sub_overflow((int64_t)0, a, &r);
        } else if (a % b) {
            return checked_real(e, span, (double)a / (double)b);
        } else {
            r = a / b;
        }
        break;
    case MC_BIN_MOD:
        if (b == 0) return divide_by_zero(e, span);
        r = b == -1 ? 0 : a % b;
        if (r && (r < 0) != (b < 0)) r += b; /* the sign of the divisor, so that (i - 1) % n counts on below 0 */
        break;
    case MC_BIN_POW:
        if (b < 0) return checked_real(e, span, pow((double)a, (double)b));
        overflow = !int_power(a, b, &r);
        break;
    }
    return overflow ? too_large(e, span) : mc_val_int(r, span);
}

static mc_val
real_arith(mc_elab *e, mc_span span, mc_binop op, double a, double b)
{
    switch ((int)op) {
    case MC_BIN_ADD: return checked_real(e, span, a + b);
    case MC_BIN_SUB: return checked_real(e, span, a - b);
    case MC_BIN_MUL: return checked_real(e, span, a * b);
    case MC_BIN_DIV: return b == 0 ? divide_by_zero(e, span) : checked_real(e, span, a / b);
    case MC_BIN_MOD: return b == 0 ? divide_by_zero(e, span) : checked_real(e, span, a - b * floor(a / b));
    default: return checked_real(e, span, pow(a, b));
    }
}

static mc_val
dim_arith(mc_elab *e, mc_span span, mc_binop op, mc_val a, mc_val b)
{
    bool ints = (a.kind == MC_VAL_DIM || a.kind == MC_VAL_INT) && (b.kind == MC_VAL_DIM || b.kind == MC_VAL_INT);
    mc_dim x = a.kind == MC_VAL_DIM ? a.as.dim : mc_dim_const(a.kind == MC_VAL_INT ? a.as.i : 0);
    mc_dim y = b.kind == MC_VAL_DIM ? b.as.dim : mc_dim_const(b.kind == MC_VAL_INT ? b.as.i : 0), r;
    if (ints && op == MC_BIN_MUL && mc_dim_mul(x, y, &r)) return mc_val_dim(r, span);
    if (ints && op == MC_BIN_DIV && mc_dim_div(x, y, &r)) return mc_val_dim(r, span);
    return mc_elab_error(e, span, MC_E0314, "a dimension cannot be '%.*s'; dims are numbers or products of symbols",
                         MC_FMT(mc_elab_quote(e, span)));
}

static mc_val
compare(mc_elab *e, mc_span span, mc_binop op, mc_val a, mc_val b)
{
    if (op == MC_BIN_EQ || op == MC_BIN_NE) {
        bool known, same = mc_val_eq(a, b, &known);
        if (known) return mc_val_bool(same == (op == MC_BIN_EQ), span);
    } else if (mc_val_is_number(a) && mc_val_is_number(b)) {
        double x = mc_val_number(a), y = mc_val_number(b);
        int order = (x > y) - (x < y);
        if (a.kind == MC_VAL_INT && b.kind == MC_VAL_INT) order = (a.as.i > b.as.i) - (a.as.i < b.as.i);
        bool truth = op == MC_BIN_LT   ? order < 0
                     : op == MC_BIN_GT ? order > 0
                     : op == MC_BIN_LE ? order <= 0
                                       : order >= 0;
        return mc_val_bool(truth, span);
    } else if (a.kind != MC_VAL_DIM && b.kind != MC_VAL_DIM) {
        return mc_elab_error(e, span, MC_E0306, "cannot order %s and %s", mc_val_kind_text(a), mc_val_kind_text(b));
    }
    return mc_elab_error(e, span, MC_E0309, "'%.*s' is known only at run time", MC_FMT(mc_elab_quote(e, span)));
}

static mc_val
contains(mc_elab *e, mc_span span, mc_val a, mc_val b)
{
    if (b.kind == MC_VAL_RANGE && a.kind == MC_VAL_INT)
        return mc_val_bool(a.as.i >= b.as.range.lo && a.as.i <= b.as.range.hi, span);
    if (b.kind != MC_VAL_LIST)
        return mc_elab_error(e, span, MC_E0306, "'in' needs a list or a range on its right, this is %s",
                             mc_val_kind_text(b));
    for (size_t i = 0; i < b.as.list.n; i++) {
        bool known;
        if (!mc_elab_step(e, span)) return mc_val_poison();
        if (mc_val_eq(a, b.as.list.items[i], &known)) return mc_val_bool(true, span);
    }
    return mc_val_bool(false, span);
}

mc_val
mc_arith(mc_elab *e, mc_span span, mc_binop op, mc_val a, mc_val b)
{
    if (op == MC_BIN_EQ || op == MC_BIN_NE || op == MC_BIN_LT || op == MC_BIN_GT || op == MC_BIN_LE || op == MC_BIN_GE)
        return compare(e, span, op, a, b);
    if (op == MC_BIN_IN) return contains(e, span, a, b);
    if (op == MC_BIN_RANGE) {
        if (a.kind != MC_VAL_INT || b.kind != MC_VAL_INT)
            return mc_elab_error(e, span, MC_E0306, "the ends of a range are whole numbers");
        mc_val v = {.kind = MC_VAL_RANGE, .span = span};
        v.as.range.lo = a.as.i;
        v.as.range.hi = b.as.i;
        return v;
    }
    if (a.kind == MC_VAL_INT && b.kind == MC_VAL_INT) return int_arith(e, span, op, a.as.i, b.as.i);
    if (mc_val_is_number(a) && mc_val_is_number(b)) return real_arith(e, span, op, mc_val_number(a), mc_val_number(b));
    bool dims = (a.kind == MC_VAL_DIM || mc_val_is_number(a)) && (b.kind == MC_VAL_DIM || mc_val_is_number(b));
    if (dims) return dim_arith(e, span, op, a, b);
    return mc_elab_error(e, span, MC_E0306, "cannot compute '%.*s' from %s and %s", MC_FMT(mc_elab_quote(e, span)),
                         mc_val_kind_text(a), mc_val_kind_text(b));
}

mc_val
mc_arith_negate(mc_elab *e, mc_span span, mc_val a)
{
    if (a.kind == MC_VAL_REAL) return mc_val_real(-a.as.r, span);
    if (a.kind == MC_VAL_INT) return int_arith(e, span, MC_BIN_SUB, 0, a.as.i);
    if (a.kind == MC_VAL_DIM) return dim_arith(e, span, MC_BIN_SUB, a, a);
    return mc_elab_error(e, span, MC_E0306, "cannot negate %s", mc_val_kind_text(a));
}
