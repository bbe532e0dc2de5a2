/* Derivatives of matrix products and of table look-ups. As in forward, an element is one chain of fused multiply-adds
 * in ascending order of what it sums over, and that order is part of the definition. */
#include "codegen/ref/num.h"

/* A matrix [n_out, n_in] at element `at` of w. */
typedef struct matrix {
    const mc_ref_tensor *w;
    int64_t at, n_out, n_in;
} matrix;

/* Row `to` of the result = [residual +] M^T times row `from` of dy. */
static void
row_dx(mc_ref_op *k, const matrix *m, const mc_ref_tensor *residual, int64_t from, int64_t to)
{
    for (int64_t i = 0; i < m->n_in; i++) {
        double sum = 0;
        for (int64_t o = 0; o < m->n_out; o++)
            sum = num_fma(k, get(k->in[0], from * m->n_out + o), get(m->w, m->at + o * m->n_in + i), sum);
        int64_t at = to * m->n_in + i;
        put(&k->out[0], at, residual ? num_add(k, get(residual, at), sum) : sum);
    }
}

bool
mc_ref_LINEAR_DX(mc_ref_op *k)
{
    const mc_ref_tensor *w = k->in[1];
    matrix m = {w, 0, w->dims[0], w->dims[1]};
    for (int64_t t = 0; t < mc_ref_rows(k->in[0]); t++) row_dx(k, &m, operand(k, 2), t, t);
    return true;
}

bool
mc_ref_GROUPED_DX(mc_ref_op *k)
{
    const mc_ref_tensor *w = k->in[1], *offsets = k->in[2];
    if (!mc_ref_check_offsets(k, offsets, w->dims[0], k->out[0].dims[0])) return false;
    for (int64_t e = 0; e < w->dims[0]; e++) {
        matrix m = {w, e * w->dims[1] * w->dims[2], w->dims[1], w->dims[2]};
        int64_t begin = get_id(offsets, e), n = get_id(offsets, e + 1) - begin;
        const int64_t *from = mc_ref_row_list(k, operand(k, 3), begin, n, mc_ref_rows(k->in[0]));
        if (!from) return false;
        for (int64_t r = 0; r < n; r++) row_dx(k, &m, operand(k, 4), from[r], begin + r);
    }
    mc_ref_poison_from(&k->out[0], get_id(offsets, w->dims[0]));
    return true;
}

/* The matrix at element `at` of the result += sum of dy[dy_rows[r]] (gates[first + r] * x[x_rows[r]])^T over r < n. */
static void
add_outer(mc_ref_op *k, int64_t at, const int64_t *dy_rows, const int64_t *x_rows, const mc_ref_tensor *gates,
          int64_t first, int64_t n)
{
    const mc_ref_tensor *dy = k->in[0], *x = k->in[1];
    int64_t n_out = mc_ref_last(dy), n_in = mc_ref_last(x);
    for (int64_t i = 0; i < n_out * n_in; i++) {
        double sum = 0;
        for (int64_t r = 0; r < n; r++) {
            double v = get(x, x_rows[r] * n_in + i % n_in);
            if (gates) v = num_mul(k, get(gates, first + r), v);
            sum = num_fma(k, get(dy, dy_rows[r] * n_out + i / n_in), v, sum);
        }
        put(&k->out[0], at + i, sum);
    }
}

bool
mc_ref_LINEAR_DW(mc_ref_op *k)
{
    int64_t n = mc_ref_rows(k->in[0]);
    const int64_t *all = mc_ref_row_list(k, NULL, 0, n, n);
    if (!all) return false;
    add_outer(k, 0, all, all, NULL, 0, n);
    return true;
}

bool
mc_ref_GROUPED_DW(mc_ref_op *k)
{
    const mc_ref_tensor *dy = k->in[0], *x = k->in[1], *offsets = k->in[2];
    mc_ref_tensor *dw = &k->out[0];
    const mc_ref_tensor *dy_rows = operand(k, 3), *x_rows = operand(k, 4);
    if (!mc_ref_check_offsets(k, offsets, dw->dims[0], dy_rows ? dy_rows->n : mc_ref_rows(dy))) return false;
    for (int64_t e = 0; e < dw->dims[0]; e++) {
        int64_t begin = get_id(offsets, e), n = get_id(offsets, e + 1) - begin;
        const int64_t *from = mc_ref_row_list(k, dy_rows, begin, n, mc_ref_rows(dy));
        const int64_t *x_from = mc_ref_row_list(k, x_rows, begin, n, mc_ref_rows(x));
        if (!from || !x_from) return false;
        add_outer(k, e * dw->dims[1] * dw->dims[2], from, x_from, operand(k, 5), begin, n);
    }
    return true;
}

bool
mc_ref_EMBED_DW(mc_ref_op *k)
{
    const mc_ref_tensor *ids = k->in[0], *dy = k->in[1];
    mc_ref_tensor *dtable = &k->out[0];
    int64_t width = mc_ref_last(dtable);
    for (int64_t t = 0; t < ids->n; t++) {
        int64_t id = get_id(ids, t);
        if (id < 0 || id >= dtable->dims[0])
            return mc_ref_fail(k, MC_E0306, "id %lld at %lld is outside 0..%lld", (long long)id, (long long)t,
                               (long long)dtable->dims[0] - 1);
        for (int64_t i = 0; i < width; i++)
            put(dtable, id * width + i, num_add(k, get(dtable, id * width + i), get(dy, t * width + i)));
    }
    return true;
}

bool
mc_ref_ROUTE_SCATTER(mc_ref_op *k)
{
    const mc_ref_tensor *w = k->in[0], *ids = k->in[1];
    mc_ref_tensor *y = &k->out[0];
    int64_t experts = mc_ref_last(y);
    for (int64_t a = 0; a < ids->n; a++) {
        int64_t e = get_id(ids, a), at = a / mc_ref_last(ids) * experts + e;
        if (e >= 0 && e < experts) put(y, at, num_add(k, get(y, at), get(w, a)));
    }
    return true;
}

bool
mc_ref_ROUTE_MASK(mc_ref_op *k)
{
    int64_t from = mc_attr_int(k->op, "from");
    for (int64_t a = 0; a < k->out[0].n; a++) put(&k->out[0], a, get_id(k->in[1], a) >= from ? get(k->in[0], a) : 0);
    return true;
}
