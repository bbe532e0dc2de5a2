/* Kernels that reduce a row and then scale it: rmsnorm, layernorm, l2norm, softmax, route.renorm. The one idea: every
 * row is a few folds (rows.h) and one pass that writes, so a row gives the same bits alone or in any batch.
 *
 * ptr: x, y, [w], [bias]   i: rows, d, rows of w and bias   f: eps, or eps, p, floor */
#include "codegen/cpu/math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

#include <math.h>

typedef struct row { /* the row being worked on */
    LLVMValueRef x, y, d;
    LLVMValueRef shift; /* subtracted from each element, or NULL */
    int64_t power;      /* of renorm */
    LLVMValueRef p;
} row;

static LLVMValueRef
load_x(mc_kb *kb, const row *r, LLVMValueRef i, LLVMValueRef mask)
{
    return kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->x, i, 4), kb->vl, mask);
}

static LLVMValueRef
step_sum(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    return kb_fadd(kb, acc, load_x(kb, context, i, mask));
}

static LLVMValueRef
step_squares(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    LLVMValueRef x = load_x(kb, r, i, mask);
    if (r->shift) x = kb_fsub(kb, x, r->shift);
    return kb_fma(kb, x, x, acc);
}

static LLVMValueRef
step_max(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    return kb_fmax(kb, acc, load_x(kb, context, i, mask));
}

/* Writes exp(x - max) to y while adding it up. */
static LLVMValueRef
step_exp(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    LLVMValueRef e = kb_exp(kb, kb_fsub(kb, load_x(kb, r, i, mask), r->shift));
    kb_store_f32(kb, MOEC_F32, e, kb_elem(kb, r->y, i, 4), mask);
    return kb_fadd(kb, acc, e);
}

enum { POWER_1, POWER_2, POWER_ANY, POWER_FLOOR };

static LLVMValueRef
step_power(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    LLVMValueRef x = load_x(kb, r, i, mask);
    switch (r->power) {
    case POWER_1: return kb_fadd(kb, acc, kb_fabs(kb, x));
    case POWER_2: return kb_fma(kb, x, x, acc);
    case POWER_FLOOR: return kb_fadd(kb, acc, x);
    default: return kb_fadd(kb, acc, kb_exp(kb, kb_fmul(kb, r->p, kb_log(kb, kb_fabs(kb, x)))));
    }
}

static LLVMValueRef
to_float(mc_kb *kb, LLVMValueRef n)
{
    return kb_convert(kb, n, kb->f32);
}

static kb_loop
begin_rows(mc_kb *kb, row *r)
{
    LLVMValueRef x = kb_arg_ptr(kb, 0), y = kb_arg_ptr(kb, 1);
    *r = (row){.d = kb_arg_int(kb, 1)};
    kb_loop l = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef start = kb_mul(kb, l.i, r->d);
    r->x = kb_elem(kb, x, start, 4);
    r->y = kb_elem(kb, y, start, 4);
    return l;
}

/* y = x / scale over the row; x from `from`. */
static void
divide_row(mc_kb *kb, const row *r, LLVMValueRef from, LLVMValueRef scale)
{
    scale = kb_splat(kb, scale, kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), r->d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef x = kb_load_f32(kb, MOEC_F32, kb_elem(kb, from, v.i, 4), v.lanes, v.mask);
        kb_store_f32(kb, MOEC_F32, kb_fdiv(kb, x, scale), kb_elem(kb, r->y, v.i, 4), v.mask);
    }
}

/* ---- norms ------------------------------------------------------------------------------------------------------ */

enum { NORM_MEAN = 1, NORM_SUM = 2, NORM_W = 4, NORM_PLUS_ONE = 8, NORM_BIAS = 16 }; /* flags; SUM: eps joins the sum */

static void
write_normed(mc_kb *kb, const row *r, int64_t flags, LLVMValueRef scale, LLVMValueRef w, LLVMValueRef bias)
{
    scale = kb_splat(kb, scale, kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), r->d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef y = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->x, v.i, 4), v.lanes, v.mask);
        if (r->shift) y = kb_fsub(kb, y, r->shift);
        y = kb_fmul(kb, y, scale);
        if (flags & NORM_W) {
            LLVMValueRef g = kb_load_f32(kb, MOEC_F32, kb_elem(kb, w, v.i, 4), v.lanes, v.mask);
            if (flags & NORM_PLUS_ONE) g = kb_fadd(kb, g, kb_const(kb->vf, 1.0));
            y = kb_fmul(kb, y, g);
        }
        if (flags & NORM_BIAS) {
            y = kb_fadd(kb, y, kb_load_f32(kb, MOEC_F32, kb_elem(kb, bias, v.i, 4), v.lanes, v.mask));
        }
        kb_store_f32(kb, MOEC_F32, y, kb_elem(kb, r->y, v.i, 4), v.mask);
    }
}

