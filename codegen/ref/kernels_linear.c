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

mc_ref_matrix
mc_ref_matrix_of(const mc_ref_tensor *w, const mc_ref_tensor *bias, const mc_ref_tensor *scale, int64_t e,
                 mc_ref_tensor slices[3])
{
    const mc_ref_tensor *whole[3] = {w, bias, scale}, *part[3];
    for (int i = 0; i < 3; i++) {
        part[i] = whole[i];
        if (e < 0 || !whole[i]) continue;
        slices[i] = mc_ref_slice0(whole[i], e);
        part[i] = &slices[i];
    }
    return (mc_ref_matrix){part[0], part[1], part[2], 0, part[0]->dims[0], part[0]->dims[1]};
}

static double
dot(const mc_ref_op *k, const mc_ref_matrix *m, int64_t o, const double *x)
{
    int64_t row = (m->first + o) * m->n_in;
    double total = 0;
    if (!m->scale) {
        for (int64_t i = 0; i < m->n_in; i++) total = num_fma(k, x[i], get(m->w, row + i), total);
        return total;
    }
    for (int64_t begin = 0; begin < m->n_in; begin += SCALE_BLOCK) {
        double run = 0;
        for (int64_t i = begin; i < m->n_in && i < begin + SCALE_BLOCK; i++)
            run = num_fma(k, x[i], get(m->w, row + i), run);
        int64_t block = o / SCALE_BLOCK * mc_ref_last(m->scale) + begin / SCALE_BLOCK;
        total = num_fma(k, run, get(m->scale, block), total);
    }
    return total;
}

void
mc_ref_matvec(const mc_ref_op *k, const mc_ref_matrix *m, const mc_ref_tensor *x, int64_t x_row, double *y)
{
    double *row = MC_NEW_N(k->arena, double, m->n_in);
    for (int64_t i = 0; i < m->n_in; i++) row[i] = get(x, x_row * m->n_in + i);
    for (int64_t o = 0; o < m->n_out; o++) {
        y[o] = dot(k, m, o, row);
        if (m->bias) y[o] = num_add(k, y[o], get(m->bias, o));
    }
}

bool
mc_ref_LINEAR(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *residual = operand(k, 4);
    mc_ref_tensor *y = &k->out[0];
    mc_ref_matrix m = mc_ref_matrix_of(k->in[1], operand(k, 2), operand(k, 3), -1, NULL);
    double *row = MC_NEW_N(k->arena, double, m.n_out);
    for (int64_t t = 0; t < mc_ref_rows(x); t++) {
        mc_ref_matvec(k, &m, x, t, row);
        for (int64_t o = 0; o < m.n_out; o++) {
            int64_t at = t * m.n_out + o;
            put(y, at, residual ? num_add(k, get(residual, at), row[o]) : row[o]);
        }
    }
    return true;
}

/* Operands gate and up of op, starting at operand w: w_gate, w_up; biases and scales from operand `extra` on. Both may
 * be one packed pair, which holds gate above up. */
static void
gate_and_up(const mc_ref_op *k, int w, int extra, int64_t e, mc_ref_tensor slices[6], mc_ref_matrix *gate,
            mc_ref_matrix *up)
{
    const mc_ref_tensor *more[4];
    for (int i = 0; i < 4; i++) more[i] = operand(k, extra + i);
    *gate = mc_ref_matrix_of(k->in[w], more[0], more[2], e, slices);
    *up = mc_ref_matrix_of(k->in[w + 1], more[1], more[3], e, slices + 3);
    const mc_value *v = mc_operand(k->op, w);
    bool pair = v == mc_operand(k->op, w + 1) && v->def && v->def->opcode == MC_OP_PACKED;
    if (!pair || !mc_attr_str(v->def, "path2").len) return;
    gate->n_out /= 2;
    up->n_out /= 2;
    up->first = gate->n_out;
}

static void
gated_row(const mc_ref_op *k, const mc_ref_matrix *gate, const mc_ref_matrix *up, const mc_ref_tensor *x, int64_t x_row,
          mc_ref_tensor *y, int64_t y_row)
{
    mc_opcode act = mc_opcode_find(mc_attr_str(k->op, "act"));
    double *g = MC_NEW_N(k->arena, double, gate->n_out), *u = MC_NEW_N(k->arena, double, gate->n_out);
    mc_ref_matvec(k, gate, x, x_row, g);
    mc_ref_matvec(k, up, x, x_row, u);
    for (int64_t o = 0; o < gate->n_out; o++)
        put(y, y_row * gate->n_out + o, num_mul(k, mc_ref_activate(k, act, g[o]), u[o]));
}

bool
mc_ref_GATED_LINEAR(mc_ref_op *k)
{
    mc_ref_tensor slices[6];
    mc_ref_matrix gate, up;
    gate_and_up(k, 1, 3, -1, slices, &gate, &up);
    for (int64_t t = 0; t < mc_ref_rows(k->in[0]); t++) gated_row(k, &gate, &up, k->in[0], t, &k->out[0], t);
    return true;
}

/* Rows that belong to no expert have no defined content. */
static void
poison_from(mc_ref_tensor *y, int64_t row)
{
    for (int64_t i = row * mc_ref_last(y); i < y->n; i++) put(y, i, NAN);
}

