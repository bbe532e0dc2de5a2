/* The kernels: which panels, rows and groups this thread computes, and in what order.
 *
 *     for each group with rows                 (dense kernels: one)
 *       one or two rows: several panels at once, each a stream through its own part of this thread's panels
 *       else for blocks of panels              so that a block of weights is read from memory once
 *         for blocks of 8 tiles of rows        so that their rows stay in L2
 *           for each panel, for each tile:     chain, finish
 *
 * Threads own columns: the split is even whatever the routing, sums into y need no atomics, and their order is fixed.
 * Only dense kernels with fewer panels than threads split rows as well. */
#include "codegen/cpu/gemm_parts.h"

enum { BLOCK_COLUMNS = 512, STREAM_AHEAD = 1024 };

typedef struct kernel {
    mc_kb *kb;
    const mc_gemm_spec *spec;
    LLVMValueRef k, n_panels, panel_bytes, x, x_stride, w, tokens;
    LLVMValueRef first_panel, last_panel;     /* this thread's, half open */
    LLVMValueRef rows, sums;                  /* on the stack: row pointers of a block; a tile's sums */
    LLVMValueRef group, first_row, n_rows, b; /* of the group at hand; b: its weights */
    LLVMValueRef finish;
} kernel;

bool
mc_gemm_has_weight(moec_dtype weight)
{
    return weight == MOEC_BF16 || weight == MOEC_F16 || weight == MOEC_F32 || weight == MOEC_F8E4M3;
}

size_t
mc_gemm_scratch_bytes(const mc_cpu_target *target, const mc_gemm_spec *spec, int64_t k)
{
    return spec->weight == MOEC_F8E4M3 ? (size_t)k * (size_t)target->nr * sizeof(float) : 0;
}

static LLVMValueRef
constant(const kernel *j, int64_t x)
{
    return kb_i64(j->kb, x);
}

/* Pointers to rows first .. first + count - 1 (counted over all groups) of x. */
static void
fill_rows(const kernel *j, LLVMValueRef first, LLVMValueRef count)
{
    mc_kb *kb = j->kb;
    kb_loop l = kb_loop_begin(kb, constant(j, 0), count, constant(j, 1), 0, NULL);
    LLVMValueRef row = kb_add(kb, first, l.i);
    if (j->tokens) row = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, j->tokens, row, 4), 4), kb->i64);
    kb_store(kb, kb_elem(kb, j->x, kb_mul(kb, row, j->x_stride), 4), kb_elem(kb, j->rows, l.i, 8), 8);
    kb_loop_end(kb, &l);
}

static void
call_finish(const kernel *j, LLVMValueRef sums, LLVMValueRef stride, LLVMValueRef n_rows, LLVMValueRef row,
            LLVMValueRef panel)
{
    LLVMValueRef args[7] = {kb_param(j->kb, 0), sums, stride, n_rows, row, panel, j->group};
    kb_call(j->kb, j->finish, args, 7);
}

/* One or two rows: this thread's panels in `streams` equal parts, read side by side. Returns the first panel left over.
 */
static LLVMValueRef
emit_streams(const kernel *j)
{
    mc_kb *kb = j->kb;
    LLVMValueRef one = constant(j, 1), zero = constant(j, 0), two_rows;
    kb_if few = kb_if_begin(kb, kb_icmp(kb, LLVMIntSLE, j->n_rows, constant(j, 2)));
    two_rows = kb_icmp(kb, LLVMIntEQ, j->n_rows, constant(j, 2));
    LLVMValueRef streams = kb_select(kb, two_rows, constant(j, MC_GEMM_STREAMS_2), constant(j, MC_GEMM_STREAMS_1));
    LLVMValueRef shape = kb_add(kb, j->n_rows, constant(j, kb->target.mr - 1));
    LLVMValueRef step = kb_udiv(kb, kb_sub(kb, j->last_panel, j->first_panel), streams);
    LLVMValueRef panel_sums = constant(j, (int64_t)kb->target.nr * 4);
    fill_rows(j, j->first_row, j->n_rows);
    kb_loop l = kb_loop_begin(kb, zero, step, one, 0, NULL);
    LLVMValueRef panel = kb_add(kb, j->first_panel, l.i);
    mc_gemm_tile_at at = {.shape = shape,
                          .rows = j->rows,
                          .b = kb_gep(kb, j->b, kb_mul(kb, panel, j->panel_bytes)),
                          .b_stride = kb_mul(kb, step, j->panel_bytes),
                          .ahead = constant(j, STREAM_AHEAD),
                          .out = j->sums,
                          .group = j->group,
                          .panel = panel,
                          .panel_step = step};
    mc_gemm_chain(kb, j->spec, false, &at);
    kb_loop s = kb_loop_begin(kb, zero, streams, one, 0, NULL);
    call_finish(j, kb_gep(kb, j->sums, kb_mul(kb, s.i, panel_sums)), kb_mul(kb, streams, panel_sums), j->n_rows,
                j->first_row, kb_add(kb, panel, kb_mul(kb, s.i, step)));
    kb_loop_end(kb, &s);
    kb_loop_end(kb, &l);
    LLVMValueRef done = kb_add(kb, j->first_panel, kb_mul(kb, step, streams));
    kb_if_end(kb, &few);
    return kb_if_value(kb, &few, done, j->first_panel);
}

