// choose: choices that experts make, each the best so many of a list: route.choose and moe.capacity with drop = score.
// A block finds the last one that an expert takes by looking at orders 8 bits at a time, so lists may be of any length
// and ties are exact; what is taken then follows element by element.
//
// choose_turn   ptr: value                                        i: T, E            scratch: orders [E][T]
// choose_last   ptr: -                                            i: T, E            f: factor   last [E][2] after them
// choose_take   ptr: value, weights, ids                          i: T, E, T E
// score_first, score_rows  ptr: weights, ids                      i: n, n - CHUNK, E, groups, T, k   f: factor
//               scratch: counts of sort.cuh for each group, then lists [groups][n], offsets [groups][E + 1],
//               last [groups][E][2]
// score_last    the same                                          i: the same
// score_take    ptr: weights, ids, kept_weights, kept_ids         i: the same, n groups
#pragma once
#include "dispatch.cuh"
#include "row.cuh"

// Of a list of n orders the `keep` greatest (ties: the first) are those above `order`, and those equal to it up to
// place `at`.
struct last_taken {
    i32 order, at;
};

template <typename Get>
MC_FN last_taken
find_last(i32 n, i64 keep, Get get)
{
    MC_SHARED i32 count[256];
    MC_SHARED i32 found;
    MC_SHARED i32 of_warp[32];
    int tid = int(threadIdx.x), threads = int(blockDim.x), lane = tid & 31, warp = tid >> 5;
    if (keep >= n) return {NOWHERE, -1};
    u32 prefix = 0, mask = 0;
    i32 left = i32(keep), equal = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = tid; i < 256; i += threads) count[i] = 0;
        block_sync();
        for (i32 i = tid; i < n; i += threads) {
            u32 key = u32(get(i)) ^ 0x80000000u;
            if ((key & mask) == prefix) atomic_add(&count[key >> shift & 255], 1);
        }
        block_sync();
        int digit = 255;
        while (digit && left > count[digit]) left -= count[digit--];
        equal = count[digit];
        prefix |= u32(digit) << shift;
        mask |= 255u << shift;
        block_sync();
    }
    i32 order = i32(prefix ^ 0x80000000u);
    if (left == equal) return {order, n - 1};
    i32 seen = 0;
    for (i32 begin = 0; seen < left; begin += threads) {
        i32 i = begin + tid;
        bool is = i < n && get(i) == order;
        u32 lanes = ballot(is);
        if (lane == 0) of_warp[warp] = __popc(lanes);
        block_sync();
        i32 before = seen + __popc(lanes & ((1u << lane) - 1));
        for (int w = 0; w < threads / 32; w++) {
            if (w < warp) before += of_warp[w];
            seen += of_warp[w];
        }
        if (is && before == left - 1) found = i;
        block_sync();
    }
    return {order, found};
}

// ---- experts choose tokens

// min(T, max(1, ceil(T * factor / E))), in this order.
MC_FN i64
tokens_per_expert(const mc_args &a)
{
    f64 want = ceil(f64(a.i[0]) * a.f[0] / f64(a.i[1]));
    return want >= f64(a.i[0]) ? a.i[0] : want > 1 ? i64(want) : a.i[0] < 1 ? a.i[0] : 1;
}

MC_FN i32 *
orders_of(const mc_args &a)
{
    return static_cast<i32 *>(a.scratch);
}

MC_FN last_taken *
choose_lasts(const mc_args &a)
{
    return reinterpret_cast<last_taken *>(orders_of(a) + (a.i[0] * a.i[1] + 1) / 2 * 2);
}

// 256 threads turn a square of 32 x 32.
MC_FN void
choose_turn(const mc_args &a)
{
    MC_SHARED i32 square[32][33];
    i64 T = a.i[0], E = a.i[1], t = i64(blockIdx.x) * 32, e = i64(blockIdx.y) * 32;
    int lane = int(threadIdx.x & 31), first = int(threadIdx.x >> 5);
    for (int i = first; i < 32; i += 8)
        if (t + i < T && e + lane < E) square[i][lane] = order_of(arg<const f32>(a, 0)[(t + i) * E + e + lane]);
    block_sync();
    for (int i = first; i < 32; i += 8)
        if (e + i < E && t + lane < T) orders_of(a)[(e + i) * T + t + lane] = square[lane][i];
}

