/* Packing: a block of a matrix as micro panels [kc][width], which a tile reads from end to end. Where k runs along the
 * source's rows, squares of vl x vl are transposed in registers; where it runs across them, rows are copied in pieces,
 * in any order that the caller's list says (which is how gathering costs nothing). */
#include "codegen/cpu/train_gemm_parts.h"

#include <assert.h>

enum { MAX_LANES = 16 };

/* ---- k along the rows ----------------------------------------------------------------------------------------- */

/* Within every 128-bit lane, four vectors as a 4 x 4 square: two instructions a vector. */
static void
transpose_quads(mc_kb *kb, LLVMValueRef *v)
{
    int low[MAX_LANES], high[MAX_LANES], even[MAX_LANES], odd[MAX_LANES], vl = kb->vl;
    for (int i = 0; i < vl; i++) {
        int lane = i & ~3, other = i % 2 ? vl : 0;
        low[i] = lane + i % 4 / 2 + other;
        high[i] = low[i] + 2;
        even[i] = lane + i % 2 + (i % 4 / 2 ? vl : 0);
        odd[i] = even[i] + 2;
    }
    LLVMValueRef ab_low = kb_shuffle(kb, v[0], v[1], low, vl), ab_high = kb_shuffle(kb, v[0], v[1], high, vl);
    LLVMValueRef cd_low = kb_shuffle(kb, v[2], v[3], low, vl), cd_high = kb_shuffle(kb, v[2], v[3], high, vl);
    v[0] = kb_shuffle(kb, ab_low, cd_low, even, vl);
    v[1] = kb_shuffle(kb, ab_low, cd_low, odd, vl);
    v[2] = kb_shuffle(kb, ab_high, cd_high, even, vl);
    v[3] = kb_shuffle(kb, ab_high, cd_high, odd, vl);
}

/* Squares of 2 x 2 blocks of `block` lanes: x keeps its even blocks and gets y's in the odd places, y the others. */
static void
exchange(mc_kb *kb, LLVMValueRef *x, LLVMValueRef *y, int block)
{
    int even[MAX_LANES], odd[MAX_LANES], vl = kb->vl;
    for (int i = 0; i < vl; i++) {
        bool second = i & block;
        even[i] = second ? vl + i - block : i;
        odd[i] = second ? vl + i : i + block;
    }
    LLVMValueRef from = *x;
    *x = kb_shuffle(kb, from, *y, even, vl);
    *y = kb_shuffle(kb, from, *y, odd, vl);
}

/* v[i] lane j <-> v[j] lane i */
static void
transpose(mc_kb *kb, LLVMValueRef *v)
{
    for (int i = 0; i < kb->vl; i += 4) transpose_quads(kb, v + i);
    for (int block = 4; block < kb->vl; block *= 2)
        for (int i = 0; i < kb->vl; i++)
            if (!(i & block)) exchange(kb, &v[i], &v[i + block], block);
}

static void
transpose_square(mc_kb *kb, const LLVMValueRef *rows, LLVMValueRef k, LLVMValueRef mask, LLVMValueRef out)
{
    LLVMValueRef v[MAX_LANES], to = kb_elem(kb, out, k, (int64_t)kb->target.nr * 4);
    for (int i = 0; i < kb->vl; i++) v[i] = kb_load_masked(kb, kb->vf, kb_elem(kb, rows[i], k, 4), 4, mask);
    transpose(kb, v);
    for (int i = 0; i < kb->vl; i++) kb_store(kb, v[i], kb_gepi(kb, to, (int64_t)i * kb->target.nr * 4), 16);
}

