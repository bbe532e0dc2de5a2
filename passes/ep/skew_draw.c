/* skew_draw: tokens of a made-up router. The k greatest of log(weight) + Gumbel noise are the first k different experts
 * of draws with chances as the weights, and the groups with the greatest such score are the first `keep` groups that
 * are drawn: so a token takes k draws from an alias table and a few more, whatever the number of experts. A draw that
 * must not count (drawn before, or of a group too many) is drawn again, which leaves the others' chances as they were;
 * where that takes long, one pass over all weights draws from what is left. */
#include "passes/ep/skew.h"

#include <string.h>

enum { MOST_TRIES = 48 };

typedef struct alias { /* index i, or `other` when the coin is not below `chance` of 2^32 */
    uint32_t chance, other;
} alias;

struct mc_draw {
    mc_ep_choice choice;
    int64_t group; /* experts of one; 0: no limit */
    uint64_t random;
    double *weights;
    alias *all, *in_groups;   /* tables over all experts, and over those of each group */
    double *group_weights;    /* [groups] */
    uint32_t *drawn, *opened; /* serial of the token that drew the expert, opened the group */
    int32_t *open;            /* [keep] */
    uint32_t serial;
    double *scaled; /* of building tables */
    int32_t *small, *large;
};

mc_draw *
mc_draw_create(mc_arena *arena, const mc_ep_choice *c)
{
    mc_draw *d = MC_NEW(arena, mc_draw);
    size_t n = (size_t)c->experts;
    d->choice = *c;
    bool limited = c->groups > 1 && c->keep > 0 && c->keep < c->groups;
    d->group = limited ? c->experts / c->groups : 0;
    d->weights = MC_NEW_N(arena, double, n);
    d->scaled = MC_NEW_N(arena, double, n);
    d->all = MC_NEW_N(arena, alias, n);
    d->drawn = MC_NEW_N(arena, uint32_t, n);
    d->small = MC_NEW_N(arena, int32_t, n);
    d->large = MC_NEW_N(arena, int32_t, n);
    if (limited) {
        d->in_groups = MC_NEW_N(arena, alias, n);
        d->group_weights = MC_NEW_N(arena, double, c->groups);
        d->opened = MC_NEW_N(arena, uint32_t, c->groups);
        d->open = MC_NEW_N(arena, int32_t, c->keep);
    }
    return d;
}

/* Walker's table in Vose's way: every entry is filled up by one that has more than its share. */
static void
build(mc_draw *d, const double *weights, int64_t n, alias *out)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += weights[i];
    int64_t n_small = 0, n_large = 0;
    for (int64_t i = 0; i < n; i++) {
        d->scaled[i] = sum > 0 ? weights[i] * (double)n / sum : 1;
        if (d->scaled[i] < 1)
            d->small[n_small++] = (int32_t)i;
        else
            d->large[n_large++] = (int32_t)i;
    }
    while (n_small && n_large) {
        int32_t s = d->small[--n_small], l = d->large[n_large - 1];
        out[s] = (alias){(uint32_t)(d->scaled[s] * 4294967296.0), (uint32_t)l};
        d->scaled[l] -= 1 - d->scaled[s];
        if (d->scaled[l] >= 1) continue;
        n_large--;
        d->small[n_small++] = l;
    }
    const int32_t *left = n_large ? d->large : d->small;
    for (int64_t i = 0; i < n_small + n_large; i++) out[left[i]] = (alias){UINT32_MAX, (uint32_t)left[i]};
}

void
mc_draw_weights(mc_draw *d, const double *weights)
{
    memcpy(d->weights, weights, sizeof *weights * (size_t)d->choice.experts);
    build(d, weights, d->choice.experts, d->all);
    for (int64_t g = 0; d->group && g < d->choice.groups; g++) {
        build(d, weights + g * d->group, d->group, d->in_groups + g * d->group);
        d->group_weights[g] = 0;
        for (int64_t i = 0; i < d->group; i++) d->group_weights[g] += weights[g * d->group + i];
    }
}

