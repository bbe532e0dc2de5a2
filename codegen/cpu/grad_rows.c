/* Derivatives along the last axis: moe.glu_grad, norm_grad, softmax_grad, route.renorm_grad, row_dot. The one idea: as
 * in norm.c, every row is a few folds (rows.h) and one pass that writes, so a row gives the same bits alone or in any
 * batch.
 *
 * ptr: operands, results   i: rows, d   f: eps, or eps, p, floor */
#include "codegen/cpu/grad_math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

enum { MAX_ARRAYS = 3 };

typedef struct row { /* the row being worked on */
    LLVMValueRef in[MAX_ARRAYS], out[MAX_ARRAYS], d;
    LLVMValueRef shift; /* subtracted from each element of in[0], or NULL; a vector, as p */
    LLVMValueRef p, gate;
    int64_t form;
    mc_act act;
} row;

/* for (every row of this thread), with its arrays in *r */
static kb_loop
begin_rows(mc_kb *kb, row *r, int n_in, int n_out, const LLVMValueRef *arrays)
{
    r->d = kb_arg_int(kb, 1);
    kb_loop l = mc_rows_begin(kb, kb_arg_int(kb, 0));
    LLVMValueRef start = kb_mul(kb, l.i, r->d);
    for (int i = 0; i < n_in; i++) r->in[i] = kb_elem(kb, arrays[i], start, 4);
    for (int i = 0; i < n_out; i++) r->out[i] = kb_elem(kb, arrays[n_in + i], start, 4);
    return l;
}

static void
load_arrays(mc_kb *kb, int n, LLVMValueRef *arrays)
{
    for (int i = 0; i < n; i++) arrays[i] = kb_arg_ptr(kb, i);
}

static LLVMValueRef
load(mc_kb *kb, LLVMValueRef array, LLVMValueRef i, LLVMValueRef mask)
{
    return kb_load_f32(kb, MOEC_F32, kb_elem(kb, array, i, 4), kb->vl, mask);
}

static void
store(mc_kb *kb, LLVMValueRef v, LLVMValueRef array, LLVMValueRef i, LLVMValueRef mask)
{
    kb_store_f32(kb, MOEC_F32, v, kb_elem(kb, array, i, 4), mask);
}

static LLVMValueRef
load_shifted(mc_kb *kb, const row *r, LLVMValueRef i, LLVMValueRef mask)
{
    LLVMValueRef x = load(kb, r->in[0], i, mask);
    return r->shift ? kb_fsub(kb, x, r->shift) : x;
}

/* ---- folds ------------------------------------------------------------------------------------------------------ */

static LLVMValueRef
step_sum(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    return kb_fadd(kb, acc, load(kb, r->in[0], i, mask));
}

static LLVMValueRef
step_sum_dy(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    return kb_fadd(kb, acc, load(kb, r->in[1], i, mask));
}

static LLVMValueRef
step_squares(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    LLVMValueRef x = load_shifted(kb, context, i, mask);
    return kb_fma(kb, x, x, acc);
}

static LLVMValueRef
step_dot(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    return kb_fma(kb, load(kb, r->in[1], i, mask), load_shifted(kb, r, i, mask), acc);
}

static LLVMValueRef
fold(mc_kb *kb, row *r, mc_fold_step *step)
{
    return mc_rows_fold(kb, r->d, 0, false, step, r, kb_reduce_add);
}

/* ---- row_dot, softmax_grad -------------------------------------------------------------------------------------- */

static void
emit_row_dot(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    row r = {0};
    LLVMValueRef arrays[3];
    load_arrays(kb, 3, arrays);
    kb_loop l = begin_rows(kb, &r, 2, 0, arrays);
    kb_store(kb, fold(kb, &r, step_dot), kb_elem(kb, arrays[2], l.i, 4), 4);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

static void
emit_softmax_grad(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    row r = {0};
    LLVMValueRef arrays[3];
    load_arrays(kb, 3, arrays);
    kb_loop l = begin_rows(kb, &r, 2, 1, arrays);
    LLVMValueRef dot = kb_splat(kb, fold(kb, &r, step_dot), kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), r.d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef y = load(kb, r.in[0], v.i, v.mask), dy = load(kb, r.in[1], v.i, v.mask);
        store(kb, kb_fmul(kb, y, kb_fsub(kb, dy, dot)), r.out[0], v.i, v.mask);
    }
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- norm_grad -------------------------------------------------------------------------------------------------- */

enum { NORM_RMS, NORM_LAYER, NORM_L2 };

/* dx = root (dy - mean_dy - (x - mean) root * slope), slope = root * mean(dy (x - mean)) (for l2norm the sum); of
 * powers of root only the first is formed, which cannot overflow. */
static void
write_norm_grad(mc_kb *kb, const row *r, LLVMValueRef root, LLVMValueRef slope, LLVMValueRef mean_dy)
{
    root = kb_splat(kb, root, kb->vl);
    slope = kb_splat(kb, kb_fneg(kb, slope), kb->vl);
    if (mean_dy) mean_dy = kb_splat(kb, mean_dy, kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), r->d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef y = kb_fmul(kb, load_shifted(kb, r, v.i, v.mask), root), dy = load(kb, r->in[1], v.i, v.mask);
        if (mean_dy) dy = kb_fsub(kb, dy, mean_dy);
        store(kb, kb_fmul(kb, root, kb_fma(kb, y, slope, dy)), r->out[0], v.i, v.mask);
    }
}