/* offsets must ascend from 0 and stay within n rows. */
static bool
check_offsets(mc_ref_op *k, const mc_ref_tensor *offsets, int64_t experts, int64_t n)
{
    bool ok = experts >= 0 && offsets->n == experts + 1 && get_id(offsets, 0) == 0;
    for (int64_t e = 0; ok && e < experts; e++) ok = get_id(offsets, e) <= get_id(offsets, e + 1);
    if (ok && get_id(offsets, experts) <= n) return true;
    return mc_ref_fail(k, MC_E0306, "offsets do not ascend from 0 to at most %lld", (long long)n);
}

bool
mc_ref_GROUPED_MATMUL(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = k->in[1], *offsets = k->in[2];
    if (!check_offsets(k, offsets, w->dims[0], mc_ref_rows(x))) return false;
    double *row = MC_NEW_N(k->arena, double, w->dims[1]);
    for (int64_t e = 0; e < w->dims[0]; e++) {
        mc_ref_tensor slices[3];
        mc_ref_matrix m = mc_ref_matrix_of(w, operand(k, 3), operand(k, 4), e, slices);
        for (int64_t r = get_id(offsets, e); r < get_id(offsets, e + 1); r++) {
            mc_ref_matvec(k, &m, x, r, row);
            for (int64_t o = 0; o < m.n_out; o++) put(&k->out[0], r * m.n_out + o, row[o]);
        }
    }
    poison_from(&k->out[0], get_id(offsets, w->dims[0]));
    return true;
}

static bool
check_row(mc_ref_op *k, int64_t row, int64_t n)
{
    return (row >= 0 && row < n) || mc_ref_fail(k, MC_E0306, "row %lld of %lld", (long long)row, (long long)n);
}

bool
mc_ref_MOE_FFN_UP(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = k->in[1], *offsets = k->in[3], *tokens = k->in[4];
    if (!check_offsets(k, offsets, w->dims[0], tokens->n)) return false;
    for (int64_t e = 0; e < w->dims[0]; e++) {
        mc_ref_tensor slices[6];
        mc_ref_matrix gate, up;
        gate_and_up(k, 1, 5, e, slices, &gate, &up);
        for (int64_t r = get_id(offsets, e); r < get_id(offsets, e + 1); r++) {
            if (!check_row(k, get_id(tokens, r), mc_ref_rows(x))) return false;
            gated_row(k, &gate, &up, x, get_id(tokens, r), &k->out[0], r);
        }
    }
    poison_from(&k->out[0], get_id(offsets, w->dims[0]));
    return true;
}

/* y[rows[r]] += gate * row, in the order in which rows come. */
static void
combine(const mc_ref_op *k, mc_ref_tensor *y, int64_t to, double gate, const double *row)
{
    int64_t width = mc_ref_last(y);
    for (int64_t d = 0; d < width; d++) put(y, to * width + d, num_fma(k, gate, row[d], get(y, to * width + d)));
}

bool
mc_ref_MOE_FFN_DOWN(mc_ref_op *k)
{
    const mc_ref_tensor *h = k->in[0], *w = k->in[1], *offsets = k->in[2], *tokens = k->in[3];
    const mc_ref_tensor *gates = operand(k, 4);
    if (!check_offsets(k, offsets, w->dims[0], mc_ref_rows(h))) return false;
    double *row = MC_NEW_N(k->arena, double, w->dims[1]);
    for (int64_t e = 0; e < w->dims[0]; e++) {
        mc_ref_tensor slices[3];
        mc_ref_matrix m = mc_ref_matrix_of(w, operand(k, 5), operand(k, 6), e, slices);
        for (int64_t r = get_id(offsets, e); r < get_id(offsets, e + 1); r++) {
            int64_t t = get_id(tokens, r);
            if (!check_row(k, t, mc_ref_rows(&k->out[0]))) return false;
            mc_ref_matvec(k, &m, h, r, row);
            combine(k, &k->out[0], t, gates ? get(gates, r) : 1, row);
        }
    }
    return true;
}

bool
mc_ref_MOE_PERMUTE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *rows = k->in[1], *offsets = k->in[2], *gates = operand(k, 3);
    if (!check_offsets(k, offsets, offsets->n - 1, rows->n)) return false;
    int64_t width = mc_ref_last(x), used = get_id(offsets, offsets->n - 1);
    for (int64_t r = 0; r < used; r++) {
        int64_t from = get_id(rows, r);
        if (!check_row(k, from, mc_ref_rows(x))) return false;
        for (int64_t d = 0; d < width; d++) {
            double v = get(x, from * width + d);
            put(&k->out[0], r * width + d, gates ? num_mul(k, v, get(gates, r)) : v);
        }
    }
    poison_from(&k->out[0], used);
    return true;
}

bool
mc_ref_MOE_UNPERMUTE(mc_ref_op *k)
{
    const mc_ref_tensor *y = k->in[0], *offsets = k->in[1], *rows = k->in[2], *gates = operand(k, 3);
    if (!check_offsets(k, offsets, offsets->n - 1, rows->n)) return false;
    int64_t width = mc_ref_last(y), used = get_id(offsets, offsets->n - 1);
    double *row = MC_NEW_N(k->arena, double, width);
    for (int64_t r = 0; r < used; r++) {
        int64_t to = get_id(rows, r);
        if (!check_row(k, to, mc_ref_rows(&k->out[0]))) return false;
        for (int64_t d = 0; d < width; d++) row[d] = get(y, r * width + d);
        combine(k, &k->out[0], to, gates ? get(gates, r) : 1, row);
    }
    return true;
}
