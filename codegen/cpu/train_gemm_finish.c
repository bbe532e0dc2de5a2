/* From sums to y. A tile whose columns and rows all exist is summed where it lies in y; others in a buffer that finish
 * copies in and out. Where there is a bias or a residual, finish adds them in place, after the last step of k. */
#include "codegen/cpu/train_gemm_parts.h"

static LLVMValueRef
is_present(mc_kb *kb, LLVMValueRef p)
{
    return kb_icmp(kb, LLVMIntNE, p, LLVMConstNull(kb->ptr));
}

/* p[column..], or -0, which changes nothing when it is added: present null pointers cost no second loop. */
static LLVMValueRef
load_term(mc_kb *kb, LLVMValueRef p, const kb_vloop *l)
{
    kb_if c = kb_if_begin(kb, is_present(kb, p));
    LLVMValueRef v = kb_load_masked(kb, kb->vf, kb_elem(kb, p, l->i, 4), 4, l->mask);
    kb_if_end(kb, &c);
    return kb_if_value(kb, &c, v, kb_const(kb->vf, -0.0));
}

LLVMValueRef
mc_train_finish(mc_kb *kb)
{
    enum { C, C_STRIDE, Y, Y_STRIDE, BIAS, RESIDUAL, N_ROWS, N_COLUMNS, N_PARAMS };
    LLVMValueRef fn = kb_find(kb, "train_finish");
    if (fn) return fn;
    LLVMTypeRef params[N_PARAMS] = {kb->ptr, kb->i64, kb->ptr, kb->i64, kb->ptr, kb->ptr, kb->i64, kb->i64};
    fn = kb_function_begin(kb, "train_finish", kb->t_void, params, N_PARAMS);
    LLVMValueRef zero = kb_i64(kb, 0), bias = kb_param(kb, BIAS), residual = kb_param(kb, RESIDUAL);
    LLVMValueRef has_residual = is_present(kb, residual);
    kb_loop row = kb_loop_begin(kb, zero, kb_param(kb, N_ROWS), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef c = kb_gep(kb, kb_param(kb, C), kb_mul(kb, row.i, kb_param(kb, C_STRIDE)));
    LLVMValueRef at = kb_mul(kb, row.i, kb_param(kb, Y_STRIDE)), y = kb_gep(kb, kb_param(kb, Y), at);
    LLVMValueRef r = kb_select(kb, has_residual, kb_gep(kb, residual, at), residual);
    for (kb_vloop l = kb_vloop_begin(kb, zero, kb_param(kb, N_COLUMNS), 0, NULL); kb_vloop_next(kb, &l);) {
        LLVMValueRef v = kb_load_masked(kb, kb->vf, kb_elem(kb, c, l.i, 4), 4, l.mask);
        v = kb_fadd(kb, v, load_term(kb, bias, &l));
        v = kb_fadd(kb, load_term(kb, r, &l), v);
        kb_store_masked(kb, v, kb_elem(kb, y, l.i, 4), 4, l.mask);
    }
    kb_loop_end(kb, &row);
    kb_function_end(kb, NULL);
    return fn;
}

LLVMValueRef
mc_train_scatter(mc_kb *kb)
{
    enum { ARGS, C, C_STRIDE, ROW, N_ROWS, COLUMN, N_COLUMNS, BIAS, N_PARAMS };
    LLVMValueRef fn = kb_find(kb, "train_scatter");
    if (fn) return fn;
    LLVMTypeRef params[N_PARAMS] = {kb->ptr, kb->ptr, kb->i64, kb->i64, kb->i64, kb->i64, kb->i64, kb->ptr};
    fn = kb_function_begin(kb, "train_scatter", kb->t_void, params, N_PARAMS);
    LLVMValueRef zero = kb_i64(kb, 0), y = kb_arg_ptr(kb, MC_TRAIN_Y), tokens = kb_arg_ptr(kb, MC_TRAIN_A_ROWS);
    LLVMValueRef gates = kb_arg_ptr(kb, MC_TRAIN_GATES), n = kb_arg_int(kb, MC_TRAIN_N);
    kb_loop l = kb_loop_begin(kb, zero, kb_param(kb, N_ROWS), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef row = kb_add(kb, kb_param(kb, ROW), l.i);
    kb_if gated = kb_if_begin(kb, is_present(kb, gates));
    LLVMValueRef gate = kb_load(kb, kb->f32, kb_elem(kb, gates, row, 4), 4);
    kb_if_end(kb, &gated);
    gate = kb_splat(kb, kb_if_value(kb, &gated, gate, kb_f32(kb, 1.0)), kb->vl);
    LLVMValueRef token = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, tokens, row, 4), 4), kb->i64);
    LLVMValueRef to = kb_elem(kb, y, kb_add(kb, kb_mul(kb, token, n), kb_param(kb, COLUMN)), 4);
    LLVMValueRef c = kb_gep(kb, kb_param(kb, C), kb_mul(kb, l.i, kb_param(kb, C_STRIDE)));
    for (kb_vloop v = kb_vloop_begin(kb, zero, kb_param(kb, N_COLUMNS), 0, NULL); kb_vloop_next(kb, &v);) {
        LLVMValueRef p = kb_elem(kb, to, v.i, 4), x = kb_load_masked(kb, kb->vf, kb_elem(kb, c, v.i, 4), 4, v.mask);
        x = kb_fadd(kb, x, load_term(kb, kb_param(kb, BIAS), &v));
        kb_store_masked(kb, kb_fma(kb, gate, x, kb_load_masked(kb, kb->vf, p, 4, v.mask)), p, 4, v.mask);
    }
    kb_loop_end(kb, &l);
    kb_function_end(kb, NULL);
    return fn;
}