static void
emit_norm_grad(mc_kb *kb, const mc_plan_kernel *k)
{
    int64_t form = k->p[0];
    kb_kernel_begin(kb, k->name.data);
    row r = {0};
    LLVMValueRef arrays[3], eps = kb_arg_float(kb, 0), mean_dy = NULL;
    load_arrays(kb, 3, arrays);
    kb_loop l = begin_rows(kb, &r, 2, 1, arrays);
    LLVMValueRef d = kb_convert(kb, r.d, kb->f32);
    if (form == NORM_LAYER) {
        r.shift = kb_splat(kb, kb_fdiv(kb, fold(kb, &r, step_sum), d), kb->vl);
        mean_dy = kb_fdiv(kb, fold(kb, &r, step_sum_dy), d);
    }
    LLVMValueRef squares = fold(kb, &r, step_squares), dot = fold(kb, &r, step_dot);
    if (form != NORM_L2) {
        squares = kb_fdiv(kb, squares, d);
        dot = kb_fdiv(kb, dot, d);
    }
    LLVMValueRef root = kb_rsqrt(kb, kb_fadd(kb, squares, eps));
    write_norm_grad(kb, &r, root, kb_fmul(kb, root, dot), mean_dy);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- route.renorm_grad ------------------------------------------------------------------------------------------ */

enum { POWER_1, POWER_2, POWER_ANY, POWER_FLOOR };

static LLVMValueRef
step_power(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const row *r = context;
    LLVMValueRef w = load(kb, r->in[0], i, mask);
    switch (r->form) {
    case POWER_1: return kb_fadd(kb, acc, kb_fabs(kb, w));
    case POWER_2: return kb_fma(kb, w, w, acc);
    case POWER_FLOOR: return kb_fadd(kb, acc, w);
    default: return kb_fadd(kb, acc, kb_exp(kb, kb_fmul(kb, r->p, kb_log(kb, kb_fabs(kb, w)))));
    }
}

/* d norm / d w of elements w: sign(w) (|w| / norm)^(p - 1), 0 for w = 0. norm, log_norm: vectors. */
static LLVMValueRef
norm_slope(mc_kb *kb, const row *r, LLVMValueRef w, LLVMValueRef norm, LLVMValueRef log_norm)
{
    LLVMValueRef one = kb_const(kb->vf, 1.0), zero = kb_const(kb->vf, 0.0), slope = one;
    if (r->form == POWER_FLOOR) return one;
    if (r->form == POWER_2) slope = kb_fdiv(kb, kb_fabs(kb, w), norm);
    if (r->form == POWER_ANY) {
        LLVMValueRef ratio = kb_fsub(kb, kb_log(kb, kb_fabs(kb, w)), log_norm);
        slope = kb_exp(kb, kb_fmul(kb, kb_fsub(kb, r->p, one), ratio));
    }
    return kb_select(kb, kb_fcmp(kb, LLVMRealOEQ, w, zero), zero, kb_copysign(kb, slope, w));
}

/* dw = dy / total - (sum dy w) / total^2 * d norm / dw */
static void
write_renorm_grad(mc_kb *kb, const row *r, LLVMValueRef total, LLVMValueRef norm, LLVMValueRef log_norm,
                  LLVMValueRef back)
{
    total = kb_splat(kb, total, kb->vl);
    norm = kb_splat(kb, norm, kb->vl);
    back = kb_splat(kb, kb_fneg(kb, back), kb->vl);
    if (log_norm) log_norm = kb_splat(kb, log_norm, kb->vl);
    kb_vloop v = kb_vloop_begin(kb, kb_i64(kb, 0), r->d, 0, NULL);
    while (kb_vloop_next(kb, &v)) {
        LLVMValueRef w = load(kb, r->in[0], v.i, v.mask), dy = load(kb, r->in[1], v.i, v.mask);
        LLVMValueRef slope = norm_slope(kb, r, w, norm, log_norm);
        store(kb, kb_fma(kb, back, slope, kb_fdiv(kb, dy, total)), r->out[0], v.i, v.mask);
    }
}

static void
emit_renorm_grad(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef eps = kb_arg_float(kb, 0), p = kb_arg_float(kb, 1), floor = kb_arg_float(kb, 2), log_norm = NULL;
    LLVMValueRef arrays[3], zero = kb_f32(kb, 0);
    row r = {.form = k->p[0], .p = kb_splat(kb, p, kb->vl)};
    load_arrays(kb, 3, arrays);
    kb_loop l = begin_rows(kb, &r, 2, 1, arrays);
    LLVMValueRef norm = mc_rows_fold(kb, r.d, 0, true, step_power, &r, kb_reduce_add);
    if (r.form == POWER_2) norm = kb_sqrt(kb, norm);
    if (r.form == POWER_ANY) {
        log_norm = kb_fdiv(kb, kb_log(kb, norm), p);
        norm = kb_exp(kb, log_norm);
    }
    bool floored = r.form == POWER_FLOOR;
    LLVMValueRef total = floored ? kb_fmax(kb, floor, norm) : kb_fadd(kb, norm, eps);
    LLVMValueRef dot = mc_rows_fold(kb, r.d, 0, true, step_dot, &r, kb_reduce_add);
    LLVMValueRef back = kb_fdiv(kb, kb_fdiv(kb, dot, total), total);
    if (floored) back = kb_select(kb, kb_fcmp(kb, LLVMRealOGE, norm, floor), back, zero);
    write_renorm_grad(kb, &r, total, norm, log_norm, back);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- moe.glu_grad ----------------------------------------------------------------------------------------------- */

enum { IN_G, IN_U, IN_DA, OUT_DG = 0, OUT_DU, OUT_H };
enum { LANES = 16 }; /* of the sum, as in rows.h */

/* Writes dg, du and h of `lanes` elements from i on; gives da and h. */
static void
glu_vector(mc_kb *kb, const row *r, LLVMValueRef i, int lanes, LLVMValueRef mask, LLVMValueRef *da, LLVMValueRef *h)
{
    LLVMValueRef g = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->in[IN_G], i, 4), lanes, mask);
    LLVMValueRef u = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->in[IN_U], i, 4), lanes, mask);
    *da = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->in[IN_DA], i, 4), lanes, mask);
    LLVMValueRef dh = kb_fmul(kb, kb_splat(kb, r->gate, lanes), *da), a = kb_act(kb, r->act, g);
    *h = kb_fmul(kb, a, u);
    store(kb, kb_act_grad(kb, r->act, g, kb_fmul(kb, dh, u)), r->out[OUT_DG], i, mask);
    store(kb, kb_fmul(kb, dh, a), r->out[OUT_DU], i, mask);
    store(kb, *h, r->out[OUT_H], i, mask);
}

