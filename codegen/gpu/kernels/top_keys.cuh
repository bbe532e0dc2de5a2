// top_keys: the n visible keys with the greatest index scores, in ascending order of position. Keys are scored 64 at a
// time; those that beat the n-th best so far are appended to a buffer, in order; when it is full, the n-th best is
// found by a binary search over the bits of the scores' orders, and the losers are squeezed out. So positions stay in
// order by themselves. A dot product is one chain in ascending channel, a score one in ascending head: the
// interpreter's bits, so equal choices.
//
// When queries are few, their keys are dealt to several blocks, which leave their best in scratch; top_keys_join
// chooses among those in the same way.
//
// ptr: q, k, w, select   i: B * S, S, keys, whether earlier steps left keys, whether k lies in a state
#pragma once
#include "base.cuh"

enum { KEYS_TILE = 64, KEYS_HEADS = 16, KEYS_THREADS = 256, KEYS_PARTS = 256, KEYS_LEAST = 512 };

// N keys of scores over J heads of W channels. Shared memory in 4-byte words; codegen/gpu/sequence.c computes the same.
template <int W_, int J_, int N_> struct key_search {
    static constexpr int W = W_, J = J_, N = N_, WS = ((W_ + 3) / 4 | 1) * 4, ROOM = N_ + (N_ > 256 ? N_ : 256);
    static constexpr int K = 0, Q = KEYS_TILE * WS, DOTS = Q + KEYS_HEADS * WS, ORDERS = DOTS + KEYS_TILE * KEYS_HEADS;
    static constexpr int POSITIONS = ORDERS + ROOM;
};

struct keys_plan {
    i32 C, splits;
};

MC_FN keys_plan
keys_plan_of(const mc_args &a)
{
    keys_plan p;
    p.C = i32(a.i[2] + (a.i[3] ? past(a) : 0));
    p.splits = a.i[0] >= KEYS_PARTS ? 1 : i32(KEYS_PARTS / greater(a.i[0], i64(1)));
    return p;
}

// Visible keys of a row, and how many each split has.
MC_FN i32
keys_seen(const mc_args &a, const keys_plan &p, i64 row, i32 &each)
{
    i32 seen = greater(p.C - i32(a.i[1]) + i32(row % a.i[1]) + 1, 0);
    each = greater((seen + p.splits - 1) / p.splits, i32(KEYS_LEAST));
    if (p.splits == 1) each = greater(seen, 1);
    return seen;
}

