/* Attention and positions. A query sees a set of keys; keys outside it are not computed at all, so a query's result is
 * the same bits whether its sequence came at once or token by token. */
#include "codegen/ref/num.h"

#include "ir/rope.h"

#include <string.h>

bool
mc_ref_ROPE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0]; /* [B, S, H, h] */
    int64_t past, S = x->dims[1], width = mc_ref_last(x), dims = mc_rope_dims(k->op);
    if (!mc_ref_positions(k, x, &past)) return false;
    bool adjacent = mc_attr_bool(k->op, "adjacent"), inverse = mc_attr_bool(k->op, "inverse");
    double factor, *inv_freq = MC_NEW_N(k->arena, double, dims / 2);
    mc_rope_frequencies(k->op, inv_freq, &factor);
    for (int64_t i = 0; i < x->n; i++) put(&k->out[0], i, get(x, i));
    int64_t heads = x->n ? x->n / (x->dims[0] * S * width) : 0;
    for (int64_t row = 0; row < x->dims[0] * S * heads; row++) {
        double position = (double)(past + row / heads % S);
        for (int64_t i = 0; i < dims / 2; i++) {
            int64_t first = row * width + (adjacent ? 2 * i : i), second = first + (adjacent ? 1 : dims / 2);
            double angle = num_mul(k, position, num_round(k, inv_freq[i]));
            double c = num_mul(k, num_cos(k, angle), num_round(k, factor));
            double s = num_mul(k, num_sin(k, angle), num_round(k, factor));
            double a = get(x, first), b = get(x, second);
            if (inverse) s = -s;
            put(&k->out[0], first, num_sub(k, num_mul(k, a, c), num_mul(k, b, s)));
            put(&k->out[0], second, num_add(k, num_mul(k, b, c), num_mul(k, a, s)));
        }
    }
    return true;
}

bool
mc_ref_POSITION(mc_ref_op *k)
{
    int64_t past;
    if (!mc_ref_positions(k, k->in[0], &past)) return false;
    for (int64_t i = 0; i < k->out[0].n; i++) put(&k->out[0], i, (double)(past + i % k->out[0].dims[1]));
    return true;
}

/* Axis 1 of `kept` [B, past, ...] and x [B, S, ...] joined into y [B, past + S, ...]. */
static void
join_positions(const mc_ref_tensor *kept, const mc_ref_tensor *x, mc_ref_tensor *y)
{
    size_t item = moec_dtype_bytes(y->dtype);
    for (int64_t b = 0; b < y->dims[0]; b++) {
        size_t old_bytes = kept ? (size_t)(kept->n / kept->dims[0]) * item : 0;
        size_t new_bytes = (size_t)(x->n / x->dims[0]) * item;
        char *to = (char *)y->data + (size_t)b * (old_bytes + new_bytes);
        if (old_bytes) memcpy(to, (const char *)kept->data + (size_t)b * old_bytes, old_bytes);
        if (new_bytes) memcpy(to + old_bytes, (const char *)x->data + (size_t)b * new_bytes, new_bytes);
    }
}

bool
mc_ref_CACHE(mc_ref_op *k)
{
    const mc_ref_tensor *x = k->in[0], *kept = mc_ref_kept(k);
    mc_ref_tensor *y = &k->out[0];
    int64_t past;
    if (!mc_ref_positions(k, x, &past)) return false;
    if (kept && kept->dims[0] != x->dims[0])
        return mc_ref_fail(k, MC_E0310, "the cache holds %lld sequences, not %lld", (long long)kept->dims[0],
                           (long long)x->dims[0]);
    if (y->dims[1] != past + x->dims[1] || (kept ? kept->dims[1] : 0) != past)
        return mc_ref_fail(k, MC_E0310, "the cache holds %lld positions where %lld are past",
                           kept ? (long long)kept->dims[1] : 0LL, (long long)past);
    mc_ref_tensor *next = mc_ref_keep(k, y->dtype, y->dims, y->rank);
    if (!next) return false;
    join_positions(kept, x, next);
    if (y->n) memcpy(y->data, next->data, (size_t)y->n * moec_dtype_bytes(y->dtype));
    return true;
}

/* What a query may see, apart from `select`. */
typedef struct visibility {
    bool causal;
    int64_t window, chunk;
} visibility;