static void
emit_norm(mc_kb *kb, const mc_plan_kernel *k)
{
    int64_t flags = k->p[0];
    kb_kernel_begin(kb, k->name.data);
    row r;
    LLVMValueRef w = flags & NORM_W ? kb_arg_ptr(kb, 2) : NULL;
    LLVMValueRef bias = flags & NORM_BIAS ? kb_arg_ptr(kb, w ? 3 : 2) : NULL;
    LLVMValueRef w_rows = kb_arg_int(kb, 2), eps = kb_arg_float(kb, 0);
    kb_loop l = begin_rows(kb, &r);
    if (w || bias) {
        LLVMValueRef at = kb_mul(kb, kb_urem(kb, l.i, w_rows), r.d);
        if (w) w = kb_elem(kb, w, at, 4);
        if (bias) bias = kb_elem(kb, bias, at, 4);
    }
    LLVMValueRef d = to_float(kb, r.d);
    if (flags & NORM_MEAN) {
        LLVMValueRef mean = kb_fdiv(kb, mc_rows_fold(kb, r.d, 0, false, step_sum, &r, kb_reduce_add), d);
        r.shift = kb_splat(kb, mean, kb->vl);
    }
    LLVMValueRef sum = mc_rows_fold(kb, r.d, 0, false, step_squares, &r, kb_reduce_add);
    if (!(flags & NORM_SUM)) sum = kb_fdiv(kb, sum, d);
    write_normed(kb, &r, flags, kb_rsqrt(kb, kb_fadd(kb, sum, eps)), w, bias);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

static bool
need_f32(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        if (v && v->type->dtype != MOEC_F32) return mc_plan_refuse(p, "an operand is not f32");
    }
    return true;
}

void
mc_cpu_select_norm(mc_plan *p, const mc_op *op)
{
    if (!need_f32(p, op)) return;
    const mc_value *x = mc_operand(op, 0);
    const mc_value *w = op->opcode == MC_OP_L2NORM ? NULL : mc_operand(op, 1);
    const mc_value *bias = op->opcode == MC_OP_LAYERNORM ? mc_operand(op, 2) : NULL;
    int64_t flags = 0;
    if (op->opcode == MC_OP_LAYERNORM) flags |= NORM_MEAN;
    if (op->opcode == MC_OP_L2NORM) flags |= NORM_SUM;
    if (op->opcode == MC_OP_RMSNORM && mc_attr_bool(op, "plus_one")) flags |= NORM_PLUS_ONE;
    if (w) flags |= NORM_W;
    if (bias) flags |= NORM_BIAS;
    const mc_type *repeated = w ? w->type : bias ? bias->type : NULL;
    mc_dim w_rows = repeated ? mc_plan_product(p, repeated, 0, repeated->rank - 1) : mc_dim_const(1);
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_norm, &flags, 1, "norm_%d", (int)flags));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, mc_result(op, 0));
    if (w) mc_plan_ptr(p, w);
    if (bias) mc_plan_ptr(p, bias);
    mc_plan_int(p, mc_plan_rows(p, x->type));
    mc_plan_int(p, mc_type_last(x->type));
    mc_plan_int(p, w_rows);
    mc_plan_float(p, mc_attr_float(op, "eps"));
}

/* ---- softmax ---------------------------------------------------------------------------------------------------- */

static void
emit_softmax(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    row r;
    kb_loop l = begin_rows(kb, &r);
    LLVMValueRef max = mc_rows_fold(kb, r.d, -HUGE_VAL, true, step_max, &r, kb_reduce_max);
    r.shift = kb_splat(kb, max, kb->vl);
    LLVMValueRef sum = mc_rows_fold(kb, r.d, 0, true, step_exp, &r, kb_reduce_add);
    divide_row(kb, &r, r.y, sum);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_softmax(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0);
    if (!need_f32(p, op)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_softmax, NULL, 0, "softmax"));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, x->type));
    mc_plan_int(p, mc_type_last(x->type));
}

/* ---- renorm ----------------------------------------------------------------------------------------------------- */

static void
emit_renorm(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef eps = kb_arg_float(kb, 0), p = kb_arg_float(kb, 1), floor = kb_arg_float(kb, 2);
    row r;
    kb_loop l = begin_rows(kb, &r);
    r.power = k->p[0];
    r.p = kb_splat(kb, p, kb->vl);
    LLVMValueRef norm = mc_rows_fold(kb, r.d, 0, true, step_power, &r, kb_reduce_add);
    if (r.power == POWER_2) norm = kb_sqrt(kb, norm);
    if (r.power == POWER_ANY) norm = kb_exp(kb, kb_fdiv(kb, kb_log(kb, norm), p));
    norm = r.power == POWER_FLOOR ? kb_fmax(kb, floor, norm) : kb_fadd(kb, norm, eps);
    divide_row(kb, &r, r.x, norm);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

void
mc_cpu_select_renorm(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0);
    if (!need_f32(p, op)) return;
    double power = mc_attr_float(op, "p"), floor = mc_attr_float(op, "floor");
    int64_t form = floor > 0 ? POWER_FLOOR : power == 1 ? POWER_1 : power == 2 ? POWER_2 : POWER_ANY;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_renorm, &form, 1, "renorm_%d", (int)form));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_rows(p, x->type));
    mc_plan_int(p, mc_type_last(x->type));
    mc_plan_float(p, mc_attr_float(op, "eps"));
    mc_plan_float(p, power);
    mc_plan_float(p, floor);
}
