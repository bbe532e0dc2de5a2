/* One tile over all of k. For most dtypes that is one call of a tile function, chosen by the run-time number of rows;
 * for FP8 it is one call for each run of 128 k, after which the run's sums are scaled into the totals. */
#include "codegen/cpu/gemm_parts.h"

enum {
    PARAM_ARGS,
    PARAM_SHAPE,
    PARAM_ROWS,
    PARAM_B,
    PARAM_B_STRIDE,
    PARAM_AHEAD,
    PARAM_OUT,
    PARAM_GROUP,
    PARAM_PANEL,
    PARAM_PANEL_STEP,
    N_PARAMS
};

/* Widened panels are used by three tiles or more, balanced to within a row: never by lower ones than this, nor by the
 * streams. */
static int
least_widened_rows(int mr)
{
    return mr - (mr + 1) / 3;
}

/* Calls the tile function of this shape for [begin, end). */
static void
call_tile(mc_kb *kb, moec_dtype weight, bool widened, LLVMValueRef begin, LLVMValueRef end, LLVMValueRef out)
{
    LLVMValueRef args[7] = {begin,
                            end,
                            kb_param(kb, PARAM_ROWS),
                            kb_param(kb, PARAM_B),
                            kb_param(kb, PARAM_B_STRIDE),
                            kb_param(kb, PARAM_AHEAD),
                            out};
    int first = widened ? least_widened_rows(kb->target.mr) - 1 : 0;
    int n = widened ? kb->target.mr : mc_gemm_n_shapes(&kb->target);
    LLVMValueRef fn = kb->frames[kb->n_frames - 1].fn, tiles[16];
    for (int s = first; s < n; s++) tiles[s] = mc_gemm_tile(kb, weight, s);
    LLVMBasicBlockRef after = LLVMAppendBasicBlockInContext(kb->ctx, fn, "after");
    LLVMBasicBlockRef never = LLVMAppendBasicBlockInContext(kb->ctx, fn, "never");
    LLVMValueRef choice = LLVMBuildSwitch(kb->b, kb_param(kb, PARAM_SHAPE), never, (unsigned)n);
    for (int s = first; s < n; s++) {
        LLVMBasicBlockRef block = LLVMAppendBasicBlockInContext(kb->ctx, fn, "shape");
        LLVMAddCase(choice, kb_i64(kb, s), block);
        LLVMPositionBuilderAtEnd(kb->b, block);
        kb_call(kb, tiles[s], args, 7);
        LLVMBuildBr(kb->b, after);
    }
    LLVMPositionBuilderAtEnd(kb->b, never);
    LLVMBuildUnreachable(kb->b);
    LLVMPositionBuilderAtEnd(kb->b, after);
}

/* ceil(n / 128) */
static LLVMValueRef
n_blocks(mc_kb *kb, LLVMValueRef n)
{
    return kb_lshr(kb, kb_add(kb, n, kb_i64(kb, MC_GEMM_RUN - 1)), kb_i64(kb, 7));
}

/* The scale of run `run` for the columns of `panel` in the matrix whose scales are argument `which`, splat. The tile's
 * sums are short of a factor 2^8 (gemm_tile.c). */
static LLVMValueRef
load_scale(mc_kb *kb, const mc_gemm_spec *spec, int which, LLVMValueRef panel, LLVMValueRef run)
{
    LLVMValueRef scales = kb_arg_ptr(kb, which), factor = kb_f32(kb, 256.0);
    kb_if present = kb_if_begin(kb, kb_icmp(kb, LLVMIntNE, scales, LLVMConstNull(kb->ptr)));
    LLVMValueRef column = kb_mul(kb, panel, kb_i64(kb, mc_gemm_columns(kb, spec)));
    LLVMValueRef block_rows = n_blocks(kb, kb_arg_int(kb, MC_GEMM_N));
    LLVMValueRef block_columns = n_blocks(kb, kb_arg_int(kb, MC_GEMM_K));
    LLVMValueRef block_row =
        kb_add(kb, kb_mul(kb, kb_param(kb, PARAM_GROUP), block_rows), kb_lshr(kb, column, kb_i64(kb, 7)));
    LLVMValueRef index = kb_add(kb, kb_mul(kb, block_row, block_columns), run);
    LLVMValueRef s = kb_fmul(kb, kb_load(kb, kb->f32, kb_elem(kb, scales, index, 4), 4), factor);
    kb_if_end(kb, &present);
    return kb_splat(kb, kb_if_value(kb, &present, s, factor), kb->vl);
}