/* LANES elements of a wider vector. */
static LLVMValueRef
part(mc_kb *kb, LLVMValueRef v, int from)
{
    int lanes[LANES];
    for (int i = 0; i < LANES; i++) lanes[i] = from + i;
    return kb_shuffle(kb, v, v, lanes, LANES);
}

/* One row; gives the sum of da * h. The activation is a long chain of dependent steps, so a block of several vectors
 * goes through it at once; the sum is kept in lanes as mc_rows_fold does. */
static LLVMValueRef
glu_row(mc_kb *kb, const row *r)
{
    int n_block = kb->vl < 8 ? LANES : 2 * LANES;
    LLVMValueRef sum = kb_const(kb_vector(kb->f32, LANES), 0), block = kb_i64(kb, n_block), da, h;
    LLVMValueRef whole = kb_sub(kb, r->d, kb_srem(kb, r->d, block));
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), whole, block, 1, &sum);
    glu_vector(kb, r, l.i, n_block, NULL, &da, &h);
    for (int from = 0; from < n_block; from += LANES)
        l.v[0] = kb_fma(kb, part(kb, da, from), part(kb, h, from), l.v[0]);
    kb_loop_end(kb, &l);
    sum = l.v[0];
    l = kb_loop_begin(kb, whole, r->d, kb_i64(kb, LANES), 1, &sum);
    LLVMValueRef left = kb_convert(kb, kb_sub(kb, r->d, l.i), kb->i32);
    LLVMValueRef mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, LANES), kb_splat(kb, left, LANES));
    glu_vector(kb, r, l.i, LANES, mask, &da, &h);
    l.v[0] = kb_keep(kb, mask, kb_fma(kb, da, h, l.v[0]), l.v[0]);
    kb_loop_end(kb, &l);
    return kb_reduce_add(kb, &l.v[0], 1);
}

