/* Sequence mixers that carry state. Each walks positions in order and holds what the next position needs, so a sequence
 * cut into steps anywhere gives the same bits. */
#include "codegen/ref/num.h"

#include <string.h>

/* The state of this op, zero before the first step, to be updated in place. NULL after a diagnostic. */
static mc_ref_tensor *
carry(mc_ref_op *k, const int64_t *dims, int rank)
{
    const mc_ref_tensor *kept = mc_ref_kept(k);
    mc_ref_tensor *next = mc_ref_keep(k, k->f64 ? MOEC_F64 : MOEC_F32, dims, rank);
    if (!next || !kept) return next;
    for (int d = 0; d < rank; d++)
        if (kept->dims[d] != dims[d]) {
            mc_ref_fail(k, MC_E0310, "the state is of %lld, not %lld, on axis %d", (long long)kept->dims[d],
                        (long long)dims[d], d);
            return NULL;
        }
    if (next->n) memcpy(next->data, kept->data, (size_t)next->n * moec_dtype_bytes(next->dtype));
    return next;
}

bool
mc_ref_CONV1D(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *w = k->in[1], *bias = operand(k, 2);
    int64_t B = x->dims[0], S = x->dims[1], d = x->dims[2], size = mc_ref_last(w), past;
    if (!mc_ref_positions(k, x, &past)) return false;
    int64_t before = size - 1;
    mc_ref_tensor *state = carry(k, (int64_t[]){B, before, d}, 3);
    if (!state) return false;
    for (int64_t b = 0; b < B; b++)
        for (int64_t c = 0; c < d; c++) {
            double *line = MC_NEW_N(k->arena, double, before + S); /* the inputs of channel c, old ones first */
            for (int64_t i = 0; i < before; i++) line[i] = get(state, (b * before + i) * d + c);
            for (int64_t s = 0; s < S; s++) line[before + s] = get(x, (b * S + s) * d + c);
            for (int64_t s = 0; s < S; s++) {
                double sum = 0;
                for (int64_t j = 0; j < size; j++) sum = num_fma(k, line[s + j], get(w, c * size + j), sum);
                put(&k->out[0], (b * S + s) * d + c, bias ? num_add(k, sum, get(bias, c)) : sum);
            }
            for (int64_t i = 0; i < before; i++) put(state, (b * before + i) * d + c, line[S + i]);
        }
    return true;
}

bool
mc_ref_SELECTIVE_SCAN(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *dt = k->in[1], *a = k->in[2], *bb = k->in[3], *cc = k->in[4];
    int64_t B = x->dims[0], S = x->dims[1], d = x->dims[2], n = mc_ref_last(a), past;
    if (!mc_ref_positions(k, x, &past)) return false;
    mc_ref_tensor *h = carry(k, (int64_t[]){B, d, n}, 3);
    if (!h) return false;
    for (int64_t row = 0; row < B * S; row++)
        for (int64_t c = 0; c < d; c++) {
            double step = get(dt, row * d + c), input = num_mul(k, step, get(x, row * d + c)), y = 0;
            for (int64_t i = 0; i < n; i++) {
                int64_t at = (row / S * d + c) * n + i;
                double decay = num_exp(k, num_mul(k, step, get(a, c * n + i)));
                double now = num_fma(k, decay, get(h, at), num_mul(k, input, get(bb, row * n + i)));
                put(h, at, now);
                y = num_fma(k, now, get(cc, row * n + i), y);
            }
            put(&k->out[0], row * d + c, y);
        }
    return true;
}

/* One position of one value head: M [dk, dv] of state, k and q [dk], v and y [dv]. */
typedef struct delta_step {
    int64_t m, qk, v; /* where M, the key head and the value head begin */
    int64_t dk, dv;
    double decay, beta, scale;
} delta_step;

static void
delta(const mc_ref_op *k, const delta_step *p, mc_ref_tensor *M)
{
    const mc_ref_tensor *q = k->in[0], *key = k->in[1], *v = k->in[2];
    for (int64_t j = 0; j < p->dv; j++) {
        double seen = 0, y = 0;
        for (int64_t i = 0; i < p->dk; i++) {
            int64_t at = p->m + i * p->dv + j;
            put(M, at, num_mul(k, get(M, at), p->decay));
            seen = num_fma(k, get(key, p->qk + i), get(M, at), seen);
        }
        double change = num_mul(k, p->beta, num_sub(k, get(v, p->v + j), seen));
        for (int64_t i = 0; i < p->dk; i++) {
            int64_t at = p->m + i * p->dv + j;
            put(M, at, num_fma(k, get(key, p->qk + i), change, get(M, at)));
            y = num_fma(k, num_mul(k, p->scale, get(q, p->qk + i)), get(M, at), y);
        }
        put(&k->out[0], p->v + j, y);
    }
}

bool
mc_ref_DELTA_SCAN(mc_ref_op *k)
{
    const mc_ref_tensor *q = k->in[0], *v = k->in[2], *g = k->in[3], *beta = k->in[4];
    int64_t B = q->dims[0], S = q->dims[1], HK = q->dims[2], H = v->dims[2], past;
    delta_step p = {.dk = q->dims[3], .dv = v->dims[3], .scale = num_round(k, mc_attr_float(k->op, "scale"))};
    if (!mc_ref_positions(k, q, &past)) return false;
    mc_ref_tensor *M = carry(k, (int64_t[]){B, H, p.dk, p.dv}, 4);
    if (!M) return false;
    for (int64_t row = 0; row < B * S; row++)
        for (int64_t j = 0; j < H; j++) {
            p.decay = num_exp(k, get(g, row * H + j));
            p.beta = get(beta, row * H + j);
            p.m = (row / S * H + j) * p.dk * p.dv;
            p.qk = (row * HK + j / (H / HK)) * p.dk;
            p.v = (row * H + j) * p.dv;
            delta(k, &p, M);
        }
    return true;
}
