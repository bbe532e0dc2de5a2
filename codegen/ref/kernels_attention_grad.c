/* The derivative of attention, query by query. The shares p of a query are computed again as sdpa does:
 *
 *   dv[c] += p[c] dy;  ds[c] = p[c] (dy . v[c] - sum_c p[c] (dy . v[c]));  through cap * tanh(z / cap) and the scale:
 *   dq += ds[c] k[c];  dk[c] += ds[c] q
 */
#include "codegen/ref/num.h"

typedef struct head { /* where the rows of one query head begin */
    int64_t q, dy, b, kv;
    int64_t C, KV, h, hv;
} head;

static int64_t
key_at(const head *a, int64_t c)
{
    return ((a->b * a->C + c) * a->KV + a->kv) * a->h;
}

static int64_t
value_at(const head *a, int64_t c)
{
    return ((a->b * a->C + c) * a->KV + a->kv) * a->hv;
}

static double
dot(const mc_ref_op *k, const mc_ref_tensor *a, int64_t a_at, const mc_ref_tensor *b, int64_t b_at, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum = num_fma(k, get(a, a_at + i), get(b, b_at + i), sum);
    return sum;
}

/* y += factor * x, n elements. */
static void
add_scaled(const mc_ref_op *k, mc_ref_tensor *y, int64_t y_at, double factor, const mc_ref_tensor *x, int64_t x_at,
           int64_t n)
{
    for (int64_t i = 0; i < n; i++) put(y, y_at + i, num_fma(k, factor, get(x, x_at + i), get(y, y_at + i)));
}

/* `logit` and p are scratch of C elements. */
static void
head_grad(mc_ref_op *k, const head *a, const bool *mark, double *logit, double *p)
{
    const mc_ref_tensor *q = k->in[0], *key = k->in[1], *v = k->in[2], *dy = k->in[3];
    double cap = num_round(k, mc_attr_float(k->op, "softcap")), scale = num_round(k, mc_attr_float(k->op, "scale"));
    double mean = 0;
    for (int64_t c = 0; c < a->C; c++)
        if (mark[c]) p[c] = logit[c] = mc_ref_attention_logit(k, a->q, key_at(a, c), a->h);
    mc_ref_masked_softmax(k, p, mark, a->C, NULL);
    for (int64_t c = 0; c < a->C; c++)
        if (mark[c]) mean = num_fma(k, p[c], dot(k, dy, a->dy, v, value_at(a, c), a->hv), mean);
    for (int64_t c = 0; c < a->C; c++) {
        if (!mark[c]) continue;
        double ds = num_mul(k, p[c], num_sub(k, dot(k, dy, a->dy, v, value_at(a, c), a->hv), mean));
        double t = cap != 0 ? num_div(k, logit[c], cap) : 0; /* tanh(z / cap) */
        ds = num_mul(k, num_mul(k, ds, num_sub(k, 1, num_mul(k, t, t))), scale);
        add_scaled(k, &k->out[0], a->q, ds, key, key_at(a, c), a->h);
        add_scaled(k, &k->out[1], key_at(a, c), ds, q, a->q, a->h);
        add_scaled(k, &k->out[2], value_at(a, c), p[c], dy, a->dy, a->hv);
    }
}

bool
mc_ref_SDPA_GRAD(mc_ref_op *k)
{
    const mc_ref_tensor *q = k->in[0], *key = k->in[1], *v = k->in[2];
    int64_t S = q->dims[1], H = q->dims[2];
    head a = {.C = key->dims[1], .KV = key->dims[2], .h = q->dims[3], .hv = v->dims[3]};
    bool *mark = MC_NEW_N(k->arena, bool, a.C);
    double *logit = MC_NEW_N(k->arena, double, a.C), *p = MC_NEW_N(k->arena, double, a.C);
    for (int64_t row = 0; row < q->dims[0] * S; row++) {
        if (!mc_ref_mark_keys(k, row / S, row % S, mark)) return false;
        for (int64_t j = 0; j < H; j++) {
            a.b = row / S;
            a.kv = j / (H / a.KV);
            a.q = (row * H + j) * a.h;
            a.dy = (row * H + j) * a.hv;
            head_grad(k, &a, mark, logit, p);
        }
    }
    return true;
}
