/* head_linear: a small matrix for each head, read where it lies among the rows of one stored matrix [H * n, K]. The one
 * idea: memory is walked along K in both directions. Transposed, a vector holds neighbouring results, each of them one
 * chain over the head's rows; otherwise it holds neighbouring terms of one result, 16 chains whatever the vector width.
 * So one packed copy serves both, and the number of rows of x or of threads changes no bit.
 *
 * ptr: x, w, scale, y   i: rows of x over the heads, H, n, begin, width = end - begin */
#include "codegen/cpu/gemm.h"
#include "codegen/cpu/rows.h"
#include "codegen/cpu/select.h"
#include "runtime/base/dtype.h"

enum { BLOCK_VECTORS = 8, TILE_ROWS = 4, TILE_VECTORS = 2, TILE_OUTPUTS = 4, CHAINS = 16, SCALE_SHIFT = 7 };
enum { P_DTYPE, P_TRANSPOSED, P_SCALED, P_K };

typedef struct heads {
    moec_dtype dtype;
    bool scaled;
    int64_t k, item; /* columns of w; bytes of one element */
    LLVMValueRef x, w, scale, y, rows, H, n, begin, width;
    LLVMValueRef head, first_row, column; /* of the task at work; column: transposed only */
} heads;

static heads
load_arguments(mc_kb *kb, const mc_plan_kernel *k)
{
    heads h = {.dtype = (moec_dtype)k->p[P_DTYPE], .scaled = k->p[P_SCALED], .k = k->p[P_K]};
    h.item = (int64_t)moec_dtype_bytes(h.dtype);
    h.x = kb_arg_ptr(kb, 0);
    h.w = kb_arg_ptr(kb, 1);
    if (h.scaled) h.scale = kb_arg_ptr(kb, 2);
    h.y = kb_arg_ptr(kb, 3);
    h.rows = kb_arg_int(kb, 0);
    h.H = kb_arg_int(kb, 1);
    h.n = kb_arg_int(kb, 2);
    h.begin = kb_arg_int(kb, 3);
    h.width = kb_arg_int(kb, 4);
    return h;
}

static void
begin_head(mc_kb *kb, heads *h, LLVMValueRef head)
{
    h->head = head;
    h->first_row = kb_add(kb, kb_mul(kb, head, h->n), h->begin);
}

/* Elements column.. of a row of w, with their block's scale: a vector never crosses a block. */
static LLVMValueRef
weights_at(mc_kb *kb, const heads *h, LLVMValueRef row, LLVMValueRef column, LLVMValueRef mask)
{
    LLVMValueRef at = kb_add(kb, kb_mul(kb, row, kb_i64(kb, h->k)), column);
    LLVMValueRef w = kb_load_f32(kb, h->dtype, kb_elem(kb, h->w, at, h->item), kb->vl, mask);
    if (!h->scaled) return w;
    LLVMValueRef shift = kb_i64(kb, SCALE_SHIFT), blocks = kb_i64(kb, (h->k + 127) >> SCALE_SHIFT);
    LLVMValueRef block = kb_add(kb, kb_mul(kb, kb_lshr(kb, row, shift), blocks), kb_lshr(kb, column, shift));
    return kb_fmul(kb, w, kb_splat(kb, kb_load(kb, kb->f32, kb_elem(kb, h->scale, block, 4), 4), kb->vl));
}

/* The first `count` lanes; NULL: all of them. */
static LLVMValueRef
first_lanes(mc_kb *kb, int64_t count)
{
    if (count >= kb->vl) return NULL;
    LLVMValueRef n = kb_splat(kb, kb_i32(kb, (int32_t)count), kb->vl);
    return kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), n);
}

/* Where the head's part of row r begins, in elements, when a head has `width` of them. */
static LLVMValueRef
part_of(mc_kb *kb, const heads *h, LLVMValueRef r, LLVMValueRef width)
{
    return kb_mul(kb, kb_add(kb, kb_mul(kb, r, h->H), h->head), width);
}

/* ---- transposed -------------------------------------------------------------------------------------------------- */

