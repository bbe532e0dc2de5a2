/* From a tile's sums to y: bias, activation or residual, and for the down projection the weighted sum into the token's
 * row. Rows are done one after another, so a token that an expert has twice gets both. Only the last panel can have
 * columns that do not exist; they are cut off by masks there and nowhere else. */
#include "codegen/cpu/gemm_parts.h"

enum { PARAM_ARGS, PARAM_SUMS, PARAM_STRIDE, PARAM_N_ROWS, PARAM_ROW, PARAM_PANEL, PARAM_GROUP, N_PARAMS };

typedef struct finish {
    mc_kb *kb;
    const mc_gemm_spec *spec;
    int vectors;            /* of y, for one panel */
    LLVMValueRef n, column; /* N; the panel's first column of y */
    LLVMValueRef whole;     /* i1: all columns exist */
    LLVMValueRef mask[8];   /* of each vector, when not */
    LLVMValueRef y, y_stride, bias, bias2, residual, residual_stride, gates, tokens;
} finish;

static LLVMValueRef
is_present(mc_kb *kb, LLVMValueRef p)
{
    return kb_icmp(kb, LLVMIntNE, p, LLVMConstNull(kb->ptr));
}

/* v + bias[group][column + j vl ..], or v when there is no bias */
static LLVMValueRef
add_bias(const finish *f, LLVMValueRef bias, LLVMValueRef v, int j)
{
    mc_kb *kb = f->kb;
    kb_if c = kb_if_begin(kb, is_present(kb, bias));
    LLVMValueRef first = kb_add(kb, kb_mul(kb, kb_param(kb, PARAM_GROUP), f->n), f->column);
    LLVMValueRef p = kb_gepi(kb, kb_elem(kb, bias, first, 4), (int64_t)j * kb->vl * 4);
    LLVMValueRef sum = kb_fadd(kb, v, kb_load_masked(kb, kb->vf, p, 4, f->mask[j]));
    kb_if_end(kb, &c);
    return kb_if_value(kb, &c, sum, v);
}

/* The values of one row of y, still without what is added from memory at the end. */
static void
row_values(const finish *f, LLVMValueRef sums, LLVMValueRef *v)
{
    mc_kb *kb = f->kb;
    for (int j = 0; j < f->vectors; j++) {
        v[j] = kb_load(kb, kb->vf, kb_gepi(kb, sums, (int64_t)j * kb->vl * 4), 16);
        v[j] = add_bias(f, f->bias, v[j], j);
        if (!mc_gemm_is_pair(f->spec)) continue;
        LLVMValueRef up = kb_load(kb, kb->vf, kb_gepi(kb, sums, (int64_t)(f->vectors + j) * kb->vl * 4), 16);
        up = add_bias(f, f->bias2, up, j);
        v[j] = kb_fmul(kb, kb_act(kb, f->spec->act, v[j]), up);
    }
}

/* y[row] = residual + v, v, or fma(gate, v, y), for whole vectors (mask NULL) or the columns that exist. */
static void
store_row(const finish *f, LLVMValueRef row, const LLVMValueRef *v, bool masked)
{
    mc_kb *kb = f->kb;
    LLVMValueRef y_row = row, gate = NULL;
    if (f->spec->kind == MC_GEMM_MOE_DOWN) {
        y_row = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, f->tokens, row, 4), 4), kb->i64);
        kb_if c = kb_if_begin(kb, is_present(kb, f->gates));
        LLVMValueRef g = kb_load(kb, kb->f32, kb_elem(kb, f->gates, row, 4), 4);
        kb_if_end(kb, &c);
        gate = kb_splat(kb, kb_if_value(kb, &c, g, kb_f32(kb, 1.0)), kb->vl);
    }
    LLVMValueRef y = kb_elem(kb, f->y, kb_add(kb, kb_mul(kb, y_row, f->y_stride), f->column), 4);
    LLVMValueRef r =
        f->residual ? kb_elem(kb, f->residual, kb_add(kb, kb_mul(kb, row, f->residual_stride), f->column), 4) : NULL;
    for (int j = 0; j < f->vectors; j++) {
        LLVMValueRef p = kb_gepi(kb, y, (int64_t)j * kb->vl * 4), value = v[j], mask = masked ? f->mask[j] : NULL;
        if (gate) value = kb_fma(kb, gate, value, kb_load_masked(kb, kb->vf, p, 4, mask));
        if (r) {
            kb_if c = kb_if_begin(kb, is_present(kb, f->residual));
            LLVMValueRef old = kb_load_masked(kb, kb->vf, kb_gepi(kb, r, (int64_t)j * kb->vl * 4), 4, mask);
            LLVMValueRef sum = kb_fadd(kb, old, value);
            kb_if_end(kb, &c);
            value = kb_if_value(kb, &c, sum, value);
        }
        kb_store_masked(kb, value, p, 4, mask);
    }
}