static bool
visible(visibility v, int64_t query, int64_t key)
{
    if (v.causal && key > query) return false;
    if (v.window && key <= query - v.window) return false;
    return !v.chunk || key / v.chunk == query / v.chunk;
}

bool
mc_ref_mark_keys(mc_ref_op *k, int64_t b, int64_t s, bool *mark)
{
    const mc_ref_tensor *q = k->in[0], *select = operand(k, 4);
    int64_t S = q->dims[1], C = k->in[1]->dims[1], n = select ? mc_ref_last(select) : 0;
    visibility v = {mc_attr_bool(k->op, "causal"), mc_attr_int(k->op, "window"), mc_attr_int(k->op, "chunk")};
    for (int64_t c = 0; c < C; c++) mark[c] = !select;
    for (int64_t i = 0; i < n; i++) {
        int64_t c = get_id(select, (b * S + s) * n + i);
        if (c < -1 || c >= C) return mc_ref_fail(k, MC_E0306, "selected key %lld of %lld", (long long)c, (long long)C);
        if (c >= 0) mark[c] = true;
    }
    for (int64_t c = 0; c < C; c++) mark[c] = mark[c] && visible(v, C - S + s, c);
    return true;
}

double
mc_ref_attention_logit(const mc_ref_op *k, int64_t q_at, int64_t k_at, int64_t width)
{
    double sum = 0, cap = num_round(k, mc_attr_float(k->op, "softcap"));
    for (int64_t i = 0; i < width; i++) sum = num_fma(k, get(k->in[0], q_at + i), get(k->in[1], k_at + i), sum);
    sum = num_mul(k, sum, num_round(k, mc_attr_float(k->op, "scale")));
    return cap != 0 ? num_mul(k, cap, num_tanh(k, num_div(k, sum, cap))) : sum;
}

void
mc_ref_masked_softmax(const mc_ref_op *k, double *p, const bool *mark, int64_t C, const double *sink)
{
    double max = sink ? *sink : -INFINITY, sum = 0;
    for (int64_t c = 0; c < C; c++)
        if (mark[c]) max = num_max(p[c], max);
    for (int64_t c = 0; c < C; c++) {
        if (!mark[c]) continue;
        p[c] = num_exp(k, num_sub(k, p[c], max));
        sum = num_add(k, sum, p[c]);
    }
    if (sink) sum = num_add(k, sum, num_exp(k, num_sub(k, *sink, max)));
    for (int64_t c = 0; c < C; c++)
        if (mark[c]) p[c] = num_div(k, p[c], sum);
}

static void
attend(mc_ref_op *k, int64_t b, int64_t s, int64_t j, const bool *mark, double *p)
{
    const mc_ref_tensor *q = k->in[0], *key = k->in[1], *v = k->in[2], *sinks = operand(k, 3);
    int64_t S = q->dims[1], H = q->dims[2], C = key->dims[1], KV = key->dims[2], h = q->dims[3], hv = v->dims[3];
    int64_t kv = j / (H / KV), q_at = ((b * S + s) * H + j) * h, o_at = ((b * S + s) * H + j) * hv;
    for (int64_t c = 0; c < C; c++)
        if (mark[c]) p[c] = mc_ref_attention_logit(k, q_at, ((b * C + c) * KV + kv) * h, h);
    double sink = sinks ? get(sinks, j) : 0;
    mc_ref_masked_softmax(k, p, mark, C, sinks ? &sink : NULL);
    for (int64_t i = 0; i < hv; i++) {
        double sum = 0;
        for (int64_t c = 0; c < C; c++)
            if (mark[c]) sum = num_fma(k, p[c], get(v, ((b * C + c) * KV + kv) * hv + i), sum);
        put(&k->out[0], o_at + i, sum);
    }
}

bool
mc_ref_SDPA(mc_ref_op *k)
{
    const mc_ref_tensor *q = k->in[0];
    int64_t C = k->in[1]->dims[1];
    bool *mark = MC_NEW_N(k->arena, bool, C);
    double *p = MC_NEW_N(k->arena, double, C);
    for (int64_t b = 0; b < q->dims[0]; b++)
        for (int64_t s = 0; s < q->dims[1]; s++) {
            if (!mc_ref_mark_keys(k, b, s, mark)) return false;
            for (int64_t j = 0; j < q->dims[2]; j++) attend(k, b, s, j, mark, p);
        }
    return true;
}

