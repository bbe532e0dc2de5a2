// sample: choosing an id from logits, the same one as runtime/sample.c. All sums of probabilities there run over the
// ids one after the other, in f64. Here they are first made in parallel, with a bound of how far two orders of adding
// can lie apart; only where a choice lies within that bound are they made again, in the order of runtime/sample.c.
//
// sample_greatest, then for a temperature above 0 sample_weights and sample_draw
//   ptr: logits   i: vocabulary   f: temperature, top_p, uniform
//   scratch: what comes out (sample_result), a weight for each id, then as many candidates, rounded up to a power of 2
#pragma once
#include "base.cuh"

enum { SAMPLE_THREADS = 512 };
struct sample_result {
    i32 greatest; /* id of the greatest logit; NaN and +infinity count as the greatest of all */
    f32 logit;    /* of that id */
    i32 drawn, reserved;
};

struct candidate {
    f64 p;
    i64 id;
};

MC_FN sample_result *
result_of(const mc_args &a)
{
    return static_cast<sample_result *>(a.scratch);
}

MC_FN f64 *
weights_of(const mc_args &a)
{
    return reinterpret_cast<f64 *>(result_of(a) + 1);
}

MC_FN candidate *
candidates_of(const mc_args &a)
{
    return reinterpret_cast<candidate *>(weights_of(a) + a.i[0]);
}

/* ---- the likeliest id ------------------------------------------------------------------------------------------- */

/* Logits as numbers of the same order; NaN and +infinity before all. */
MC_FN u32
order_of(f32 x)
{
    u32 bits = f32_bits(x);
    if (x != x || x == INFINITY) return 0xFFFFFFFFu;
    if (x == 0) bits = 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

MC_FN void
sample_greatest(const mc_args &a)
{
    i64 n = a.i[0];
    u64 best = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        u64 here = u64(order_of(arg<const f32>(a, 0)[i])) << 32 | u32(~u32(i)); /* equal ones: the lower id */
        best = here > best ? here : best;
    }
    best = block_max(best);
    i32 id = i32(~u32(best));
    if (threadIdx.x == 0) *result_of(a) = sample_result{id, arg<const f32>(a, 0)[id], id, 0};
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* mc_sample_exp of runtime/sample.c, operation for operation. */
MC_FN f64
sample_exp(f64 x)
{
    if (!(x > -700)) return 0;
    i64 n = i64(add_rn(mul_rn(x, 1.4426950408889634), -0.5));
    f64 r = add_rn(x, -mul_rn(f64(n), 0.69314718055994529)), term = 1, sum = 1, power = 1;
#pragma unroll 1
    for (int i = 1; i < 18; i++) {
        term = mul_rn(term, r) / i;
        sum = add_rn(sum, term);
    }
    for (; n < 0; n++) power *= 0.5;
    return mul_rn(sum, power);
}

MC_FN void
sample_weights(const mc_args &a)
{
    const f32 *logits = arg<const f32>(a, 0);
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < a.i[0]) weights_of(a)[i] = sample_exp((f64(logits[i]) - f64(result_of(a)->logit)) / a.f[0]);
}

/* ---- the draw --------------------------------------------------------------------------------------------------- */

/* Room for a number of every thread. */
MC_FN f64 *
staging()
{
    MC_SHARED f64 numbers[SAMPLE_THREADS];
    return numbers;
}

/* next(i, p(i)) for i = 0, 1, ... in thread 0 until it says true; what all threads get is that i, or n. */
template <typename P, typename F>
MC_FN i64
in_order(i64 n, P p, F next)
{
    MC_SHARED i64 stop;
    f64 *staged = staging();
    if (threadIdx.x == 0) stop = n;
    for (i64 base = 0; base < n; base += SAMPLE_THREADS) {
        if (base + threadIdx.x < n) staged[threadIdx.x] = p(base + threadIdx.x);
        block_sync();
        if (threadIdx.x == 0) {
            i64 end = n - base < SAMPLE_THREADS ? n - base : SAMPLE_THREADS;
            for (i64 i = 0; i < end && stop == n; i++)
                if (next(base + i, staged[i])) stop = base + i;
        }
        block_sync();
        if (stop != n) break;
    }
    i64 at = stop;
    block_sync();
    return at;
}

/* A sum over the ids that only thread 0 holds, for all. */
MC_FN f64
share(f64 x)
{
    MC_SHARED f64 shared;
    if (threadIdx.x == 0) shared = x;
    block_sync();
    x = shared;
    block_sync();
    return x;
}

/* The sum in the order of the ids. */
MC_FN f64
exact_total(const f64 *p, i64 n)
{
    f64 total = 0;
    in_order(
        n, [=](i64 i) { return p[i]; },
        [&](i64, f64 x) {
            total = add_rn(total, x);
            return false;
        });
    return share(total);
}