static void
load_arguments(finish *f)
{
    mc_kb *kb = f->kb;
    int columns = mc_gemm_columns(kb, f->spec);
    f->vectors = columns / kb->vl;
    f->n = kb_arg_int(kb, MC_GEMM_N);
    f->column = kb_mul(kb, kb_param(kb, PARAM_PANEL), kb_i64(kb, columns));
    LLVMValueRef left = kb_sub(kb, f->n, f->column);
    f->whole = kb_icmp(kb, LLVMIntSGE, left, kb_i64(kb, columns));
    LLVMValueRef limit = kb_convert(kb, kb_min(kb, left, kb_i64(kb, columns)), kb->i32);
    for (int j = 0; j < f->vectors; j++) {
        LLVMValueRef here = kb_splat(kb, kb_sub(kb, limit, kb_i32(kb, j * kb->vl)), kb->vl);
        f->mask[j] = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), here);
    }
    f->y = kb_arg_ptr(kb, MC_GEMM_Y);
    f->y_stride = kb_arg_int(kb, MC_GEMM_Y_STRIDE);
    f->bias = kb_arg_ptr(kb, MC_GEMM_BIAS);
    f->bias2 = kb_arg_ptr(kb, MC_GEMM_BIAS2);
    if (f->spec->kind == MC_GEMM_LINEAR) {
        f->residual = kb_arg_ptr(kb, MC_GEMM_RESIDUAL);
        f->residual_stride = kb_arg_int(kb, MC_GEMM_RESIDUAL_STRIDE);
    }
    if (f->spec->kind == MC_GEMM_MOE_DOWN) {
        f->gates = kb_arg_ptr(kb, MC_GEMM_GATES);
        f->tokens = kb_arg_ptr(kb, MC_GEMM_TOKENS);
    }
}

LLVMValueRef
mc_gemm_finish(mc_kb *kb, const mc_gemm_spec *spec)
{
    static const char *const KINDS[] = {"linear", "pair", "pair", "grouped", "down"};
    bool pair = mc_gemm_is_pair(spec);
    const char *name =
        mc_strf(kb->arena, "finish_%s%s%s", KINDS[spec->kind], pair ? "_" : "", pair ? mc_act_name(spec->act) : "")
            .data;
    LLVMValueRef fn = kb_find(kb, name);
    if (fn) return fn;
    LLVMTypeRef params[N_PARAMS] = {kb->ptr, kb->ptr, kb->i64, kb->i64, kb->i64, kb->i64, kb->i64};
    fn = kb_function_begin(kb, name, kb->t_void, params, N_PARAMS);
    finish f = {.kb = kb, .spec = spec};
    load_arguments(&f);
    kb_loop row = kb_loop_begin(kb, kb_i64(kb, 0), kb_param(kb, PARAM_N_ROWS), kb_i64(kb, 1), 0, NULL);
    LLVMValueRef sums = kb_gep(kb, kb_param(kb, PARAM_SUMS), kb_mul(kb, row.i, kb_param(kb, PARAM_STRIDE)));
    LLVMValueRef v[8], at = kb_add(kb, kb_param(kb, PARAM_ROW), row.i);
    row_values(&f, sums, v);
    kb_if whole = kb_if_begin(kb, f.whole);
    store_row(&f, at, v, false);
    kb_else(kb, &whole);
    store_row(&f, at, v, true);
    kb_if_end(kb, &whole);
    kb_loop_end(kb, &row);
    kb_function_end(kb, NULL);
    return fn;
}