/* totals[r][c] = fma(sums[r][c], scale, totals[r][c]) over one panel's columns of every row */
static void
add_run(mc_kb *kb, const mc_gemm_spec *spec, LLVMValueRef sums, LLVMValueRef n_rows, LLVMValueRef stride,
        LLVMValueRef panel, LLVMValueRef stream, LLVMValueRef run)
{
    int vectors = kb->target.nr / kb->vl, half = vectors / 2;
    LLVMValueRef scale = load_scale(kb, spec, MC_GEMM_SCALE, panel, run);
    LLVMValueRef scale2 = mc_gemm_is_pair(spec) ? load_scale(kb, spec, MC_GEMM_SCALE2, panel, run) : scale;
    LLVMValueRef column = kb_mul(kb, stream, kb_i64(kb, (int64_t)kb->target.nr * 4));
    kb_loop row = kb_loop_begin(kb, kb_i64(kb, 0), n_rows, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef at = kb_add(kb, kb_mul(kb, row.i, stride), column);
    LLVMValueRef from = kb_gep(kb, sums, at), to = kb_gep(kb, kb_param(kb, PARAM_OUT), at);
    for (int j = 0; j < vectors; j++) {
        LLVMValueRef p = kb_gepi(kb, to, (int64_t)j * kb->vl * 4);
        LLVMValueRef sum = kb_load(kb, kb->vf, kb_gepi(kb, from, (int64_t)j * kb->vl * 4), 16);
        kb_store(kb, kb_fma(kb, sum, j < half ? scale : scale2, kb_load(kb, kb->vf, p, 16)), p, 16);
    }
    kb_loop_end(kb, &row);
}

static void
clear(mc_kb *kb, LLVMValueRef p, LLVMValueRef n_bytes)
{
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), n_bytes, kb_i64(kb, kb->vl * 4), 0, NULL);
    kb_store(kb, LLVMConstNull(kb->vf), kb_gep(kb, p, l.i), 16);
    kb_loop_end(kb, &l);
}

static void
emit_runs(mc_kb *kb, const mc_gemm_spec *spec, bool widened)
{
    int mr = kb->target.mr, nr = kb->target.nr;
    LLVMValueRef zero = kb_i64(kb, 0), one = kb_i64(kb, 1), k = kb_arg_int(kb, MC_GEMM_K);
    LLVMValueRef sums = kb_alloca(kb, (int64_t)mr * nr * 4, 64), shape = kb_param(kb, PARAM_SHAPE);
    LLVMValueRef one_row = kb_icmp(kb, LLVMIntEQ, shape, kb_i64(kb, mr));
    LLVMValueRef two_rows = kb_icmp(kb, LLVMIntEQ, shape, kb_i64(kb, mr + 1));
    LLVMValueRef n_rows = kb_select(kb, one_row, one, kb_select(kb, two_rows, kb_i64(kb, 2), kb_add(kb, shape, one)));
    LLVMValueRef panels = kb_select(kb, one_row, kb_i64(kb, MC_GEMM_STREAMS_1),
                                    kb_select(kb, two_rows, kb_i64(kb, MC_GEMM_STREAMS_2), one));
    LLVMValueRef stride = kb_mul(kb, panels, kb_i64(kb, (int64_t)nr * 4));
    clear(kb, kb_param(kb, PARAM_OUT), kb_mul(kb, n_rows, stride));
    /* Without scales there is nothing to cut k for. */
    LLVMValueRef scaled = kb_icmp(kb, LLVMIntNE, kb_arg_ptr(kb, MC_GEMM_SCALE), LLVMConstNull(kb->ptr));
    LLVMValueRef length = kb_select(kb, scaled, kb_i64(kb, MC_GEMM_RUN), k);
    kb_loop run = kb_loop_begin(kb, zero, k, length, 1, &zero);
    call_tile(kb, widened ? MOEC_F32 : spec->weight, widened, run.i, kb_min(kb, kb_add(kb, run.i, length), k), sums);
    kb_loop stream = kb_loop_begin(kb, zero, panels, one, 0, NULL);
    LLVMValueRef offset = kb_mul(kb, stream.i, kb_param(kb, PARAM_PANEL_STEP));
    LLVMValueRef panel = kb_add(kb, kb_param(kb, PARAM_PANEL), offset);
    add_run(kb, spec, sums, n_rows, stride, panel, stream.i, run.v[0]);
    kb_loop_end(kb, &stream);
    run.v[0] = kb_add(kb, run.v[0], one);
    kb_loop_end(kb, &run);
}

static LLVMValueRef
chain_function(mc_kb *kb, const mc_gemm_spec *spec, bool from_scratch)
{
    bool runs = spec->weight == MOEC_F8E4M3;
    const char *name = mc_strf(kb->arena, "chain_%s%s%s", moec_dtype_name(spec->weight),
                               runs && mc_gemm_is_pair(spec) ? "_pair" : "", from_scratch ? "_widened" : "")
                           .data;
    LLVMValueRef fn = kb_find(kb, name);
    if (fn) return fn;
    LLVMTypeRef params[N_PARAMS];
    for (int i = 0; i < N_PARAMS; i++) params[i] = kb->i64;
    params[PARAM_ARGS] = params[PARAM_ROWS] = params[PARAM_B] = params[PARAM_OUT] = kb->ptr;
    fn = kb_function_begin(kb, name, kb->t_void, params, N_PARAMS);
    if (runs)
        emit_runs(kb, spec, from_scratch);
    else
        call_tile(kb, spec->weight, false, kb_i64(kb, 0), kb_arg_int(kb, MC_GEMM_K), kb_param(kb, PARAM_OUT));
    kb_function_end(kb, NULL);
    return fn;
}

void
mc_gemm_chain(mc_kb *kb, const mc_gemm_spec *spec, bool from_scratch, const mc_gemm_tile_at *at)
{
    LLVMValueRef args[N_PARAMS] = {kb_param(kb, 0), at->shape, at->rows,  at->b,     at->b_stride,
                                   at->ahead,       at->out,   at->group, at->panel, at->panel_step};
    kb_call(kb, chain_function(kb, spec, from_scratch), args, N_PARAMS);
}
