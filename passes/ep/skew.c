/* skew: the laws of skew.h as weights. Orders of experts come from the seed alone, so that a placement made for a law
 * and traffic drawn from it agree on who is popular. */
#include "passes/ep/skew.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *form;
    double share; /* when not said */
} laws[] = {{"uniform", "uniform", 0},
            {"zipf", "zipf:S", 0},
            {"khot", "khot:N[:SHARE]", 0.5},
            {"rank", "rank:S[:OWN]", 0.5},
            {"drift", "drift:S[:PART]", 0.2}};

enum { N_LAWS = sizeof laws / sizeof *laws };

/* ---- text ------------------------------------------------------------------------------------------------------- */

static moec_status
refuse(mc_fault *error, mc_str text, const char *why)
{
    size_t n = text.len > 60 ? 60 : text.len;
    return mc_fail(
        error, MOEC_ERR_ARGUMENT,
        "%.*s %s: traffic is uniform, zipf:S, khot:N[:SHARE], rank:S[:OWN] or drift:S[:PART], as in zipf:0.6", (int)n,
        text.data ? text.data : "", why);
}

/* A number up to the next colon or the end; moves *at behind it. */
static bool
read_number(mc_str text, size_t *at, double *out)
{
    char copy[32];
    size_t n = 0;
    for (; *at < text.len && text.data[*at] != ':'; (*at)++) {
        char c = text.data[*at];
        if (n + 1 == sizeof copy || !strchr("0123456789.", c) || !c) return false;
        copy[n++] = c;
    }
    copy[n] = 0;
    char *end;
    *out = strtod(copy, &end);
    return n && !*end && isfinite(*out);
}

moec_status
mc_skew_parse(mc_str text, mc_skew *out, mc_fault *error)
{
    size_t at = 0;
    while (at < text.len && text.data[at] != ':') at++;
    int kind = 0;
    while (kind < N_LAWS && !mc_str_is(mc_str_slice(text, 0, at), laws[kind].name)) kind++;
    if (kind == N_LAWS) return refuse(error, text, "is no law of traffic");
    *out = (mc_skew){.kind = (mc_skew_kind)kind, .share = laws[kind].share};
    double number = 0;
    if (kind != MC_SKEW_UNIFORM) {
        if (at == text.len) return refuse(error, text, "lacks its number");
        at++;
        if (!read_number(text, &at, &number)) return refuse(error, text, "has no number");
        if (kind == MC_SKEW_HOT && (number < 1 || number != floor(number) || number > 1e6))
            return refuse(error, text, "has no number of experts");
        if (kind != MC_SKEW_HOT && number > 8) return refuse(error, text, "is steeper than 8");
        out->hot = kind == MC_SKEW_HOT ? (int64_t)number : 0;
        out->exponent = kind == MC_SKEW_HOT ? 0 : number;
    }
    if (kind >= MC_SKEW_HOT && at < text.len) {
        at++;
        if (!read_number(text, &at, &out->share) || out->share > 1)
            return refuse(error, text, "has a second number that is not between 0 and 1");
    }
    return at == text.len ? MOEC_OK : refuse(error, text, "goes on where it should end");
}

void
mc_skew_print(const mc_skew *law, mc_buf *out)
{
    mc_buf_puts(out, laws[law->kind].name);
    if (law->kind == MC_SKEW_HOT) mc_buf_printf(out, ":%lld", (long long)law->hot);
    if (law->kind != MC_SKEW_HOT && law->kind != MC_SKEW_UNIFORM) mc_buf_printf(out, ":%g", law->exponent);
    if (law->kind >= MC_SKEW_HOT) mc_buf_printf(out, ":%g", law->share);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static uint64_t
next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static uint64_t
below(uint64_t *state, uint64_t n)
{
    return (next_random(state) >> 32) * n >> 32;
}

static void
shuffle(uint64_t seed, int64_t n, int32_t *order)
{
    for (int64_t i = 0; i < n; i++) order[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t o = (int64_t)below(&seed, (uint64_t)i + 1);
        int32_t e = order[i];
        order[i] = order[o];
        order[o] = e;
    }
}

/* Experts change places two by two. */
static void
exchange_some(uint64_t seed, double part, int64_t n, int32_t *order)
{
    for (int64_t pairs = (int64_t)(part * (double)n / 2 + 0.5); pairs > 0; pairs--) {
        uint64_t a = below(&seed, (uint64_t)n), b = below(&seed, (uint64_t)n);
        int32_t e = order[a];
        order[a] = order[b];
        order[b] = e;
    }
}

static void
add_zipf(double exponent, double amount, int64_t n, const int32_t *order, double *out)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += pow((double)(i + 1), -exponent);
    for (int64_t i = 0; i < n; i++) out[order[i]] += amount * pow((double)(i + 1), -exponent) / sum;
}

void
mc_skew_weights(mc_arena *scratch, const mc_skew *law, uint64_t seed, int64_t n_experts, int64_t rank, bool drifted,
                double *out)
{
    int32_t *order = MC_NEW_N(scratch, int32_t, n_experts);
    int64_t hot = law->hot < n_experts ? law->hot : n_experts;
    double own = law->kind == MC_SKEW_RANK ? law->share : 0;
    memset(out, 0, sizeof *out * (size_t)n_experts);
    shuffle(seed ^ UINT64_C(0x5EED), n_experts, order);
    if (law->kind == MC_SKEW_HOT && hot < n_experts) {
        for (int64_t i = 0; i < n_experts; i++)
            out[order[i]] = i < hot ? law->share / (double)hot : (1 - law->share) / (double)(n_experts - hot);
        return;
    }
    if (law->kind == MC_SKEW_DRIFT && drifted) exchange_some(seed ^ UINT64_C(0xD21F7), law->share, n_experts, order);
    add_zipf(law->exponent, 1 - own, n_experts, order, out); /* exponent 0: uniform */
    if (own == 0) return;
    shuffle(seed + (uint64_t)(rank + 1) * UINT64_C(0xA24BAED4963EE407), n_experts, order);
    add_zipf(law->exponent, own, n_experts, order, out);
}

void
mc_skew_loads(mc_arena *scratch, const mc_skew *law, uint64_t seed, int64_t n_experts, int64_t n_ranks, float *out)
{
    double *weights = MC_NEW_N(scratch, double, n_experts), *sum = MC_NEW_N(scratch, double, n_experts);
    int64_t different = law->kind == MC_SKEW_RANK ? n_ranks : 1;
    mc_arena *each = mc_arena_create();
    for (int64_t r = 0; r < different; r++) {
        mc_arena_reset(each);
        mc_skew_weights(each, law, seed, n_experts, r, false, weights);
        for (int64_t e = 0; e < n_experts; e++) sum[e] += weights[e];
    }
    mc_arena_destroy(each);
    for (int64_t e = 0; e < n_experts; e++) out[e] = (float)(sum[e] / (double)different);
}