MC_FN void
choose_last(const mc_args &a)
{
    const i32 *mine = orders_of(a) + blockIdx.x * a.i[0];
    last_taken last = find_last(i32(a.i[0]), tokens_per_expert(a), [&](i32 i) { return mine[i]; });
    if (threadIdx.x == 0) choose_lasts(a)[blockIdx.x] = last;
}

MC_FN bool
is_taken(last_taken last, i32 order, i64 at)
{
    return order > last.order || (order == last.order && at <= last.at);
}

MC_FN void
choose_take(const mc_args &a)
{
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x, E = a.i[1];
    if (i >= a.i[2]) return;
    i32 e = i32(i % E);
    f32 x = arg<const f32>(a, 0)[i];
    bool taken = is_taken(choose_lasts(a)[e], order_of(x), i / E);
    arg<f32>(a, 1)[i] = taken ? x : 0.0f;
    arg<i32>(a, 2)[i] = taken ? e : -1;
}

// ---- capacity by score

template <int E, int GROUPS> struct score_rows_out {
    i32 *counts, *list, *offsets;
    last_taken *lasts; // of one group, like everything else here
    const f32 *weights;
    const i32 *ids;

    MC_FN
    score_rows_out(const mc_args &a, int group)
    {
        i64 n = a.i[0], each = sort_scratch<E>(n);
        i32 *base = static_cast<i32 *>(a.scratch), *lists = base + GROUPS * each, *all = lists + GROUPS * n;
        i64 used = GROUPS * (each + n + E + 1);
        counts = base + group * each;
        list = lists + group * n;
        offsets = all + group * (E + 1);
        lasts = reinterpret_cast<last_taken *>(base + (used + 1) / 2 * 2) + group * E;
        weights = arg<const f32>(a, 0) + group;
        ids = arg<const i32>(a, 1) + group;
    }

    MC_FN i32
    order(i64 i) const
    {
        return order_of(weights[i * GROUPS]);
    }

    MC_FN void
    row(i64 i, int, i32 r)
    {
        list[r] = i32(i);
    }

    MC_FN void
    none(i64)
    {
    }

    MC_FN void
    offset(int e, i32 r)
    {
        offsets[e] = r;
    }
};

template <int E, int GROUPS>
MC_FN void
score_first(const mc_args &a)
{
    score_rows_out<E, GROUPS> out(a, int(blockIdx.y));
    sort_first<E, false>(
        a.i[0], out.counts, [&](i64 i) { return out.ids[i * GROUPS]; }, out);
}

template <int E, int GROUPS>
MC_FN void
score_rows(const mc_args &a)
{
    score_rows_out<E, GROUPS> out(a, int(blockIdx.y));
    sort_last<E, false>(
        a.i[0], out.counts, [&](i64 i) { return out.ids[i * GROUPS]; }, out);
}

template <int E, int GROUPS>
MC_FN void
score_last(const mc_args &a)
{
    score_rows_out<E, GROUPS> out(a, int(blockIdx.y));
    int e = int(blockIdx.x);
    const i32 *list = out.list + out.offsets[e];
    i32 n = out.offsets[e + 1] - out.offsets[e];
    last_taken last = find_last(n, capacity_of(a), [&](i32 i) { return out.order(list[i]); });
    if (threadIdx.x == 0) out.lasts[e] = {last.order, last.at < 0 ? -1 : list[last.at]};
}

template <int E, int GROUPS>
MC_FN void
score_take(const mc_args &a)
{
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x, i = at / GROUPS;
    if (at >= a.i[6]) return;
    score_rows_out<E, GROUPS> out(a, int(at % GROUPS));
    i32 id = out.ids[i * GROUPS];
    bool kept = u32(id) >= u32(E) || is_taken(out.lasts[u32(id) < u32(E) ? id : 0], out.order(i), i);
    arg<f32>(a, 2)[at] = kept ? out.weights[i * GROUPS] : 0.0f;
    arg<i32>(a, 3)[at] = kept ? id : -1;
}
