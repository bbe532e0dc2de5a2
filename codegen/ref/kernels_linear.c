/* Matrix products. One element is one chain of fused multiply-adds over ascending k; with FP8 scales, one chain for
 * each run of 128, then fma(run, scale, total). This order is part of the definition: backends reproduce it bit for
 * bit. */
#include "codegen/ref/num.h"

enum { SCALE_BLOCK = 128 };

bool
mc_ref_EMBED(mc_ref_op *k)
{
    const mc_ref_tensor *ids = k->in[0], *table = k->in[1];
    int64_t width = mc_ref_last(table);
    for (int64_t t = 0; t < ids->n; t++) {
        int64_t id = get_id(ids, t);
        if (id < 0 || id >= table->dims[0])
            return mc_ref_fail(k, MC_E0306, "id %lld at %lld is outside 0..%lld", (long long)id, (long long)t,
                               (long long)table->dims[0] - 1);
        for (int64_t d = 0; d < width; d++) put(&k->out[0], t * width + d, get(table, id * width + d));
    }
    return true;
}

/* Rows first..first + n_out - 1 of w, with what belongs to them; bias and scale may be NULL. */
typedef struct matrix {
    const mc_ref_tensor *w, *bias, *scale;
    int64_t first, n_out, n_in;
    mc_ref_tensor slices[3]; /* of stacked operands */
} matrix;

/* The matrix of expert e out of stacked operands; e = -1: they are not stacked. */
static void
matrix_of(matrix *m, const mc_ref_tensor *w, const mc_ref_tensor *bias, const mc_ref_tensor *scale, int64_t e)
{
    const mc_ref_tensor *part[3] = {w, bias, scale};
    *m = (matrix){0};
    for (int i = 0; i < 3; i++) {
        if (e < 0 || !part[i]) continue;
        m->slices[i] = mc_ref_slice0(part[i], e);
        part[i] = &m->slices[i];
    }
    m->w = part[0];
    m->bias = part[1];
    m->scale = part[2];
    m->n_out = m->w->dims[0];
    m->n_in = m->w->dims[1];
}

static float
chain_f32(const float *x, const float *w, int64_t n)
{
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum = fmaf(x[i], w[i], sum);
    return sum;
}

static double
chain_f64(const double *x, const double *w, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum = fma(x[i], w[i], sum);
    return sum;
}

/* Elements begin..begin+n-1 in the precision of the run, from element `at` of the result on. */
static void
widen(const mc_ref_op *k, const mc_ref_tensor *t, int64_t begin, int64_t n, void *wide, int64_t at)
{
    for (int64_t i = 0; i < n; i++) {
        if (k->f64)
            ((double *)wide)[at + i] = get(t, begin + i);
        else
            ((float *)wide)[at + i] = (float)get(t, begin + i);
    }
}

static double
chain(const mc_ref_op *k, const void *x, int64_t x_at, const void *w, int64_t w_at, int64_t n)
{
    if (k->f64) return chain_f64((const double *)x + x_at, (const double *)w + w_at, n);
    return (double)chain_f32((const float *)x + x_at, (const float *)w + w_at, n);
}

static double
dot(const mc_ref_op *k, const matrix *m, int64_t o, const void *x, int64_t x_at, const void *w)
{
    if (!m->scale) return chain(k, x, x_at, w, 0, m->n_in);
    double total = 0;
    for (int64_t begin = 0; begin < m->n_in; begin += SCALE_BLOCK) {
        int64_t n = m->n_in - begin < SCALE_BLOCK ? m->n_in - begin : SCALE_BLOCK;
        int64_t block = o / SCALE_BLOCK * mc_ref_last(m->scale) + begin / SCALE_BLOCK;
        total = num_fma(k, chain(k, x, x_at + begin, w, begin, n), get(m->scale, block), total);
    }
    return total;
}

/* The products of n rows of x, starting at `first` or those in `rows`, with the matrix: [n][n_out]. A row of the matrix
 * is widened once for all rows of x. */
