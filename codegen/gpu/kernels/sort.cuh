// sort: a stable counting sort of choices by expert. A chunk of choices is one block's: warps rank their own part step
// by step (lanes that chose the same expert find each other by ballots), counts of warps become positions, and the
// chunk is written expert by expert, so that neighbours write neighbours. Few choices are one chunk, sorted by one
// launch; many take three: counts of every chunk, sums over the chunks before it, then the rows.
//
// What happens with a choice is up to `Out`:
//   row(i, e, r)   choice i of expert e gets row r (with RANKS: stands at place r among those of e)
//   none(i)        choice i has no expert
//   offset(e, r)   the rows of expert e begin at r; e = E: the end of all
// Scratch of a group: counts [chunks][E], which become the counts of earlier chunks, then the sum of each expert.
#pragma once
#include "base.cuh"

constexpr int CHUNK = 2048;
constexpr u32 NOBODY = 0xFFFFFFFF;

constexpr int
bits_of(int n)
{
    return n <= 1 ? 0 : 1 + bits_of((n + 1) / 2);
}

template <int E> struct sort_shape {
    static constexpr int warps = E <= 1024 ? 8 : 2, threads = 32 * warps, items = CHUNK / threads;
};

template <int E> struct sort_memory {
    u16 counts[sort_shape<E>::warps][E];
    i32 base[E], start[E];
    u16 item[CHUNK], expert[CHUNK];
};

MC_FN i64
chunks_of(i64 n)
{
    return (n + CHUNK - 1) / CHUNK;
}

// Where a group's counts begin in scratch, and how many numbers they are.
template <int E>
MC_FN i64
sort_scratch(i64 n)
{
    return (chunks_of(n) + 1) * E;
}

// Exclusive sums of x[0 .. N-1] in shared memory; returns the sum of all.
template <int N>
MC_FN i32
block_scan(i32 *x)
{
    MC_SHARED i32 of_warp[32];
    int threads = int(blockDim.x), per = (N + threads - 1) / threads, begin = int(threadIdx.x) * per;
    int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5);
    i32 sum = 0, total = 0;
    for (int i = begin; i < begin + per && i < N; i++) sum += x[i];
    i32 before = sum;
    for (int d = 1; d < 32; d *= 2) {
        i32 lower = shfl_up(before, d);
        if (lane >= d) before += lower;
    }
    if (lane == 31) of_warp[warp] = before;
    block_sync();
    before -= sum;
    for (int w = 0; w < threads / 32; w++) {
        if (w < warp) before += of_warp[w];
        total += of_warp[w];
    }
    for (int i = begin; i < begin + per && i < N; i++) {
        i32 here = x[i];
        x[i] = before;
        before += here;
    }
    block_sync();
    return total;
}

// The lanes whose id is this lane's, among those that have one.
template <int E>
MC_FN u32
same_expert(u32 id, bool real)
{
    u32 same = ballot(real);
#pragma unroll
    for (int b = 0; b < bits_of(E); b++) {
        bool set = id >> b & 1;
        u32 lanes = ballot(set);
        same &= set ? lanes : ~lanes;
    }
    return same;
}

// Sorts choices first .. first + n - 1 (at most a chunk). get(i): the id of choice i; where(e, local): the row of the
// first choice of e in this chunk, local in the order of the chunk. Returns how many have an expert.
template <int E, typename Get, typename Where, typename Out>
MC_FN int
sort_chunk(sort_memory<E> &m, i64 first, int n, Get get, Where where, Out out)
{
    constexpr int WARPS = sort_shape<E>::warps, ITEMS = sort_shape<E>::items, THREADS = sort_shape<E>::threads;
    int tid = int(threadIdx.x), lane = tid & 31, warp = tid >> 5;
    int steps = (n + THREADS - 1) / THREADS, begin = warp * 32 * steps + lane; // few choices: all warps have some
    u32 below = (1u << lane) - 1;
    u32 seat[ITEMS]; // the id, then with the rank among those of the warp above it
#pragma unroll
    for (int s = 0; s < ITEMS; s++)
        seat[s] = s < steps && begin + s * 32 < n ? u32(get(first + begin + s * 32)) : NOBODY;
    for (int i = tid; i < WARPS * E; i += THREADS) (&m.counts[0][0])[i] = 0;
    block_sync();
#pragma unroll
    for (int s = 0; s < ITEMS; s++) {
        if (s >= steps) break;
        u32 id = seat[s];
        bool real = id < u32(E);
        u32 same = same_expert<E>(id, real);
        int before = real ? m.counts[warp][id] : 0;
        warp_sync();
        seat[s] = real ? id | u32(before + __popc(same & below)) << 16 : NOBODY;
        if (real && !(same & below)) m.counts[warp][id] = u16(before + __popc(same));
        warp_sync();
    }
    block_sync();
    for (int e = tid; e < E; e += THREADS) {
        int sum = 0;
        for (int w = 0; w < WARPS; w++) {
            int here = m.counts[w][e];
            m.counts[w][e] = u16(sum);
            sum += here;
        }
        m.base[e] = sum;
    }
    block_sync();
    int total = block_scan<E>(m.base);
    for (int e = tid; e < E; e += THREADS) {
        i32 local = m.base[e];
        for (int w = 0; w < WARPS; w++) m.counts[w][e] = u16(m.counts[w][e] + local);
        m.base[e] = where(e, local) - local;
    }
    block_sync();
#pragma unroll
    for (int s = 0; s < ITEMS; s++) {
        int i = begin + s * 32;
        if (seat[s] != NOBODY) {
            int id = int(seat[s] & 0xFFFF), at = m.counts[warp][id] + int(seat[s] >> 16);
            m.item[at] = u16(i);
            m.expert[at] = u16(id);
        } else if (s < steps && i < n) {
            out.none(first + i);
        }
    }
    block_sync();
    for (int at = tid; at < total; at += THREADS) {
        int e = m.expert[at];
        out.row(first + m.item[at], e, m.base[e] + at);
    }
    return total;
}