typedef struct block {                                   /* panels of one block against tiles of one block */
    LLVMValueRef panel_end, tile_begin, tile_end, first; /* first: the first tile's first row, within the group */
    LLVMValueRef n_tiles, each, more; /* rows of a tile: each, and one more for the first `more` tiles */
} block;

static void
emit_tile(const kernel *j, const block *c, LLVMValueRef panel, LLVMValueRef t, LLVMValueRef widened)
{
    mc_kb *kb = j->kb;
    LLVMValueRef extra = kb_zext(kb, kb_icmp(kb, LLVMIntSLT, t, c->more), kb->i64);
    LLVMValueRef row = kb_add(kb, kb_mul(kb, t, c->each), kb_min(kb, t, c->more));
    LLVMValueRef n_rows = kb_add(kb, c->each, extra);
    /* A single tile waits for its own panel. With more of them the second tile, whose panel is in cache by now, fetches
     * the next panel. */
    LLVMValueRef single = kb_icmp(kb, LLVMIntEQ, c->n_tiles, constant(j, 1));
    LLVMValueRef second = kb_icmp(kb, LLVMIntEQ, kb_sub(kb, t, c->tile_begin), constant(j, 1));
    LLVMValueRef has_next = kb_icmp(kb, LLVMIntSLT, kb_add(kb, panel, constant(j, 1)), j->last_panel);
    LLVMValueRef next = kb_select(kb, kb_and(kb, second, has_next), j->panel_bytes, constant(j, 0));
    LLVMValueRef b = kb_gep(kb, j->b, kb_mul(kb, panel, j->panel_bytes));
    mc_gemm_tile_at at = {.shape = kb_sub(kb, n_rows, constant(j, 1)),
                          .rows = kb_elem(kb, j->rows, kb_sub(kb, row, c->first), 8),
                          .b = b,
                          .b_stride = constant(j, 0),
                          .ahead = kb_select(kb, single, constant(j, STREAM_AHEAD), next),
                          .out = j->sums,
                          .group = j->group,
                          .panel = panel,
                          .panel_step = constant(j, 0)};
    if (widened) {
        kb_if use = kb_if_begin(kb, widened);
        mc_gemm_tile_at from_scratch = at;
        from_scratch.b = kb_scratch(kb);
        from_scratch.ahead = constant(j, 0);
        mc_gemm_chain(kb, j->spec, true, &from_scratch);
        kb_else(kb, &use);
        mc_gemm_chain(kb, j->spec, false, &at);
        kb_if_end(kb, &use);
    } else {
        mc_gemm_chain(kb, j->spec, false, &at);
    }
    call_finish(j, j->sums, constant(j, (int64_t)kb->target.nr * 4), n_rows, kb_add(kb, j->first_row, row), panel);
}

/* FP8 panels that many rows will use are widened once, into scratch. Returns the condition. */
static LLVMValueRef
widen_panel(const kernel *j, const block *c, LLVMValueRef panel)
{
    mc_kb *kb = j->kb;
    LLVMValueRef many = kb_icmp(kb, LLVMIntSGT, c->n_tiles, constant(j, 2));
    LLVMValueRef widen = mc_gemm_widen_panel(kb);
    kb_if use = kb_if_begin(kb, many);
    LLVMValueRef b = kb_gep(kb, j->b, kb_mul(kb, panel, j->panel_bytes));
    LLVMValueRef args[3] = {j->k, b, kb_scratch(kb)};
    kb_call(kb, widen, args, 3);
    kb_if_end(kb, &use);
    return many;
}