/* A few rows of x times a few vectors of columns; `left`: columns from the first one to the end of the block. */
static void
tile(mc_kb *kb, const heads *h, LLVMValueRef r, int n_rows, int first_vector, int n_vectors, int64_t left)
{
    LLVMValueRef acc[TILE_ROWS * BLOCK_VECTORS], x[TILE_ROWS], column[BLOCK_VECTORS], mask[BLOCK_VECTORS];
    int n_acc = n_rows * n_vectors;
    for (int i = 0; i < n_acc; i++) acc[i] = kb_const(kb->vf, 0);
    for (int u = 0; u < n_rows; u++) {
        LLVMValueRef row = kb_add(kb, r, kb_i64(kb, u));
        x[u] = kb_elem(kb, h->x, part_of(kb, h, row, h->width), 4);
    }
    for (int v = 0; v < n_vectors; v++) {
        column[v] = kb_add(kb, h->column, kb_i64(kb, (int64_t)(first_vector + v) * kb->vl));
        mask[v] = first_lanes(kb, left - (int64_t)(first_vector + v) * kb->vl);
    }
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), h->width, kb_i64(kb, 1), n_acc, acc);
    LLVMValueRef w[BLOCK_VECTORS], row = kb_add(kb, h->first_row, l.i);
    for (int v = 0; v < n_vectors; v++) w[v] = weights_at(kb, h, row, column[v], mask[v]);
    for (int u = 0; u < n_rows; u++) {
        LLVMValueRef e = kb_splat(kb, kb_load(kb, kb->f32, kb_elem(kb, x[u], l.i, 4), 4), kb->vl);
        for (int v = 0; v < n_vectors; v++) l.v[u * n_vectors + v] = kb_fma(kb, e, w[v], l.v[u * n_vectors + v]);
    }
    kb_loop_end(kb, &l);
    for (int u = 0; u < n_rows; u++) {
        LLVMValueRef y = part_of(kb, h, kb_add(kb, r, kb_i64(kb, u)), kb_i64(kb, h->k));
        for (int v = 0; v < n_vectors; v++) {
            LLVMValueRef to = kb_elem(kb, h->y, kb_add(kb, y, column[v]), 4);
            kb_store_f32(kb, MOEC_F32, l.v[u * n_vectors + v], to, mask[v]);
        }
    }
}

/* All rows of x times one block of columns, of which there are `left`. */
static void
block_of_columns(mc_kb *kb, const heads *h, int64_t left)
{
    int n_vectors = (int)((left + kb->vl - 1) / kb->vl);
    LLVMValueRef whole = kb_and(kb, h->rows, kb_i64(kb, -TILE_ROWS));
    kb_loop many = kb_loop_begin(kb, kb_i64(kb, 0), whole, kb_i64(kb, TILE_ROWS), 0, NULL);
    for (int v = 0; v < n_vectors; v += TILE_VECTORS) {
        tile(kb, h, many.i, TILE_ROWS, v, n_vectors - v < TILE_VECTORS ? n_vectors - v : TILE_VECTORS, left);
    }
    kb_loop_end(kb, &many);
    kb_loop one = kb_loop_begin(kb, whole, h->rows, kb_i64(kb, 1), 0, NULL);
    tile(kb, h, one.i, 1, 0, n_vectors, left);
    kb_loop_end(kb, &one);
}

static void
emit_transposed(mc_kb *kb, heads *h)
{
    int64_t size = (int64_t)BLOCK_VECTORS * kb->vl, full = h->k / size, last = h->k % size;
    LLVMValueRef blocks = kb_i64(kb, full + (last != 0));
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, h->H, blocks));
    LLVMValueRef block = kb_urem(kb, l.i, blocks);
    begin_head(kb, h, kb_udiv(kb, l.i, blocks));
    h->column = kb_mul(kb, block, kb_i64(kb, size));
    kb_if c = kb_if_begin(kb, kb_icmp(kb, LLVMIntSLT, block, kb_i64(kb, full)));
    if (full) block_of_columns(kb, h, size);
    kb_else(kb, &c);
    if (last) block_of_columns(kb, h, last);
    kb_if_end(kb, &c);
    mc_rows_end(kb, &l);
}

/* ---- as stored --------------------------------------------------------------------------------------------------- */

/* The terms k.. of several outputs join their chains; `left`: terms to the end. */
static void
add_terms(mc_kb *kb, const heads *h, LLVMValueRef x, const LLVMValueRef *rows, LLVMValueRef k, int64_t left,
          LLVMValueRef *acc)
{
    int n_acc = CHAINS / kb->vl;
    for (int v = 0; v < n_acc && left > (int64_t)v * kb->vl; v++) {
        LLVMValueRef i = kb_add(kb, k, kb_i64(kb, (int64_t)v * kb->vl));
        LLVMValueRef mask = first_lanes(kb, left - (int64_t)v * kb->vl);
        LLVMValueRef e = kb_load_f32(kb, MOEC_F32, kb_elem(kb, x, i, 4), kb->vl, mask);
        for (int u = 0; u < TILE_OUTPUTS; u++) {
            LLVMValueRef *sum = &acc[u * n_acc + v];
            *sum = kb_keep(kb, mask, kb_fma(kb, weights_at(kb, h, rows[u], i, mask), e, *sum), *sum);
        }
    }
}

