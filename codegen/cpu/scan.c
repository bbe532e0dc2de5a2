/* Recurrences over positions: selective_scan (Mamba) and delta_scan (gated delta rule). The one idea: a column of the
 * state never meets another, so columns are lanes, and a thread carries its columns through all positions.
 *
 * selective  ptr: x, dt, a, b, c, state, y        i: B, S, d, n
 * delta      ptr: q, k, v, g, beta, state, y      i: B, S, H, HK, dk, dv    f: scale */
#include "codegen/cpu/math.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"

static bool
all_f32(mc_plan *p, const mc_op *op)
{
    for (int i = 0; i < op->n_operands; i++) {
        if (mc_operand(op, i)->type->dtype != MOEC_F32) return mc_plan_refuse(p, "an operand is not f32");
    }
    return true;
}

static LLVMValueRef
get(mc_kb *kb, LLVMValueRef p, LLVMValueRef i)
{
    return kb_load(kb, kb->f32, kb_elem(kb, p, i, 4), 4);
}

static kb_loop
count_to(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init)
{
    return kb_loop_begin(kb, kb_i64(kb, 0), n, kb_i64(kb, 1), n_carried, init);
}

/* ---- selective_scan -------------------------------------------------------------------------------------------- */

typedef struct scan_row { /* one channel of one sequence at one position */
    LLVMValueRef a, b, c, state, step, input;
} scan_row;

/* Updates the channel's n states and adds up h . c, both n at a time. */
static LLVMValueRef
step_scan(mc_kb *kb, void *context, LLVMValueRef i, LLVMValueRef mask, LLVMValueRef acc)
{
    const scan_row *r = context;
    LLVMValueRef at = kb_elem(kb, r->state, i, 4), h = kb_load_f32(kb, MOEC_F32, at, kb->vl, mask);
    LLVMValueRef a = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->a, i, 4), kb->vl, mask);
    LLVMValueRef b = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->b, i, 4), kb->vl, mask);
    LLVMValueRef c = kb_load_f32(kb, MOEC_F32, kb_elem(kb, r->c, i, 4), kb->vl, mask);
    h = kb_fma(kb, kb_exp(kb, kb_fmul(kb, r->step, a)), h, kb_fmul(kb, r->input, b));
    kb_store_f32(kb, MOEC_F32, h, at, mask);
    return kb_fma(kb, h, c, acc);
}

static void
emit_selective_scan(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef x = kb_arg_ptr(kb, 0), dt = kb_arg_ptr(kb, 1), a = kb_arg_ptr(kb, 2), b = kb_arg_ptr(kb, 3);
    LLVMValueRef c = kb_arg_ptr(kb, 4), state = kb_arg_ptr(kb, 5), y = kb_arg_ptr(kb, 6);
    LLVMValueRef n_s = kb_arg_int(kb, 1), d = kb_arg_int(kb, 2), n = kb_arg_int(kb, 3);
    kb_loop tasks = mc_rows_begin(kb, kb_mul(kb, kb_arg_int(kb, 0), d)); /* (sequence, channel) */
    LLVMValueRef sequence = kb_udiv(kb, tasks.i, d), channel = kb_urem(kb, tasks.i, d);
    scan_row r = {.a = kb_elem(kb, a, kb_mul(kb, channel, n), 4),
                  .state = kb_elem(kb, state, kb_mul(kb, tasks.i, n), 4)};
    kb_loop l = count_to(kb, n_s, 0, NULL);
    LLVMValueRef row = kb_add(kb, kb_mul(kb, sequence, n_s), l.i), at = kb_add(kb, kb_mul(kb, row, d), channel);
    LLVMValueRef step = get(kb, dt, at);
    r.b = kb_elem(kb, b, kb_mul(kb, row, n), 4);
    r.c = kb_elem(kb, c, kb_mul(kb, row, n), 4);
    r.step = kb_splat(kb, step, kb->vl);
    r.input = kb_splat(kb, kb_fmul(kb, step, get(kb, x, at)), kb->vl);
    LLVMValueRef sum = mc_rows_fold(kb, n, 0, true, step_scan, &r, kb_reduce_add);
    kb_store(kb, sum, kb_elem(kb, y, at, 4), 4);
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &tasks);
    kb_kernel_end(kb);
}

void
mc_cpu_select_selective_scan(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *a = mc_operand(op, 2);
    if (!all_f32(p, op)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_selective_scan, NULL, 0, "selective_scan"));
    for (int i = 0; i < 5; i++) mc_plan_ptr(p, mc_operand(op, i));
    mc_plan_ptr_state(p);
    mc_plan_ptr(p, mc_result(op, 0));
    for (int i = 0; i < 3; i++) mc_plan_int(p, x->type->dims[i]);
    mc_plan_int(p, a->type->dims[1]);
}

/* ---- delta_scan ------------------------------------------------------------------------------------------------ */

typedef struct delta {              /* vl columns of one head's matrix */
    LLVMValueRef q, k, v, y, state; /* of the position; state: [dk][dv] at the first column */
    LLVMValueRef dk, dv, decay, beta, scale, mask;
} delta;

static LLVMValueRef
matrix_row(mc_kb *kb, const delta *d, LLVMValueRef i)
{
    return kb_elem(kb, d->state, kb_mul(kb, i, d->dv), 4);
}