/* The group's rows against panels from `from` on. */
static void
emit_blocks(const kernel *j, LLVMValueRef from)
{
    mc_kb *kb = j->kb;
    int mr = kb->target.mr;
    LLVMValueRef one = constant(j, 1), block_panels = constant(j, BLOCK_COLUMNS / kb->target.nr);
    block c;
    c.n_tiles = kb_udiv(kb, kb_add(kb, j->n_rows, constant(j, mr - 1)), constant(j, mr));
    c.each = kb_udiv(kb, j->n_rows, c.n_tiles);
    c.more = kb_urem(kb, j->n_rows, c.n_tiles);
    kb_loop panels = kb_loop_begin(kb, from, j->last_panel, block_panels, 0, NULL);
    c.panel_end = kb_min(kb, kb_add(kb, panels.i, block_panels), j->last_panel);
    kb_loop tiles = kb_loop_begin(kb, constant(j, 0), c.n_tiles, constant(j, MC_GEMM_BLOCK_TILES), 0, NULL);
    c.tile_begin = tiles.i;
    c.tile_end = kb_min(kb, kb_add(kb, tiles.i, constant(j, MC_GEMM_BLOCK_TILES)), c.n_tiles);
    c.first = kb_add(kb, kb_mul(kb, c.tile_begin, c.each), kb_min(kb, c.tile_begin, c.more));
    LLVMValueRef after = kb_add(kb, kb_mul(kb, c.tile_end, c.each), kb_min(kb, c.tile_end, c.more));
    fill_rows(j, kb_add(kb, j->first_row, c.first), kb_sub(kb, after, c.first));
    kb_loop panel = kb_loop_begin(kb, panels.i, c.panel_end, one, 0, NULL);
    LLVMValueRef widened = j->spec->weight == MOEC_F8E4M3 ? widen_panel(j, &c, panel.i) : NULL;
    kb_loop t = kb_loop_begin(kb, c.tile_begin, c.tile_end, one, 0, NULL);
    emit_tile(j, &c, panel.i, t.i, widened);
    kb_loop_end(kb, &t);
    kb_loop_end(kb, &panel);
    kb_loop_end(kb, &tiles);
    kb_loop_end(kb, &panels);
}

static void
emit_group(const kernel *j)
{
    mc_kb *kb = j->kb;
    kb_if any = kb_if_begin(kb, kb_icmp(kb, LLVMIntSGT, j->n_rows, constant(j, 0)));
    emit_blocks(j, emit_streams(j));
    kb_if_end(kb, &any);
}

static void
load_arguments(kernel *j)
{
    mc_kb *kb = j->kb;
    int nr = kb->target.nr, columns = mc_gemm_columns(kb, j->spec);
    LLVMValueRef n = kb_arg_int(kb, MC_GEMM_N);
    j->finish = mc_gemm_finish(kb, j->spec);
    j->rows = kb_alloca(kb, (int64_t)kb->target.mr * MC_GEMM_BLOCK_TILES * 8, 8);
    j->sums = kb_alloca(kb, (int64_t)kb->target.mr * nr * 4, 64);
    j->k = kb_arg_int(kb, MC_GEMM_K);
    j->n_panels = kb_udiv(kb, kb_add(kb, n, constant(j, columns - 1)), constant(j, columns));
    j->panel_bytes = kb_mul(kb, j->k, constant(j, (int64_t)moec_dtype_bytes(j->spec->weight) * nr));
    j->x = kb_arg_ptr(kb, MC_GEMM_X);
    j->x_stride = kb_arg_int(kb, MC_GEMM_X_STRIDE);
    j->w = kb_arg_ptr(kb, MC_GEMM_W);
    j->tokens = j->spec->kind == MC_GEMM_MOE_UP ? kb_arg_ptr(kb, MC_GEMM_TOKENS) : NULL;
}