/* The first id at which the sum exceeds u of the total, by sums of SAMPLE_THREADS runs of ids; -1: too close to say. */
MC_FN i64
near_draw(const f64 *p, i64 n, f64 u, f64 margin)
{
    f64 *runs = staging();
    i64 run = (n + SAMPLE_THREADS - 1) / SAMPLE_THREADS, begin = threadIdx.x * run, chosen = -1;
    f64 sum = 0;
    for (i64 i = begin; i < begin + run && i < n; i++) sum += p[i];
    runs[threadIdx.x] = sum;
    block_sync();
    if (threadIdx.x == 0) {
        f64 total = 0, before = 0;
        for (int r = 0; r < SAMPLE_THREADS; r++) total += runs[r];
        f64 target = u * total;
        int r = 0;
        while (r + 1 < SAMPLE_THREADS && before + runs[r] <= target) before += runs[r++];
        f64 below = before;
        for (i64 i = r * run; i < n; i++) {
            before = below;
            below += p[i];
            if (target < below) {
                if (below - target > margin && target - before > margin) chosen = i;
                break;
            }
        }
    }
    block_sync();
    return i64(share(f64(chosen)));
}

MC_FN i64
exact_draw(const f64 *p, i64 n, f64 u)
{
    f64 target = u * exact_total(p, n), sum = 0;
    i64 i = in_order(
        n, [=](i64 k) { return p[k]; },
        [&](i64, f64 x) {
            sum = add_rn(sum, x);
            return target < sum;
        });
    return i < n ? i : n - 1;
}

/* Sorts n (a power of 2) candidates: the likelier first, of equal ones the lower id. */
MC_FN void
sort_candidates(candidate *c, i64 n)
{
    for (i64 size = 2; size <= n; size *= 2) {
        for (i64 step = size / 2; step; step /= 2) {
            for (i64 i = threadIdx.x; i < n / 2; i += SAMPLE_THREADS) {
                i64 low = i / step * step * 2 + i % step, high = low + step;
                candidate x = c[low], y = c[high];
                bool behind = y.p > x.p || (y.p == x.p && y.id < x.id);
                if (behind == ((low & size) == 0)) {
                    c[low] = y;
                    c[high] = x;
                }
            }
            block_sync();
        }
    }
}

/* Those of at least `floor`, sorted; how many there are. */
MC_FN i64
find_candidates(const f64 *p, i64 n, f64 floor, candidate *c)
{
    MC_SHARED i32 found;
    if (threadIdx.x == 0) found = 0;
    block_sync();
    for (i64 i = threadIdx.x; i < n; i += SAMPLE_THREADS)
        if (p[i] >= floor) c[atomic_add(&found, 1)] = candidate{p[i], i};
    block_sync();
    i64 kept = found, sorted = 1;
    while (sorted < kept) sorted *= 2;
    for (i64 i = kept + threadIdx.x; i < sorted; i += SAMPLE_THREADS) c[i] = candidate{-1, n};
    block_sync();
    sort_candidates(c, sorted);
    return kept;
}

/* How many of n candidates are at least `floor`. */
MC_FN i64
count_from(const candidate *c, i64 n, f64 floor)
{
    i32 count = 0;
    for (i64 i = threadIdx.x; i < n; i += SAMPLE_THREADS) count += c[i].p >= floor;
    return block_sum(count);
}

/* The fewest candidates, from the likeliest on, that reach `goal`; their sum. -1: the goal is known to `margin`, and
 * that is not enough. */
MC_FN i64
nucleus(const candidate *c, i64 n, f64 goal, f64 margin, f64 &sum)
{
    f64 total = 0;
    bool close = false;
    i64 last = in_order(
        n, [=](i64 i) { return c[i].p; },
        [&](i64, f64 x) {
            total = add_rn(total, x);
            close = margin > 0 && total - goal <= margin && goal - total <= margin;
            return close || total >= goal;
        });
    sum = share(total);
    if (margin > 0 && (last == n || share(close) != 0)) return -1;
    return last == n ? n : last + 1;
}

MC_FN void
sample_draw(const mc_args &a)
{
    i64 n = a.i[0], id = -1;
    const f64 *p = weights_of(a);
    candidate *c = candidates_of(a);
    f64 top_p = a.f[1], u = a.f[2];
    f64 part = 0;
    for (i64 i = threadIdx.x; i < n; i += SAMPLE_THREADS) part += p[i];
    f64 total = block_sum(part), margin = f64(n) * 0x1p-50 * total; /* of two orders of adding n numbers, generously */
    if (top_p > 0 && top_p < 1) {
        f64 sum, floor = total * (1 - top_p) / f64(n) * (1 - 0x1p-20);
        i64 kept = find_candidates(p, n, floor, c), chosen = nucleus(c, kept, top_p * total, margin, sum);
        if (chosen < 0) {
            total = exact_total(p, n);
            chosen = nucleus(c, count_from(c, kept, total * (1 - top_p) / f64(n)), top_p * total, 0, sum);
        }
        f64 target = u * sum, before = 0;
        i64 i = in_order(
            chosen, [=](i64 k) { return c[k].p; },
            [&](i64, f64 x) {
                before = add_rn(before, x);
                return target < before;
            });
        id = c[i < chosen ? i : chosen - 1].id;
    } else {
        id = near_draw(p, n, u, margin);
        if (id < 0) id = exact_draw(p, n, u);
    }
    if (threadIdx.x == 0) result_of(a)->drawn = i32(id);
}