static void
delta_step(mc_kb *kb, const delta *d)
{
    LLVMValueRef zero = kb_const(kb->vf, 0);
    kb_loop l = count_to(kb, d->dk, 1, &zero);
    LLVMValueRef at = matrix_row(kb, d, l.i);
    LLVMValueRef m = kb_fmul(kb, kb_load_f32(kb, MOEC_F32, at, kb->vl, d->mask), d->decay);
    kb_store_f32(kb, MOEC_F32, m, at, d->mask);
    l.v[0] = kb_fma(kb, kb_splat(kb, get(kb, d->k, l.i), kb->vl), m, l.v[0]);
    kb_loop_end(kb, &l);
    LLVMValueRef v = kb_load_f32(kb, MOEC_F32, d->v, kb->vl, d->mask);
    LLVMValueRef change = kb_fmul(kb, d->beta, kb_fsub(kb, v, l.v[0]));

    l = count_to(kb, d->dk, 1, &zero);
    at = matrix_row(kb, d, l.i);
    m = kb_load_f32(kb, MOEC_F32, at, kb->vl, d->mask);
    m = kb_fma(kb, kb_splat(kb, get(kb, d->k, l.i), kb->vl), change, m);
    kb_store_f32(kb, MOEC_F32, m, at, d->mask);
    l.v[0] = kb_fma(kb, kb_splat(kb, kb_fmul(kb, d->scale, get(kb, d->q, l.i)), kb->vl), m, l.v[0]);
    kb_loop_end(kb, &l);
    kb_store_f32(kb, MOEC_F32, l.v[0], d->y, d->mask);
}

static void
emit_delta_scan(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    LLVMValueRef q = kb_arg_ptr(kb, 0), key = kb_arg_ptr(kb, 1), v = kb_arg_ptr(kb, 2), g = kb_arg_ptr(kb, 3);
    LLVMValueRef beta = kb_arg_ptr(kb, 4), state = kb_arg_ptr(kb, 5), y = kb_arg_ptr(kb, 6), n_s = kb_arg_int(kb, 1);
    LLVMValueRef heads = kb_arg_int(kb, 2), key_heads = kb_arg_int(kb, 3), vl = kb_i64(kb, kb->vl);
    delta d = {.dk = kb_arg_int(kb, 4), .dv = kb_arg_int(kb, 5), .scale = kb_arg_float(kb, 0)};
    LLVMValueRef group = kb_udiv(kb, heads, key_heads);
    LLVMValueRef blocks = kb_udiv(kb, kb_add(kb, d.dv, kb_i64(kb, kb->vl - 1)), vl);
    kb_loop tasks = mc_rows_begin(kb, kb_mul(kb, kb_mul(kb, kb_arg_int(kb, 0), heads), blocks));
    LLVMValueRef head_index = kb_udiv(kb, tasks.i, blocks), column = kb_mul(kb, kb_urem(kb, tasks.i, blocks), vl);
    LLVMValueRef sequence = kb_udiv(kb, head_index, heads), head = kb_urem(kb, head_index, heads);
    LLVMValueRef left = kb_convert(kb, kb_sub(kb, d.dv, column), kb->i32);
    d.mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), kb_splat(kb, left, kb->vl));
    LLVMValueRef matrix = kb_mul(kb, head_index, kb_mul(kb, d.dk, d.dv));
    d.state = kb_elem(kb, state, kb_add(kb, matrix, column), 4);
    kb_loop l = count_to(kb, n_s, 0, NULL);
    LLVMValueRef row = kb_add(kb, kb_mul(kb, sequence, n_s), l.i), value_row = kb_add(kb, kb_mul(kb, row, heads), head);
    LLVMValueRef key_row = kb_mul(kb, kb_add(kb, kb_mul(kb, row, key_heads), kb_udiv(kb, head, group)), d.dk);
    LLVMValueRef at = kb_add(kb, kb_mul(kb, value_row, d.dv), column);
    d.q = kb_elem(kb, q, key_row, 4);
    d.k = kb_elem(kb, key, key_row, 4);
    d.v = kb_elem(kb, v, at, 4);
    d.y = kb_elem(kb, y, at, 4);
    d.decay = kb_splat(kb, kb_exp(kb, get(kb, g, value_row)), kb->vl);
    d.beta = kb_splat(kb, get(kb, beta, value_row), kb->vl);
    delta_step(kb, &d);
    kb_loop_end(kb, &l);
    mc_rows_end(kb, &tasks);
    kb_kernel_end(kb);
}

void
mc_cpu_select_delta_scan(mc_plan *p, const mc_op *op)
{
    const mc_value *q = mc_operand(op, 0), *v = mc_operand(op, 2);
    if (!all_f32(p, op)) return;
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_delta_scan, NULL, 0, "delta_scan"));
    for (int i = 0; i < 5; i++) mc_plan_ptr(p, mc_operand(op, i));
    mc_plan_ptr_state(p);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, q->type->dims[0]);
    mc_plan_int(p, q->type->dims[1]);
    mc_plan_int(p, v->type->dims[2]);
    mc_plan_int(p, q->type->dims[2]);
    mc_plan_int(p, q->type->dims[3]);
    mc_plan_int(p, v->type->dims[3]);
    mc_plan_float(p, mc_attr_float(op, "scale"));
}