// Scores as integers in the same order; NaN is the greatest, -0 equals 0.
MC_FN i32
key_order(f32 x)
{
    if (x != x) return 0x7FFFFFFF;
    i32 bits = i32(f32_bits(x + 0.0f));
    return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

template <class P> struct key_buffer {
    i32 *orders, *positions;
    i32 count;
    i64 bound; // the order that a newcomer must beat

    MC_FN
    key_buffer(i32 *shared)
        : orders(shared + P::ORDERS), positions(shared + P::POSITIONS), count(0), bound(-(i64(1) << 40))
    {
    }

    // How many threads before this one have it set, and in the whole block. All threads take part.
    static MC_FN i32
    rank(bool set, i32 &total)
    {
        MC_SHARED i32 sums[KEYS_THREADS / 32];
        u32 votes = ballot(set), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
        if (lane == 0) sums[warp] = i32(__popc(votes));
        block_sync();
        i32 before = i32(__popc(votes & ((1u << lane) - 1)));
        total = 0;
        for (u32 w = 0; w < KEYS_THREADS / 32; w++) {
            if (w == warp) before += total;
            total += sums[w];
        }
        block_sync();
        return before;
    }

    MC_FN i32
    reached(i32 least) const
    {
        i32 n = 0;
        for (i32 i = i32(threadIdx.x); i < count; i += KEYS_THREADS) n += orders[i] >= least;
        return block_sum(n);
    }

    // Keeps the N best, of equal ones the first.
    MC_FN void
    squeeze()
    {
        u32 bits = 0;
        for (u32 bit = 0x80000000u; bit; bit >>= 1)
            if (reached(i32((bits | bit) ^ 0x80000000u)) >= P::N) bits |= bit;
        i32 least = i32(bits ^ 0x80000000u), equal = P::N - (least == 0x7FFFFFFF ? 0 : reached(least + 1)), kept = 0;
        i32 old = count, same = 0;
        for (i32 first = 0; first < old; first += KEYS_THREADS) {
            i32 i = first + i32(threadIdx.x), n_same, n_kept;
            bool real = i < old;
            i32 order = real ? orders[i] : 0, position = real ? positions[i] : 0;
            i32 number = same + rank(real && order == least, n_same);
            bool keep = real && (order > least || (order == least && number < equal));
            i32 to = kept + rank(keep, n_kept);
            if (keep) {
                orders[to] = order;
                positions[to] = position;
            }
            same += n_same;
            kept += n_kept;
        }
        count = kept;
        bound = least;
        block_sync();
    }

    // One key of each thread that has one, in the order of the threads; at most 256 of them.
    MC_FN void
    offer(bool real, i32 order, i32 position)
    {
        i32 total;
        bool better = real && order > bound;
        i32 to = count + rank(better, total);
        if (better) {
            orders[to] = order;
            positions[to] = position;
        }
        count += total;
        block_sync();
        if (count + KEYS_THREADS > P::ROOM) squeeze(); // more than N: ROOM is at least N + KEYS_THREADS
    }

    MC_FN void
    finish()
    {
        if (count > P::N) squeeze();
    }
};

// Rows of W floats, zeros after them and for rows that are not real.
template <class P>
MC_FN void
keys_load(f32 *to, const f32 *from, i32 real, i32 rows)
{
    constexpr int PAD = (P::W + 3) / 4 * 4;
    if constexpr (P::W % 4 == 0) {
        for (i32 i = i32(threadIdx.x); i < rows * (P::W / 4); i += KEYS_THREADS) {
            i32 r = i / (P::W / 4), c = i % (P::W / 4) * 4;
            cp_async16(to + r * P::WS + c, r < real ? from + i64(r) * P::W + c : from, r < real);
        }
        cp_async_commit();
        cp_async_wait<0>();
    } else {
        for (i32 i = i32(threadIdx.x); i < rows * PAD; i += KEYS_THREADS) {
            i32 r = i / PAD, c = i % PAD;
            to[r * P::WS + c] = r < real && c < P::W ? from[i64(r) * P::W + c] : 0.0f;
        }
    }
    block_sync();
}

// relu of the products of 16 heads and the tile's keys, [head][key].
template <class P>
MC_FN void
keys_dots(f32 *shared)
{
    i32 tx = i32(threadIdx.x & 15), ty = i32(threadIdx.x >> 4);
    const f32 *key = shared + P::K + tx * P::WS, *q = shared + P::Q + ty * P::WS;
    f32 x[KEYS_TILE / 16] = {};
    for (int c = 0; c < (P::W + 3) / 4 * 4; c += 4) {
        vec<f32, 4> head = load_vec<4>(q + c);
#pragma unroll
        for (int i = 0; i < KEYS_TILE / 16; i++) {
            vec<f32, 4> k = load_vec<4>(key + 16 * i * P::WS + c);
#pragma unroll
            for (int e = 0; e < 4; e++) x[i] = fmaf(head.v[e], k.v[e], x[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < KEYS_TILE / 16; i++)
        shared[P::DOTS + ty * KEYS_TILE + tx + 16 * i] = x[i] <= 0.0f ? 0.0f : x[i]; // NaN stays
}

// The scores of keys first..first+63: thread i < 64 gets that of key first + i.
template <class P>
MC_FN f32
keys_score(const mc_args &a, f32 *shared, const f32 *keys, i64 row, i32 n)
{
    const f32 *q = arg<const f32>(a, 0) + row * P::J * P::W, *w = arg<const f32>(a, 2) + row * P::J;
    f32 total = 0;
    keys_load<P>(shared + P::K, keys, n, KEYS_TILE);
    for (int first = 0; first < P::J; first += KEYS_HEADS) {
        int heads = lesser(int(KEYS_HEADS), P::J - first);
        keys_load<P>(shared + P::Q, q + first * P::W, heads, KEYS_HEADS);
        keys_dots<P>(shared);
        block_sync();
        if (threadIdx.x < KEYS_TILE)
            for (int h = 0; h < heads; h++)
                total = fmaf(w[first + h], shared[P::DOTS + h * KEYS_TILE + threadIdx.x], total);
    }
    return total;
}

// A part in scratch: how many, orders, positions.
template <class P>
MC_FN i32 *
keys_part(const mc_args &a, i64 part)
{
    return static_cast<i32 *>(a.scratch) + part * (2 * P::N + 1);
}

template <class P>
MC_FN void
keys_store(const mc_args &a, const key_buffer<P> &best, i64 row, i32 *part)
{
    for (i32 i = i32(threadIdx.x); i < P::N; i += KEYS_THREADS) {
        if (!part) {
            arg<i32>(a, 3)[row * P::N + i] = i < best.count ? best.positions[i] : -1;
        } else if (i < best.count) {
            part[1 + i] = best.orders[i];
            part[1 + P::N + i] = best.positions[i];
        }
    }
    if (part && threadIdx.x == 0) part[0] = best.count;
    block_sync();
}

template <int W, int J, int N>
MC_FN void
top_keys(const mc_args &a)
{
    using P = key_search<W, J, N>;
    MC_DYNAMIC_SHARED(bytes);
    f32 *shared = reinterpret_cast<f32 *>(bytes);
    const keys_plan p = keys_plan_of(a);
    for (i64 at = blockIdx.x; at < a.i[0] * p.splits; at += gridDim.x) {
        i64 row = at / p.splits, sequence = row / a.i[1];
        i32 each, seen = keys_seen(a, p, row, each), begin = lesser(i32(at % p.splits) * each, seen);
        i32 end = lesser(begin + each, seen);
        const f32 *keys = arg<const f32>(a, 1) + sequence * (a.i[4] ? a.cache_cap : i64(p.C)) * W;
        key_buffer<P> best(reinterpret_cast<i32 *>(shared));
        for (i32 first = begin; first < end; first += KEYS_TILE) {
            f32 score = keys_score<P>(a, shared, keys + i64(first) * W, row, lesser(end - first, i32(KEYS_TILE)));
            i32 key = first + i32(threadIdx.x);
            best.offer(threadIdx.x < KEYS_TILE && key < end, key_order(score), key);
        }
        best.finish();
        keys_store<P>(a, best, row, p.splits > 1 ? keys_part<P>(a, at) : nullptr);
    }
}

template <int W, int J, int N>
MC_FN void
top_keys_join(const mc_args &a)
{
    using P = key_search<W, J, N>;
    MC_DYNAMIC_SHARED(bytes);
    const keys_plan p = keys_plan_of(a);
    if (p.splits == 1) return;
    for (i64 row = blockIdx.x; row < a.i[0]; row += gridDim.x) {
        i32 each, seen = keys_seen(a, p, row, each);
        key_buffer<P> best(reinterpret_cast<i32 *>(bytes));
        for (i32 split = 0; split < p.splits && i64(split) * each < seen; split++) {
            const i32 *part = keys_part<P>(a, row * p.splits + split);
            for (i32 first = 0; first < part[0]; first += KEYS_THREADS) {
                i32 i = first + i32(threadIdx.x);
                bool real = i < part[0];
                best.offer(real, real ? part[1 + i] : 0, real ? part[1 + N + i] : 0);
            }
        }
        best.finish();
        keys_store<P>(a, best, row, nullptr);
    }
}