void
mc_draw_seed(mc_draw *d, uint64_t seed, uint64_t stream)
{
    d->random = seed * UINT64_C(0xD1342543DE82EF95) + stream * UINT64_C(0x2545F4914F6CDD1D) + 1;
}

static inline uint64_t
next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static double
fraction(mc_draw *d)
{
    return (double)(next_random(&d->random) >> 11) / 9007199254740992.0;
}

static inline uint32_t
draw_from(uint64_t *state, const alias *table, int64_t n)
{
    uint64_t r = next_random(state);
    uint32_t i = (uint32_t)((r >> 32) * (uint64_t)n >> 32);
    return (uint32_t)r < table[i].chance ? i : table[i].other;
}

static bool
is_left(const mc_draw *d, int64_t expert, int64_t n_open)
{
    if (d->drawn[expert] == d->serial) return false;
    return !d->group || n_open < d->choice.keep || d->opened[expert / d->group] == d->serial;
}

/* From all weights that are left; evenly when they are all 0. */
static int32_t
draw_slowly(mc_draw *d, int64_t n_open)
{
    double sum = 0;
    int64_t n = 0, last = 0;
    for (int64_t e = 0; e < d->choice.experts; e++) {
        if (!is_left(d, e, n_open)) continue;
        sum += d->weights[e];
        n++;
    }
    double at = fraction(d) * (sum > 0 ? sum : (double)n);
    for (int64_t e = 0; e < d->choice.experts; e++) {
        if (!is_left(d, e, n_open)) continue;
        last = e;
        at -= sum > 0 ? d->weights[e] : 1;
        if (at < 0) break;
    }
    return (int32_t)last;
}

static int32_t
draw_any(mc_draw *d, int64_t n_open)
{
    for (int tries = 0; tries < MOST_TRIES; tries++) {
        uint32_t e = draw_from(&d->random, d->all, d->choice.experts);
        if (d->drawn[e] != d->serial) return (int32_t)e;
    }
    return draw_slowly(d, n_open);
}

/* Of the open groups. */
static int32_t
draw_open(mc_draw *d, double sum)
{
    int64_t keep = d->choice.keep;
    for (int tries = 0; tries < MOST_TRIES && sum > 0; tries++) {
        double at = fraction(d) * sum;
        int64_t i = 0;
        for (; i + 1 < keep; i++) {
            at -= d->group_weights[d->open[i]];
            if (at < 0) break;
        }
        int64_t begin = d->open[i] * d->group;
        int64_t e = begin + draw_from(&d->random, d->in_groups + begin, d->group);
        if (d->drawn[e] != d->serial) return (int32_t)e;
    }
    return draw_slowly(d, keep);
}

static void
draw_limited(mc_draw *d, int32_t *ids)
{
    int64_t n_open = 0;
    double sum = 0;
    for (int64_t j = 0; j < d->choice.k; j++) {
        int32_t e = n_open < d->choice.keep ? draw_any(d, n_open) : draw_open(d, sum);
        int32_t group = (int32_t)(e / d->group);
        if (d->opened[group] != d->serial) {
            d->opened[group] = d->serial;
            d->open[n_open++] = group;
            sum += d->group_weights[group];
        }
        d->drawn[e] = d->serial;
        ids[j] = e;
    }
}

static void
next_token(mc_draw *d)
{
    if (++d->serial) return;
    memset(d->drawn, 0, sizeof *d->drawn * (size_t)d->choice.experts); /* serials begin again */
    if (d->group) memset(d->opened, 0, sizeof *d->opened * (size_t)d->choice.groups);
    d->serial = 1;
}

void
mc_draw_tokens(mc_draw *d, int64_t n, int32_t *ids)
{
    for (int64_t t = 0; t < n; t++, ids += d->choice.k) {
        next_token(d);
        if (d->group) {
            draw_limited(d, ids);
            continue;
        }
        for (int64_t j = 0; j < d->choice.k; j++) {
            ids[j] = draw_any(d, 0);
            d->drawn[ids[j]] = d->serial;
        }
    }
}