/* The logit of row `at` of q and q_rot for key row c_at of c and k_rot. */
static double
latent_score(const mc_ref_op *k, int64_t at, int64_t c_at)
{
    double sum = 0, cap = num_round(k, mc_attr_float(k->op, "softcap"));
    for (int part = 0; part < 4; part += 2) {
        const mc_ref_tensor *q = k->in[part], *key = k->in[part + 1];
        int64_t width = mc_ref_last(q);
        for (int64_t i = 0; i < width; i++) sum = num_fma(k, get(q, at * width + i), get(key, c_at * width + i), sum);
    }
    sum = num_mul(k, sum, num_round(k, mc_attr_float(k->op, "scale")));
    return cap != 0 ? num_mul(k, cap, num_tanh(k, num_div(k, sum, cap))) : sum;
}

static void
latent_attend(mc_ref_op *k, int64_t b, int64_t at, const bool *mark, double *p)
{
    const mc_ref_tensor *c = k->in[1];
    int64_t C = c->dims[1], r = c->dims[2];
    for (int64_t i = 0; i < C; i++)
        if (mark[i]) p[i] = latent_score(k, at, b * C + i);
    mc_ref_masked_softmax(k, p, mark, C, NULL);
    for (int64_t j = 0; j < r; j++) {
        double sum = 0;
        for (int64_t i = 0; i < C; i++)
            if (mark[i]) sum = num_fma(k, p[i], get(c, (b * C + i) * r + j), sum);
        put(&k->out[0], at * r + j, sum);
    }
}

bool
mc_ref_LATENT_SDPA(mc_ref_op *k)
{
    const mc_ref_tensor *q = k->in[0];
    int64_t S = q->dims[1], H = q->dims[2], C = k->in[1]->dims[1];
    bool *mark = MC_NEW_N(k->arena, bool, C);
    double *p = MC_NEW_N(k->arena, double, C);
    for (int64_t row = 0; row < q->dims[0] * S; row++) {
        if (!mc_ref_mark_keys(k, row / S, row % S, mark)) return false;
        for (int64_t h = 0; h < H; h++) latent_attend(k, row / S, row * H + h, mark, p);
    }
    return true;
}

/* The index score of key c for query (b, s). q [B, S, J, h], k [B, C, 1, h], w [B, S, J]. */
static double
index_score(const mc_ref_op *k, int64_t b, int64_t s, int64_t c)
{
    const mc_ref_tensor *q = k->in[0], *key = k->in[1], *w = k->in[2];
    int64_t J = q->dims[2], h = q->dims[3], q_row = (b * q->dims[1] + s) * J;
    double total = 0;
    for (int64_t j = 0; j < J; j++) {
        double sum = 0;
        for (int64_t i = 0; i < h; i++)
            sum = num_fma(k, get(q, (q_row + j) * h + i), get(key, (b * key->dims[1] + c) * h + i), sum);
        total = num_fma(k, get(w, q_row + j), num_max(sum, 0), total);
    }
    return total;
}

bool
mc_ref_TOP_KEYS(mc_ref_op *k)
{
    const mc_ref_tensor *q = k->in[0], *key = k->in[1];
    int64_t S = q->dims[1], C = key->dims[1], n = mc_attr_int(k->op, "n");
    for (int64_t row = 0; row < q->dims[0] * S; row++) {
        int64_t seen = C - S + row % S + 1;
        if (seen < 0) seen = 0; /* queries before the first key */
        int64_t chosen = seen < n ? seen : n;
        double *scores = MC_NEW_N(k->arena, double, seen);
        int64_t *best = MC_NEW_N(k->arena, int64_t, chosen);
        bool *taken = MC_NEW_N(k->arena, bool, seen);
        for (int64_t c = 0; c < seen; c++) scores[c] = index_score(k, row / S, row % S, c);
        mc_ref_best(scores, seen, chosen, best, k->arena);
        for (int64_t i = 0; i < chosen; i++) taken[best[i]] = true;
        int64_t at = row * n;
        for (int64_t c = 0; c < seen; c++)
            if (taken[c]) put(&k->out[0], at++, (double)c);
        while (at < (row + 1) * n) put(&k->out[0], at++, -1);
    }
    return true;
}