LLVMValueRef
mc_train_transpose(mc_kb *kb)
{
    LLVMValueRef fn = kb_find(kb, "train_transpose"), rows[MAX_LANES];
    if (fn) return fn;
    assert(kb->vl <= MAX_LANES);
    LLVMTypeRef params[5] = {kb->ptr, kb->i64, kb->i64, kb->i64, kb->ptr};
    fn = kb_function_begin(kb, "train_transpose", kb->t_void, params, 5);
    LLVMValueRef one = kb_i64(kb, 1), zero = kb_i64(kb, 0), last = kb_sub(kb, kb_param(kb, 2), one);
    kb_loop part = kb_loop_begin(kb, zero, kb_i64(kb, kb->target.nr), kb_i64(kb, kb->vl), 0, NULL);
    for (int i = 0; i < kb->vl; i++) {
        LLVMValueRef row = kb_min(kb, kb_add(kb, part.i, kb_i64(kb, i)), last);
        rows[i] = kb_gep(kb, kb_param(kb, 0), kb_mul(kb, row, kb_param(kb, 1)));
    }
    LLVMValueRef out = kb_elem(kb, kb_param(kb, 4), part.i, 4);
    for (kb_vloop l = kb_vloop_begin(kb, zero, kb_param(kb, 3), 0, NULL); kb_vloop_next(kb, &l);)
        transpose_square(kb, rows, l.i, l.mask, out);
    kb_loop_end(kb, &part);
    kb_function_end(kb, NULL);
    return fn;
}

/* ---- k across the rows ---------------------------------------------------------------------------------------- */

enum { FROM, ROW_BYTES, ROWS, FIRST, GATES, N_COLUMNS, KC, PANELS, PANEL_BYTES, N_PARAMS };

typedef struct gather {
    mc_kb *kb;
    int width, lanes, vectors; /* of a panel; lanes * vectors may be more than width: the next step writes over it */
    LLVMValueRef row, gate, to;
} gather;

static void
copy_piece(const gather *g, LLVMValueRef panel, bool masked)
{
    mc_kb *kb = g->kb;
    LLVMTypeRef type = kb_vector(kb->f32, g->lanes);
    LLVMValueRef column = kb_mul(kb, panel, kb_i64(kb, g->width)), mask = NULL;
    LLVMValueRef from = kb_elem(kb, g->row, column, 4),
                 to = kb_gep(kb, g->to, kb_mul(kb, panel, kb_param(kb, PANEL_BYTES)));
    LLVMValueRef left = kb_convert(kb, kb_sub(kb, kb_param(kb, N_COLUMNS), column), kb->i32);
    for (int j = 0; j < g->vectors; j++) {
        LLVMValueRef limit = kb_splat(kb, kb_sub(kb, left, kb_i32(kb, j * g->lanes)), g->lanes);
        if (masked) mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, g->lanes), limit);
        LLVMValueRef v = kb_load_masked(kb, type, kb_gepi(kb, from, (int64_t)j * g->lanes * 4), 4, mask);
        if (g->gate) v = kb_fmul(kb, g->gate, v);
        kb_store(kb, v, kb_gepi(kb, to, (int64_t)j * g->lanes * 4), 4);
    }
}

static LLVMValueRef
load_gate(const gather *g, LLVMValueRef k)
{
    mc_kb *kb = g->kb;
    LLVMValueRef gates = kb_param(kb, GATES);
    kb_if c = kb_if_begin(kb, kb_icmp(kb, LLVMIntNE, gates, LLVMConstNull(kb->ptr)));
    LLVMValueRef gate = kb_load(kb, kb->f32, kb_elem(kb, gates, k, 4), 4);
    kb_if_end(kb, &c);
    return kb_splat(kb, kb_if_value(kb, &c, gate, kb_f32(kb, 1.0)), g->lanes);
}