static double *
multiply(const mc_ref_op *k, const matrix *m, const mc_ref_tensor *x, int64_t first, const int64_t *rows, int64_t n)
{
    size_t item = k->f64 ? sizeof(double) : sizeof(float);
    double *y = MC_NEW_N(k->arena, double, n * m->n_out);
    void *wide = mc_arena_alloc(k->arena, item * (size_t)(n * m->n_in)),
         *w = mc_arena_alloc(k->arena, item * (size_t)m->n_in);
    if (n == 0) return y;
    for (int64_t r = 0; r < n; r++) widen(k, x, (rows ? rows[r] : first + r) * m->n_in, m->n_in, wide, r * m->n_in);
    for (int64_t o = 0; o < m->n_out; o++) {
        widen(k, m->w, (m->first + o) * m->n_in, m->n_in, w, 0);
        for (int64_t r = 0; r < n; r++) {
            double sum = dot(k, m, o, wide, r * m->n_in, w);
            y[r * m->n_out + o] = m->bias ? num_add(k, sum, get(m->bias, o)) : sum;
        }
    }
    return y;
}

bool
mc_ref_LINEAR(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *residual = operand(k, 4);
    mc_ref_tensor *y = &k->out[0];
    matrix m;
    matrix_of(&m, k->in[1], operand(k, 2), operand(k, 3), -1);
    const double *product = multiply(k, &m, x, 0, NULL, mc_ref_rows(x));
    for (int64_t i = 0; i < y->n; i++) put(y, i, residual ? num_add(k, get(residual, i), product[i]) : product[i]);
    return true;
}

/* An element of a head's matrix, its block's scale applied. */
static double
scaled(const mc_ref_op *k, int64_t row, int64_t column)
{
    const mc_ref_tensor *w = k->in[1], *scale = operand(k, 2);
    double e = get(w, row * mc_ref_last(w) + column);
    return scale ? num_mul(k, e, get(scale, row / SCALE_BLOCK * mc_ref_last(scale) + column / SCALE_BLOCK)) : e;
}

