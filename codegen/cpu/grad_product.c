/* The one idea: a tile of rows x 2 vectors of sums in registers; each step of k loads the two vectors of b once and
 * broadcasts one element of a for each row. */
#include "codegen/cpu/grad_product.h"

enum { VECTORS = 2, MAX_ROWS = 12 };

int
mc_product_rows(const mc_kb *kb)
{
    return kb->target.n_registers >= 32 ? MAX_ROWS : 6;
}

static void
tile_loop(mc_kb *kb, const mc_product *p, int rows, int vectors, LLVMValueRef *acc)
{
    LLVMValueRef a = kb_param(kb, 0), b = kb_param(kb, 1), w[VECTORS];
    kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_param(kb, 4), kb_i64(kb, 1), rows * vectors, acc);
    LLVMValueRef at_a = kb_elem(kb, a, l.i, p->a_step), at_b = kb_elem(kb, b, l.i, p->b_step);
    for (int v = 0; v < vectors; v++) w[v] = kb_load(kb, kb->vf, kb_gepi(kb, at_b, (int64_t)v * kb->vl * 4), 4);
    for (int r = 0; r < rows; r++) {
        LLVMValueRef x = kb_splat(kb, kb_load(kb, kb->f32, kb_gepi(kb, at_a, r * p->a_row), 4), kb->vl);
        for (int v = 0; v < vectors; v++) l.v[r * vectors + v] = kb_fma(kb, x, w[v], l.v[r * vectors + v]);
    }
    kb_loop_end(kb, &l);
    for (int i = 0; i < rows * vectors; i++) acc[i] = l.v[i];
}

/* (a, b, out, out_row, k): a tile whose last vector has `last` columns. */
static LLVMValueRef
tile(mc_kb *kb, const mc_product *p, int rows, int vectors, int last)
{
    mc_str name = mc_strf(kb->arena, "product_%dx%d_%d_%lld_%lld_%lld%s", rows, vectors, last, (long long)p->a_row,
                          (long long)p->a_step, (long long)p->b_step, p->adds ? "_adds" : "");
    LLVMValueRef fn = kb_find(kb, name.data), acc[MAX_ROWS * VECTORS], mask = NULL;
    if (fn) return fn;
    LLVMTypeRef params[5] = {kb->ptr, kb->ptr, kb->ptr, kb->i64, kb->i64};
    fn = kb_function_begin(kb, name.data, kb->t_void, params, 5);
    if (last < kb->vl) {
        mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), kb_splat(kb, kb_i32(kb, last), kb->vl));
    }
    LLVMValueRef out = kb_param(kb, 2), out_row = kb_param(kb, 3);
    for (int i = 0; i < rows * vectors; i++) {
        LLVMValueRef row = kb_gep(kb, out, kb_mul(kb, out_row, kb_i64(kb, i / vectors)));
        LLVMValueRef at = kb_gepi(kb, row, (int64_t)(i % vectors) * kb->vl * 4);
        LLVMValueRef on = (i + 1) % vectors == 0 ? mask : NULL;
        acc[i] = p->adds ? kb_load_f32(kb, MOEC_F32, at, kb->vl, on) : kb_const(kb->vf, 0);
    }
    tile_loop(kb, p, rows, vectors, acc);
    for (int i = 0; i < rows * vectors; i++) {
        LLVMValueRef row = kb_gep(kb, out, kb_mul(kb, out_row, kb_i64(kb, i / vectors)));
        LLVMValueRef at = kb_gepi(kb, row, (int64_t)(i % vectors) * kb->vl * 4);
        kb_store_f32(kb, MOEC_F32, acc[i], at, (i + 1) % vectors == 0 ? mask : NULL);
    }
    kb_function_end(kb, NULL);
    return fn;
}

typedef struct operands {
    LLVMValueRef a, b, out, out_row, m, k;
} operands;

/* Rows begin..end-1 in tiles of `rows`. */
static void
some_rows(mc_kb *kb, const mc_product *p, const operands *o, LLVMValueRef begin, LLVMValueRef end, int rows,
          int vectors, int last)
{
    LLVMValueRef fn = tile(kb, p, rows, vectors, last);
    kb_loop l = kb_loop_begin(kb, begin, end, kb_i64(kb, rows), 0, NULL);
    LLVMValueRef out = kb_gep(kb, o->out, kb_mul(kb, l.i, o->out_row));
    LLVMValueRef args[5] = {kb_elem(kb, o->a, l.i, p->a_row), o->b, out, o->out_row, o->k};
    kb_call(kb, fn, args, 5);
    kb_loop_end(kb, &l);
}

static void
all_rows(mc_kb *kb, const mc_product *p, const operands *o, int vectors, int last)
{
    LLVMValueRef whole = kb_sub(kb, o->m, kb_urem(kb, o->m, kb_i64(kb, p->rows)));
    some_rows(kb, p, o, kb_i64(kb, 0), whole, p->rows, vectors, last);
    some_rows(kb, p, o, whole, o->m, 1, vectors, last);
}

void
mc_product_emit(mc_kb *kb, const mc_product *p, LLVMValueRef a, LLVMValueRef b, LLVMValueRef out, LLVMValueRef out_row,
                LLVMValueRef m, LLVMValueRef k)
{
    int64_t step = (int64_t)VECTORS * kb->vl, whole = p->columns / step * step, left = p->columns - whole;
    operands o = {a, b, out, out_row, m, k};
    if (whole) {
        kb_loop l = kb_loop_begin(kb, kb_i64(kb, 0), kb_i64(kb, whole), kb_i64(kb, step), 0, NULL);
        o.b = kb_elem(kb, b, l.i, 4);
        o.out = kb_elem(kb, out, l.i, 4);
        all_rows(kb, p, &o, VECTORS, kb->vl);
        kb_loop_end(kb, &l);
    }
    if (left) {
        int vectors = (int)((left + kb->vl - 1) / kb->vl);
        o.b = kb_gepi(kb, b, whole * 4);
        o.out = kb_gepi(kb, out, whole * 4);
        all_rows(kb, p, &o, vectors, (int)left - (vectors - 1) * kb->vl);
    }
}