// The first launch: everything when there is one chunk, else the counts of a chunk. One block more than there are
// chunks, so that no choices at all are sorted, too.
template <int E, bool RANKS, typename Get, typename Out>
MC_FN void
sort_first(i64 n, i32 *counts, Get get, Out out)
{
    MC_SHARED sort_memory<E> m;
    i64 first = i64(blockIdx.x) * CHUNK;
    if (blockIdx.x && first >= n) return;
    int tid = int(threadIdx.x), here = int(n - first < CHUNK ? n - first : CHUNK);
    if (n <= CHUNK) {
        auto where = [&](int e, i32 local) {
            out.offset(e, local);
            return RANKS ? 0 : local;
        };
        int total = sort_chunk(m, first, here, get, where, out);
        if (tid == 0) out.offset(E, total);
        return;
    }
    for (int e = tid; e < E; e += int(blockDim.x)) m.base[e] = 0;
    block_sync();
    for (int i = tid; i < here; i += int(blockDim.x)) {
        i32 id = get(first + i);
        if (u32(id) < u32(E)) atomic_add(&m.base[id], 1);
    }
    block_sync();
    for (int e = tid; e < E; e += int(blockDim.x)) counts[i64(blockIdx.x) * E + e] = m.base[e];
}

// The second, of 1024 threads: a lane is an expert, a warp some chunks.
template <int E>
MC_FN void
sort_sums(i64 n, i32 *counts)
{
    MC_SHARED i32 of_warp[32][33];
    if (n <= CHUNK) return; // the first launch has done it
    int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5), e = int(blockIdx.x) * 32 + lane;
    i64 chunks = chunks_of(n), per = (chunks + 31) / 32, begin = warp * per;
    i64 end = begin + per < chunks ? begin + per : chunks;
    i32 sum = 0;
    if (e < E)
        for (i64 c = begin; c < end; c++) sum += counts[c * E + e];
    of_warp[warp][lane] = sum;
    block_sync();
    if (e >= E) return;
    i32 before = 0;
    for (int w = 0; w < warp; w++) before += of_warp[w][lane];
    for (i64 c = begin; c < end; c++) {
        i32 here = counts[c * E + e];
        counts[c * E + e] = before;
        before += here;
    }
    if (warp == 31) counts[chunks * E + e] = before;
}

// The third: the rows of a chunk.
template <int E, bool RANKS, typename Get, typename Out>
MC_FN void
sort_last(i64 n, const i32 *counts, Get get, Out out)
{
    MC_SHARED sort_memory<E> m;
    if (n <= CHUNK) return;
    i64 first = i64(blockIdx.x) * CHUNK;
    int tid = int(threadIdx.x), here = int(n - first < CHUNK ? n - first : CHUNK);
    const i32 *earlier = counts + i64(blockIdx.x) * E, *sums = counts + chunks_of(n) * E;
    if (!RANKS) {
        for (int e = tid; e < E; e += int(blockDim.x)) m.start[e] = sums[e];
        block_sync();
        i32 total = block_scan<E>(m.start);
        if (blockIdx.x == 0) {
            for (int e = tid; e < E; e += int(blockDim.x)) out.offset(e, m.start[e]);
            if (tid == 0) out.offset(E, total);
        }
    }
    auto where = [&](int e, i32) { return earlier[e] + (RANKS ? 0 : m.start[e]); };
    sort_chunk(m, first, here, get, where, out);
}