static void
emit_stored(mc_kb *kb, heads *h)
{
    int n_acc = CHAINS / kb->vl;
    LLVMValueRef step = kb_i64(kb, TILE_OUTPUTS), last = kb_sub(kb, h->width, kb_i64(kb, 1));
    LLVMValueRef groups = kb_udiv(kb, kb_add(kb, last, step), step), rows[TILE_OUTPUTS], out[TILE_OUTPUTS];
    kb_loop l = mc_rows_begin(kb, kb_mul(kb, h->H, groups));
    begin_head(kb, h, kb_udiv(kb, l.i, groups));
    for (int u = 0; u < TILE_OUTPUTS; u++) { /* outputs past the end: the last one again */
        out[u] = kb_add(kb, kb_mul(kb, kb_urem(kb, l.i, groups), step), kb_i64(kb, u));
        out[u] = kb_min(kb, out[u], last);
        rows[u] = kb_add(kb, h->first_row, out[u]);
    }
    kb_loop r = kb_loop_begin(kb, kb_i64(kb, 0), h->rows, kb_i64(kb, 1), 0, NULL);
    LLVMValueRef x = kb_elem(kb, h->x, part_of(kb, h, r.i, kb_i64(kb, h->k)), 4), acc[TILE_OUTPUTS * CHAINS];
    for (int i = 0; i < TILE_OUTPUTS * n_acc; i++) acc[i] = kb_const(kb->vf, 0);
    int64_t whole = h->k / CHAINS * CHAINS;
    kb_loop k = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, CHAINS), TILE_OUTPUTS * n_acc, acc);
    add_terms(kb, h, x, rows, k.i, CHAINS, k.v);
    kb_loop_end(kb, &k);
    add_terms(kb, h, x, rows, kb_i64(kb, whole), h->k - whole, k.v);
    LLVMValueRef y = part_of(kb, h, r.i, h->width);
    for (int u = 0; u < TILE_OUTPUTS; u++) {
        kb_store(kb, kb_reduce_add(kb, &k.v[u * n_acc], n_acc), kb_elem(kb, h->y, kb_add(kb, y, out[u]), 4), 4);
    }
    kb_loop_end(kb, &r);
    mc_rows_end(kb, &l);
}

static void
emit_head_linear(mc_kb *kb, const mc_plan_kernel *k)
{
    kb_kernel_begin(kb, k->name.data);
    heads h = load_arguments(kb, k);
    (k->p[P_TRANSPOSED] ? emit_transposed : emit_stored)(kb, &h);
    kb_kernel_end(kb);
}

void
mc_cpu_select_head_linear(mc_plan *p, const mc_op *op)
{
    const mc_value *x = mc_operand(op, 0), *w = mc_operand(op, 1), *scale = mc_operand(op, 2);
    bool stored = w->def && w->def->opcode == MC_OP_PACKED && mc_str_is(mc_attr_str(w->def, "layout"), "rows");
    if (!stored || !mc_gemm_has_weight(w->type->dtype) || x->type->dtype != MOEC_F32) {
        mc_plan_refuse(p, "it takes f32 and a weight of the model, packed as rows, in bf16, f16, f32 or f8e4m3");
        return;
    }
    mc_dim n_heads = x->type->dims[x->type->rank - 2];
    bool transposed = mc_attr_bool(op, "transposed");
    int64_t begin = mc_attr_int(op, "begin");
    int64_t params[4] = {w->type->dtype, transposed, scale != NULL, mc_plan_need_const(p, w->type->dims[1], "a row")};
    mc_plan_launch(p, mc_plan_kernel_get(p, emit_head_linear, params, 4, "heads_%s%s%s_%lld",
                                         moec_dtype_name(w->type->dtype), transposed ? "_t" : "",
                                         scale ? "_scaled" : "", (long long)params[P_K]));
    mc_plan_ptr(p, x);
    mc_plan_ptr(p, w);
    mc_plan_ptr(p, scale);
    mc_plan_ptr(p, mc_result(op, 0));
    mc_plan_int(p, mc_plan_product(p, x->type, 0, x->type->rank - 2));
    mc_plan_int(p, n_heads);
    mc_plan_const(p, mc_plan_need_const(p, w->type->dims[0], "the rows of a weight") /
                         mc_plan_need_const(p, n_heads, "the number of heads"));
    mc_plan_const(p, begin);
    mc_plan_const(p, mc_attr_int(op, "end") - begin);
}