/* The product of a row of a head's matrix with x, from x_at on. */
static double
head_dot(const mc_ref_op *k, int64_t row, int64_t x_at)
{
    enum { CHAINS = 16 };
    double sum[CHAINS] = {0};
    for (int64_t i = 0; i < mc_ref_last(k->in[1]); i++)
        sum[i % CHAINS] = num_fma(k, get(k->in[0], x_at + i), scaled(k, row, i), sum[i % CHAINS]);
    for (int half = CHAINS / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sum[i] = num_add(k, sum[i], sum[i + half]);
    return sum[0];
}

static double
head_dot_transposed(const mc_ref_op *k, int64_t first_row, int64_t column, int64_t x_at)
{
    double sum = 0;
    for (int64_t i = 0; i < mc_ref_last(k->in[0]); i++)
        sum = num_fma(k, get(k->in[0], x_at + i), scaled(k, first_row + i, column), sum);
    return sum;
}

bool
mc_ref_HEAD_LINEAR(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = k->in[1];
    mc_ref_tensor *y = &k->out[0];
    int64_t heads = x->dims[x->rank - 2], begin = mc_attr_int(k->op, "begin");
    bool transposed = mc_attr_bool(k->op, "transposed");
    for (int64_t r = 0; r < mc_ref_rows(x); r++) {
        int64_t first_row = r % heads * (w->dims[0] / heads) + begin, x_at = r * mc_ref_last(x);
        for (int64_t o = 0; o < mc_ref_last(y); o++)
            put(y, r * mc_ref_last(y) + o,
                transposed ? head_dot_transposed(k, first_row, o, x_at) : head_dot(k, first_row + o, x_at));
    }
    return true;
}

/* Operands gate and up of op, starting at operand w: w_gate, w_up; biases and scales from operand `extra` on. Both may
 * be one packed pair, which holds gate above up. */
static void
gate_and_up(const mc_ref_op *k, int w, int extra, int64_t e, matrix *gate, matrix *up)
{
    matrix_of(gate, k->in[w], operand(k, extra), operand(k, extra + 2), e);
    matrix_of(up, k->in[w + 1], operand(k, extra + 1), operand(k, extra + 3), e);
    const mc_value *v = mc_operand(k->op, w);
    bool pair = v == mc_operand(k->op, w + 1) && v->def && v->def->opcode == MC_OP_PACKED;
    if (!pair || !mc_attr_str(v->def, "path2").len) return;
    gate->n_out /= 2;
    up->n_out /= 2;
    up->first = gate->n_out;
}

/* Rows y_first.. of the result = act(gate) * up of n rows of x (the first n, or those in `rows`). */
static void
gated(const mc_ref_op *k, const matrix *gate, const matrix *up, const int64_t *rows, int64_t n, int64_t y_first)
{
    mc_opcode act = mc_opcode_find(mc_attr_str(k->op, "act"));
    const double *g = multiply(k, gate, k->in[0], 0, rows, n), *u = multiply(k, up, k->in[0], 0, rows, n);
    for (int64_t i = 0; i < n * gate->n_out; i++)
        put(&k->out[0], y_first * gate->n_out + i, num_mul(k, mc_ref_activate(k, act, g[i]), u[i]));
}

bool
mc_ref_GATED_LINEAR(mc_ref_op *k)
{
    matrix gate, up;
    gate_and_up(k, 1, 3, -1, &gate, &up);
    gated(k, &gate, &up, NULL, mc_ref_rows(k->in[0]), 0);
    return true;
}

/* Rows that belong to no expert have no defined content. */
void
mc_ref_poison_from(mc_ref_tensor *y, int64_t row)
{
    for (int64_t i = row * mc_ref_last(y); i < y->n; i++) put(y, i, NAN);
}

bool
mc_ref_check_offsets(mc_ref_op *k, const mc_ref_tensor *offsets, int64_t experts, int64_t n)
{
    bool ok = experts >= 0 && offsets->n == experts + 1 && get_id(offsets, 0) == 0;
    for (int64_t e = 0; ok && e < experts; e++) ok = get_id(offsets, e) <= get_id(offsets, e + 1);
    if (ok && get_id(offsets, experts) <= n) return true;
    return mc_ref_fail(k, MC_E0306, "offsets do not ascend from 0 to at most %lld", (long long)n);
}

int64_t *
mc_ref_row_list(mc_ref_op *k, const mc_ref_tensor *rows, int64_t begin, int64_t n, int64_t limit)
{
    int64_t *list = MC_NEW_N(k->arena, int64_t, n);
    for (int64_t i = 0; i < n; i++) {
        list[i] = rows ? get_id(rows, begin + i) : begin + i;
        if (list[i] >= 0 && list[i] < limit) continue;
        mc_ref_fail(k, MC_E0306, "row %lld of %lld", (long long)list[i], (long long)limit);
        return NULL;
    }
    return list;
}

bool
mc_ref_GROUPED_MATMUL(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = k->in[1], *offsets = k->in[2], *rows = operand(k, 5);
    if (!mc_ref_check_offsets(k, offsets, w->dims[0], k->out[0].dims[0])) return false;
    for (int64_t e = 0; e < w->dims[0]; e++) {
        matrix m;
        int64_t begin = get_id(offsets, e), n = get_id(offsets, e + 1) - begin;
        const int64_t *from = mc_ref_row_list(k, rows, begin, n, mc_ref_rows(x));
        if (!from) return false;
        matrix_of(&m, w, operand(k, 3), operand(k, 4), e);
        const double *product = multiply(k, &m, x, 0, from, n);
        for (int64_t i = 0; i < n * m.n_out; i++) put(&k->out[0], begin * m.n_out + i, product[i]);
    }
    mc_ref_poison_from(&k->out[0], get_id(offsets, w->dims[0]));
    return true;
}

bool
mc_ref_MOE_FFN_UP(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = k->in[1], *offsets = k->in[3], *tokens = k->in[4];
    if (!mc_ref_check_offsets(k, offsets, w->dims[0], tokens->n)) return false;
    for (int64_t e = 0; e < w->dims[0]; e++) {
        matrix gate, up;
        int64_t begin = get_id(offsets, e), n = get_id(offsets, e + 1) - begin;
        const int64_t *rows = mc_ref_row_list(k, tokens, begin, n, mc_ref_rows(x));
        if (!rows) return false;
        gate_and_up(k, 1, 5, e, &gate, &up);
        gated(k, &gate, &up, rows, n, begin);
    }
    mc_ref_poison_from(&k->out[0], get_id(offsets, w->dims[0]));
    return true;
}

/* sums[to] += gate * row, in the order in which rows come. */
static void
combine(const mc_ref_op *k, double *sums, int64_t to, double gate, const double *row)
{
    int64_t width = mc_ref_last(&k->out[0]);
    for (int64_t d = 0; d < width; d++) sums[to * width + d] = num_fma(k, gate, row[d], sums[to * width + d]);
}

/* A narrow result is rounded once, at the end. */
static bool
give_sums(mc_ref_op *k, const double *sums)
{
    for (int64_t i = 0; i < k->out[0].n; i++) put(&k->out[0], i, sums[i]);
    return true;
}

bool
mc_ref_MOE_FFN_DOWN(mc_ref_op *k)
{
    const mc_ref_tensor *h = k->in[0], *w = k->in[1], *offsets = k->in[2], *gates = operand(k, 4);
    if (!mc_ref_check_offsets(k, offsets, w->dims[0], mc_ref_rows(h))) return false;
    double *sums = MC_NEW_N(k->arena, double, k->out[0].n);
    for (int64_t e = 0; e < w->dims[0]; e++) {
        matrix m;
        int64_t begin = get_id(offsets, e), n = get_id(offsets, e + 1) - begin;
        const int64_t *to = mc_ref_row_list(k, k->in[3], begin, n, mc_ref_rows(&k->out[0]));
        if (!to) return false;
        matrix_of(&m, w, operand(k, 5), operand(k, 6), e);
        const double *product = multiply(k, &m, h, begin, NULL, n);
        for (int64_t r = 0; r < n; r++)
            combine(k, sums, to[r], gates ? get(gates, begin + r) : 1, product + r * m.n_out);
    }
    return give_sums(k, sums);
}

bool
mc_ref_MOE_PERMUTE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *offsets = k->in[2], *gates = operand(k, 3);
    if (!mc_ref_check_offsets(k, offsets, offsets->n - 1, k->in[1]->n)) return false;
    int64_t width = mc_ref_last(x), used = get_id(offsets, offsets->n - 1);
    const int64_t *from = mc_ref_row_list(k, k->in[1], 0, used, mc_ref_rows(x));
    if (!from) return false;
    for (int64_t i = 0; i < used * width; i++) {
        double v = get(x, from[i / width] * width + i % width);
        put(&k->out[0], i, gates ? num_mul(k, v, get(gates, i / width)) : v);
    }
    mc_ref_poison_from(&k->out[0], used);
    return true;
}

bool
mc_ref_MOE_UNPERMUTE(mc_ref_op *k)
{
    const mc_ref_tensor *y = k->in[0], *offsets = k->in[1], *gates = operand(k, 3);
    if (!mc_ref_check_offsets(k, offsets, offsets->n - 1, k->in[2]->n)) return false;
    int64_t width = mc_ref_last(y), used = get_id(offsets, offsets->n - 1);
    const int64_t *to = mc_ref_row_list(k, k->in[2], 0, used, mc_ref_rows(&k->out[0]));
    if (!to) return false;
    double *row = MC_NEW_N(k->arena, double, width), *sums = MC_NEW_N(k->arena, double, k->out[0].n);
    for (int64_t r = 0; r < used; r++) {
        for (int64_t d = 0; d < width; d++) row[d] = get(y, r * width + d);
        combine(k, sums, to[r], gates ? get(gates, r) : 1, row);
    }
    return give_sums(k, sums);
}