static void
emit_gather(gather *g, bool gated)
{
    mc_kb *kb = g->kb;
    LLVMValueRef zero = kb_i64(kb, 0), one = kb_i64(kb, 1), n = kb_param(kb, N_COLUMNS), rows = kb_param(kb, ROWS);
    LLVMValueRef width = kb_i64(kb, g->width), span = kb_i64(kb, (int64_t)g->lanes * g->vectors);
    LLVMValueRef n_panels = kb_udiv(kb, kb_add(kb, n, kb_sub(kb, width, one)), width);
    LLVMValueRef whole =
        kb_udiv(kb, kb_add(kb, kb_max(kb, kb_sub(kb, n, span), kb_sub(kb, zero, width)), width), width);
    kb_loop k = kb_loop_begin(kb, zero, kb_param(kb, KC), one, 0, NULL);
    LLVMValueRef next = kb_add(kb, kb_param(kb, FIRST), k.i);
    kb_if listed = kb_if_begin(kb, kb_icmp(kb, LLVMIntNE, rows, LLVMConstNull(kb->ptr)));
    LLVMValueRef row = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, rows, k.i, 4), 4), kb->i64);
    kb_if_end(kb, &listed);
    row = kb_if_value(kb, &listed, row, next);
    g->row = kb_gep(kb, kb_param(kb, FROM), kb_mul(kb, row, kb_param(kb, ROW_BYTES)));
    g->to = kb_elem(kb, kb_param(kb, PANELS), k.i, (int64_t)g->width * 4);
    g->gate = gated ? load_gate(g, k.i) : NULL;
    kb_loop p = kb_loop_begin(kb, zero, whole, one, 0, NULL);
    copy_piece(g, p.i, false);
    kb_loop_end(kb, &p);
    kb_loop rest = kb_loop_begin(kb, whole, n_panels, one, 0, NULL);
    copy_piece(g, rest.i, true);
    kb_loop_end(kb, &rest);
    kb_loop_end(kb, &k);
}

static LLVMValueRef
gather_function(mc_kb *kb, const char *name, gather *g, bool gated)
{
    LLVMValueRef fn = kb_find(kb, name);
    if (fn) return fn;
    LLVMTypeRef params[N_PARAMS] = {kb->ptr, kb->i64, kb->ptr, kb->i64, kb->ptr, kb->i64, kb->i64, kb->ptr, kb->i64};
    fn = kb_function_begin(kb, name, kb->t_void, params, N_PARAMS);
    emit_gather(g, gated);
    kb_function_end(kb, NULL);
    return fn;
}

LLVMValueRef
mc_train_gather_b(mc_kb *kb)
{
    gather g = {.kb = kb, .width = kb->target.nr, .lanes = kb->vl, .vectors = kb->target.nr / kb->vl};
    return gather_function(kb, "train_gather_b", &g, true);
}

LLVMValueRef
mc_train_gather_a(mc_kb *kb)
{
    gather g = {.kb = kb, .width = kb->target.mr, .lanes = 8, .vectors = 1};
    assert(kb->target.mr <= 8);
    return gather_function(kb, "train_gather_a", &g, false);
}

/* ---- prefetching ---------------------------------------------------------------------------------------------- */

LLVMValueRef
mc_train_ahead(mc_kb *kb)
{
    LLVMValueRef fn = kb_find(kb, "train_ahead");
    if (fn) return fn;
    LLVMTypeRef params[5] = {kb->ptr, kb->i64, kb->i64, kb->i64, kb->i64};
    fn = kb_function_begin(kb, "train_ahead", kb->t_void, params, 5);
    LLVMValueRef zero = kb_i64(kb, 0), one = kb_i64(kb, 1);
    kb_loop row = kb_loop_begin(kb, kb_param(kb, 2), kb_param(kb, 3), one, 0, NULL);
    LLVMValueRef p = kb_gep(kb, kb_param(kb, 0), kb_mul(kb, row.i, kb_param(kb, 1)));
    kb_loop l = kb_loop_begin(kb, zero, kb_param(kb, 4), one, 0, NULL);
    LLVMValueRef args[4] = {kb_elem(kb, p, l.i, 64), kb_i32(kb, 0), kb_i32(kb, 2), kb_i32(kb, 1)}; /* into L2 */
    kb_intrinsic(kb, "llvm.prefetch", &kb->ptr, 1, args, 4);
    kb_loop_end(kb, &l);
    kb_loop_end(kb, &row);
    kb_function_end(kb, NULL);
    return fn;
}
