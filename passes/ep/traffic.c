/* Chances of drawing without putting back. A unit is missed when all k draws fall on other units' experts:
 *
 *     F(G; E, k) = G (1 - C(E - E/G, k) / C(E, k))                  without a limit
 *
 * with a limit, the sum of that over how many of a unit's groups are among the kept ones (hypergeometric). */
#include "passes/ep/traffic.h"

/* That k draws of `experts` miss the `own` of them that a unit holds. */
static double
missed(double experts, double own, int64_t k)
{
    double p = 1;
    for (int64_t i = 0; i < k; i++) {
        double left = experts - (double)i;
        if (left <= own) return 0;
        p *= (left - own) / left;
    }
    return p;
}

static double
choose(int64_t n, int64_t r)
{
    double c = 1;
    if (r < 0 || r > n) return 0;
    for (int64_t i = 0; i < r; i++) c = c * (double)(n - i) / (double)(i + 1);
    return c;
}

static bool
is_limited(const mc_ep_choice *c)
{
    return c->groups > 1 && c->keep > 0 && c->keep < c->groups && c->experts % c->groups == 0;
}

double
mc_ep_hits(const mc_ep_choice *c, int64_t units, bool spread)
{
    double n = (double)units, experts = (double)c->experts;
    if (!is_limited(c)) return n * (1 - missed(experts, experts / n, c->k));
    double kept = experts * (double)c->keep / (double)c->groups;
    if (spread) return n * (1 - missed(kept, kept / n, c->k));
    if (units % c->groups == 0) return n * (double)c->keep / (double)c->groups * (1 - missed(kept, experts / n, c->k));
    if (c->groups % units != 0) return n * (1 - missed(experts, experts / n, c->k));
    int64_t of_unit = c->groups / units;
    double hit = 0, all = choose(c->groups, c->keep), group = experts / (double)c->groups;
    for (int64_t j = 1; j <= of_unit && j <= c->keep; j++) {
        double chance = choose(of_unit, j) * choose(c->groups - of_unit, c->keep - j) / all;
        hit += chance * (1 - missed(kept, (double)j * group, c->k));
    }
    return n * hit;
}

int64_t
mc_ep_reach(const mc_ep_choice *c, int64_t units, bool spread)
{
    int64_t most = c->k < units ? c->k : units;
    if (!is_limited(c) || spread) return most;
    /* units that a run of experts / groups touches */
    int64_t touched = units % c->groups == 0 ? units / c->groups : c->groups % units == 0 ? 1 : units / c->groups + 2;
    int64_t limited = touched * c->keep;
    return limited < most ? limited : most;
}