static void
emit_moe_glu_grad(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    row r = {.act = (mc_act)k->p[0]};
    LLVMValueRef arrays[6], gates = kb_arg_ptr(kb, 6), dgates = kb_arg_ptr(kb, 7);
    load_arrays(kb, 6, arrays);
    kb_loop l = begin_rows(kb, &r, 3, 3, arrays);
    r.gate = kb_load_f32(kb, MOEC_F32, kb_elem(kb, gates, l.i, 4), 1, NULL);
    kb_store(kb, glu_row(kb, &r), kb_elem(kb, dgates, l.i, 4), 4);
    mc_rows_end(kb, &l);
    kb_kernel_end(kb);
}

/* ---- selection -------------------------------------------------------------------------------------------------- */

static bool
need_f32(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < op->n_operands; i++) {
        if (mc_operand(op, i)->type->dtype != MOEC_F32) return mc_plan_refuse(p, "an operand is not f32");
    }
    return true;
}

static void
push_rows(mc_plan *p, const mc_op *op)
{
    const mc_type *x = mc_operand(op, 0)->type;
    mc_plan_int(p, mc_plan_rows(p, x));
    mc_plan_int(p, mc_type_last(x));
}

static void
launch_rows(mc_plan *p, const mc_op *op, const mc_plan_kernel *k)
{
    mc_plan_launch(p, k);
    mc_plan_ptr(p, mc_operand(op, 0));
    mc_plan_ptr(p, mc_operand(op, 1));
    mc_plan_ptr(p, mc_result(op, 0));
    push_rows(p, op);
}

void
mc_cpu_select_row_dot(mc_plan *p, const mc_op *op)
{
    if (need_f32(p, op)) launch_rows(p, op, mc_plan_kernel_get(p, emit_row_dot, NULL, 0, "row_dot"));
}

void
mc_cpu_select_softmax_grad(mc_plan *p, const mc_op *op)
{
    if (need_f32(p, op)) launch_rows(p, op, mc_plan_kernel_get(p, emit_softmax_grad, NULL, 0, "softmax_grad"));
}

void
mc_cpu_select_norm_grad(mc_plan *p, const mc_op *op)
{
    if (!need_f32(p, op)) return;
    mc_opcode of = mc_opcode_find(mc_attr_str(op, "of"));
    int64_t form = of == MC_OP_RMSNORM ? NORM_RMS : of == MC_OP_LAYERNORM ? NORM_LAYER : NORM_L2;
    launch_rows(p, op, mc_plan_kernel_get(p, emit_norm_grad, &form, 1, "norm_grad_%s", mc_op_infos[of].text));
    mc_plan_float(p, mc_attr_float(op, "eps"));
}

void
mc_cpu_select_renorm_grad(mc_plan *p, const mc_op *op)
{
    if (!need_f32(p, op)) return;
    double power = mc_attr_float(op, "p"), floor = mc_attr_float(op, "floor");
    int64_t form = floor > 0 ? POWER_FLOOR : power == 1 ? POWER_1 : power == 2 ? POWER_2 : POWER_ANY;
    launch_rows(p, op, mc_plan_kernel_get(p, emit_renorm_grad, &form, 1, "renorm_grad_%d", (int)form));
    mc_plan_float(p, mc_attr_float(op, "eps"));
    mc_plan_float(p, power);
    mc_plan_float(p, floor);
}

void
mc_cpu_select_moe_glu_grad(mc_plan *p, const mc_op *op)
{
    if (!need_f32(p, op)) return;
    int64_t act = mc_act_find(mc_attr_str(op, "act"));
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_moe_glu_grad, &act, 1, "moe_glu_grad_%s", mc_act_name((mc_act)act)));
    for (int i = IN_G; i <= IN_DA; i++) mc_plan_ptr(p, mc_operand(op, i));
    for (int i = OUT_DG; i <= OUT_H; i++) mc_plan_ptr(p, mc_result(op, i));
    mc_plan_ptr(p, mc_operand_named(op, "gates"));
    mc_plan_ptr(p, mc_result(op, 3));
    push_rows(p, op);
}