/* Threads form a grid of column parts and, when there are threads to spare, row parts. */
static void
emit_dense(kernel *j)
{
    mc_kb *kb = j->kb;
    LLVMValueRef one = constant(j, 1), thread = kb_thread(kb), n_threads = kb_n_threads(kb), begin, end;
    LLVMValueRef columns = kb_max(kb, kb_min(kb, n_threads, j->n_panels), one);
    LLVMValueRef row_parts = kb_udiv(kb, n_threads, columns), row_part = kb_udiv(kb, thread, columns);
    kb_if busy = kb_if_begin(kb, kb_icmp(kb, LLVMIntSLT, row_part, row_parts));
    kb_split_part(kb, j->n_panels, one, kb_urem(kb, thread, columns), columns, &j->first_panel, &j->last_panel);
    kb_split_part(kb, kb_arg_int(kb, MC_GEMM_ROWS), constant(j, kb->target.mr), row_part, row_parts, &begin, &end);
    j->group = constant(j, 0);
    j->first_row = begin;
    j->n_rows = kb_sub(kb, end, begin);
    j->b = j->w;
    emit_group(j);
    kb_if_end(kb, &busy);
}

/* y[.., columns of this thread] = 0 */
static void
clear_columns(const kernel *j)
{
    mc_kb *kb = j->kb;
    LLVMValueRef y = kb_arg_ptr(kb, MC_GEMM_Y), stride = kb_arg_int(kb, MC_GEMM_Y_STRIDE);
    LLVMValueRef nr = constant(j, kb->target.nr);
    LLVMValueRef begin = kb_mul(kb, j->first_panel, nr);
    LLVMValueRef end = kb_min(kb, kb_mul(kb, j->last_panel, nr), kb_arg_int(kb, MC_GEMM_N));
    kb_loop row = kb_loop_begin(kb, constant(j, 0), kb_arg_int(kb, MC_GEMM_Y_ROWS), constant(j, 1), 0, NULL);
    LLVMValueRef p = kb_elem(kb, y, kb_mul(kb, row.i, stride), 4);
    for (kb_vloop l = kb_vloop_begin(kb, kb_min(kb, begin, end), end, 0, NULL); kb_vloop_next(kb, &l);)
        kb_store_masked(kb, LLVMConstNull(kb->vf), kb_elem(kb, p, l.i, 4), 4, l.mask);
    kb_loop_end(kb, &row);
}

static void
emit_groups(kernel *j)
{
    mc_kb *kb = j->kb;
    LLVMValueRef one = constant(j, 1), offsets = kb_arg_ptr(kb, MC_GEMM_OFFSETS);
    LLVMValueRef group_bytes = kb_mul(kb, j->n_panels, j->panel_bytes);
    kb_split(kb, j->n_panels, 1, &j->first_panel, &j->last_panel);
    if (j->spec->kind == MC_GEMM_MOE_DOWN) clear_columns(j);
    kb_loop g = kb_loop_begin(kb, constant(j, 0), kb_arg_int(kb, MC_GEMM_ROWS), one, 0, NULL);
    LLVMValueRef at = kb_elem(kb, offsets, g.i, 4);
    LLVMValueRef end = kb_convert(kb, kb_load(kb, kb->i32, kb_gepi(kb, at, 4), 4), kb->i64);
    j->group = g.i;
    j->first_row = kb_convert(kb, kb_load(kb, kb->i32, at, 4), kb->i64);
    j->n_rows = kb_sub(kb, end, j->first_row);
    j->b = kb_gep(kb, j->w, kb_mul(kb, g.i, group_bytes));
    emit_group(j);
    kb_loop_end(kb, &g);
}

const char *
mc_gemm_kernel(mc_kb *kb, const mc_gemm_spec *spec)
{
    static const char *const KINDS[] = {"linear", "gated", "moe_up", "grouped", "moe_down"};
    bool pair = mc_gemm_is_pair(spec);
    mc_str name = mc_strf(kb->arena, "%s_%s%s%s", KINDS[spec->kind], moec_dtype_name(spec->weight), pair ? "_" : "",
                          pair ? mc_act_name(spec->act) : "");
    if (mc_map_has(&kb->kernels, name)) return name.data;
    kernel j = {.kb = kb, .spec = spec};
    const char *own = kb_kernel_begin(kb, name.data);
    load_arguments(&j);
    if (spec->kind == MC_GEMM_LINEAR || spec->kind == MC_GEMM_GATED)
        emit_dense(&j);
    else
        emit_groups(&j);
    kb_kernel_end(kb);
    return own;
}
