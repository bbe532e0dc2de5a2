// attention: what the two forms of sdpa and latent_sdpa share (attention_fma.cuh for f32 and odd sizes,
// attention_mma.cuh on tensor cores): which rows meet which keys, and how the keys of few rows are dealt to many
// blocks.
//
// The rows of a group are the (position, query head) pairs that share a key head: they read the same keys. A group is
// cut into blocks of rows; a block of rows is an item. When items are few, as in decoding, the keys of every item are
// dealt to several thread blocks (splits), which leave their part in scratch; attend_join adds the parts in ascending
// order. How many splits there may be depends on the numbers of rows alone, which the host knows; where they lie
// depends on the number of cached positions, which is read here. So the launch never changes.
//
// ptr: q, k, v, o, sinks, select, q_rot, k_rot   i: below   f: scale, softcap
#pragma once
#include "base.cuh"

enum {
    ATTEND_CAUSAL = 1,
    ATTEND_WINDOW = 2,
    ATTEND_CHUNKED = 4,
    ATTEND_SOFTCAP = 8,
    ATTEND_SINKS = 16,
    ATTEND_SELECT = 32
};
enum { ATTEND_Q, ATTEND_K, ATTEND_V, ATTEND_O, ATTEND_SINK, ATTEND_LIST, ATTEND_Q_ROT, ATTEND_K_ROT };
enum {
    ATTEND_I_ROWS,
    ATTEND_I_B,
    ATTEND_I_S,
    ATTEND_I_KV,
    ATTEND_I_C,
    ATTEND_I_GROWS,
    ATTEND_I_WINDOW,
    ATTEND_I_CHUNK,
    ATTEND_I_K_STATE,
    ATTEND_I_V_STATE,
    ATTEND_I_SELECT,
    ATTEND_I_ROT_STATE
};
enum {
    ATTEND_PARTS = 256, // items times splits when keys are split
    ATTEND_LEAST = 128  // keys of a split
};

// Stands for -inf where a finite number is needed: exp(anything - it) is never of inf - inf.
#define ATTEND_LOWEST (-1e30f)

// T: of q, k and v; O: of the result. W channels of q and k, HV of v; ROT of W lie apart (latent_sdpa, where the others
// are the value too). G query heads share a key head. TILE rows are a block of rows, FEW when a group has no more.
template <typename T_, typename O_, int W_, int HV_, int ROT_, int G_, int FLAGS_, int TILE_, int FEW_>
struct attention {
    using T = T_;
    using O = O_;
    static constexpr int W = W_, HV = HV_, ROT = ROT_, G = G_, FLAGS = FLAGS_, TILE = TILE_, FEW = FEW_,
                         OWN = W_ - ROT_;
    static constexpr bool LATENT = ROT_ > 0, SELECT = FLAGS_ & ATTEND_SELECT, SINKS = FLAGS_ & ATTEND_SINKS,
                          SOFTCAP = FLAGS_ & ATTEND_SOFTCAP;
};

struct attend_plan {
    i32 S, C, KV, n_select;
    i32 rows;               // of a group
    i32 block_rows, blocks; // rows of an item, items of a group
    i32 splits;
    u32 items;
    bool few;
    i32 window, chunk;
};

struct attend_job {
    i32 b, kv, s0, first; // row r of the item: position s0 + (first + r) / G, head (first + r) mod G
    i32 begin, end;       // the keys (or slots of the list) to visit
    i32 split, used;      // its number; splits that have keys; at most 1: the result is written at once
    i64 part;             // its place in scratch
};

template <class P>
MC_FN attend_plan
attend_plan_of(const mc_args &a)
{
    attend_plan p;
    p.S = i32(a.i[ATTEND_I_S]);
    p.C = i32(a.i[ATTEND_I_C] + (a.i[ATTEND_I_GROWS] ? past(a) : 0));
    p.KV = i32(a.i[ATTEND_I_KV]);
    p.n_select = i32(a.i[ATTEND_I_SELECT]);
    p.window = i32(a.i[ATTEND_I_WINDOW]);
    p.chunk = i32(a.i[ATTEND_I_CHUNK]);
    p.rows = P::SELECT ? P::G : p.S * P::G;
    p.few = p.rows <= P::FEW;
    p.block_rows = p.few ? P::FEW : P::TILE;
    p.blocks = (p.rows + p.block_rows - 1) / p.block_rows;
    p.items = u32(a.i[ATTEND_I_B]) * u32(p.KV * (P::SELECT ? p.S : 1) * p.blocks);
    p.splits = p.items >= u32(ATTEND_PARTS) || p.items == 0 ? 1 : i32(ATTEND_PARTS / p.items);
    return p;
}

// The keys that a query at `position` may see, low to high.
template <int FLAGS>
MC_FN void
attend_range(i32 C, i32 window, i32 chunk, i32 position, i32 &low, i32 &high)
{
    low = 0;
    high = FLAGS & ATTEND_CAUSAL ? position : C - 1;
    if (FLAGS & ATTEND_WINDOW) low = greater(low, position - window + 1);
    if (FLAGS & ATTEND_CHUNKED) {
        i32 begin = position / chunk * chunk;
        low = greater(low, begin);
        high = lesser(high, begin > C - chunk ? C - 1 : begin + chunk - 1);
    }
    high = lesser(high, C - 1);
}

template <class P>
MC_FN void
attend_row_range(const attend_plan &p, const attend_job &j, i32 r, i32 &low, i32 &high)
{
    attend_range<P::FLAGS>(p.C, p.window, p.chunk, p.C - p.S + j.s0 + (j.first + r) / P::G, low, high);
}

// Split `split` of item `item`; blocks with the most keys of a causal group come first.
template <class P>
MC_FN attend_job
attend_job_of(const attend_plan &p, u32 item, i32 split)
{
    attend_job j;
    j.split = split;
    j.part = i64(item) * p.splits + split;
    u32 group = item / u32(p.blocks);
    j.first = (p.blocks - 1 - i32(item - group * u32(p.blocks))) * p.block_rows;
    j.s0 = 0;
    if (P::SELECT) {
        j.s0 = i32(group % u32(p.S));
        group /= u32(p.S);
    }
    j.kv = i32(group % u32(p.KV));
    j.b = i32(group / u32(p.KV));
    i32 begin = 0, end = p.n_select;
    if (!P::SELECT) {
        i32 unused, last = lesser(p.block_rows, p.rows - j.first) - 1;
        attend_row_range<P>(p, j, 0, begin, unused);
        attend_row_range<P>(p, j, last, unused, end);
        end++;
    }
    i32 n = greater(end - begin, 0), each = (n + p.splits - 1) / p.splits;
    each = greater((each + 63) / 64 * 64, i32(ATTEND_LEAST));
    if (p.splits == 1) each = greater(n, 1);
    j.used = (n + each - 1) / each;
    i64 at = begin + i64(split) * each;
    j.begin = i32(lesser(at, i64(begin + n)));
    j.end = i32(lesser(at + each, i64(begin + n)));
    return j;
}

template <class P>
MC_FN i64
attend_row_index(const attend_plan &p, const attend_job &j, i32 r)
{
    i64 s = j.s0 + (j.first + r) / P::G;
    return ((i64(j.b) * p.S + s) * p.KV + j.kv) * P::G + (j.first + r) % P::G;
}

// The key of every slot of a tile, -1 where there is none.
template <class P>
MC_FN i32
attend_key(const mc_args &a, const attend_plan &p, const attend_job &j, i32 slot)
{
    if (slot >= j.end) return -1;
    if (!P::SELECT) return slot;
    i32 key = arg<i32>(a, ATTEND_LIST)[(i64(j.b) * p.S + j.s0) * p.n_select + slot];
    return key < p.C ? greater(key, -1) : -1;
}

// Slots of the list up to the last that is used.
template <class P>
MC_FN void
attend_trim(const mc_args &a, const attend_plan &p, attend_job &j)
{
    if (!P::SELECT) return;
    i32 last = j.begin - 1;
    for (i32 slot = j.begin + i32(threadIdx.x); slot < j.end; slot += i32(blockDim.x))
        if (attend_key<P>(a, p, j, slot) >= 0) last = slot;
    j.end = block_max(last) + 1;
}

// Where key 0 of a sequence and key head lies; `step` elements from one position to the next.
template <typename T>
MC_FN const T *
attend_base(const mc_args &a, const attend_plan &p, const attend_job &j, int ptr, int state, i32 kv, i64 step,
            int width)
{
    i64 positions = a.i[state] ? a.cache_cap : i64(p.C);
    return arg<const T>(a, ptr) + i64(j.b) * positions * step + i64(kv) * width;
}

// A sink is a key whose score is known and whose value is 0: the maximum and the sum start from it.
template <class P>
MC_FN f32
attend_start(const mc_args &a, const attend_job &j, i32 r, i64 split, f32 &sum)
{
    sum = 0;
    if (!P::SINKS || split != 0) return ATTEND_LOWEST;
    f32 sink = arg<const f32>(a, ATTEND_SINK)[j.kv * P::G + (j.first + r) % P::G];
    if (sink <= ATTEND_LOWEST) return ATTEND_LOWEST;
    sum = 1;
    return sink;
}

// ---- parts in scratch: maximum and sum of every row, then its values (not divided yet)

template <class P>
MC_FN f32 *
attend_part_sums(const mc_args &a, i64 part, i32 r)
{
    return static_cast<f32 *>(a.scratch) + (part * P::TILE + r) * 2;
}

template <class P>
MC_FN f32 *
attend_part_values(const mc_args &a, i64 part, i32 r)
{
    return static_cast<f32 *>(a.scratch) + i64(ATTEND_PARTS) * P::TILE * 2 + (part * P::TILE + r) * P::HV;
}

enum { JOIN_THREADS = 128 };

// Pieces of V channels; LANES threads take every LANES-th split of the same piece.
template <int HV> struct join_form {
    static constexpr int V = HV % 4 == 0 ? 4 : 1, PIECES = HV / V;
    static constexpr int ACROSS = PIECES < JOIN_THREADS ? PIECES : JOIN_THREADS, LANES = JOIN_THREADS / ACROSS;
};

// The parts' weights to shared memory; what the row is divided by.
template <class P>
MC_FN f32
join_weights(const mc_args &a, const attend_job &j, i32 r, f32 *weights)
{
    f32 max = ATTEND_LOWEST, sum = 0;
    for (i32 s = i32(threadIdx.x); s < j.used; s += JOIN_THREADS)
        max = fmaxf(max, attend_part_sums<P>(a, j.part + s, r)[0]);
    max = block_max(max);
    for (i32 s = i32(threadIdx.x); s < j.used; s += JOIN_THREADS) {
        const f32 *part = attend_part_sums<P>(a, j.part + s, r);
        weights[s] = expf(part[0] - max);
        sum = fmaf(part[1], weights[s], sum);
    }
    return block_sum(sum);
}

// One row: its parts in ascending order, in LANES chains that are added up in order.
template <class P>
MC_FN void
join_row(const mc_args &a, const attend_plan &p, const attend_job &j, i32 r, f32 *weights, f32 *chains)
{
    using F = join_form<P::HV>;
    using O = typename P::O;
    f32 sum = join_weights<P>(a, j, r, weights), factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    O *o = arg<O>(a, ATTEND_O) + attend_row_index<P>(p, j, r) * P::HV;
    i32 lane = i32(threadIdx.x) / F::ACROSS;
    for (i32 first = 0; first < F::PIECES; first += F::ACROSS) {
        i32 piece = first + i32(threadIdx.x) % F::ACROSS;
        bool real = lane < F::LANES && piece < F::PIECES;
        f32 total[F::V] = {};
#pragma unroll 4
        for (i32 s = lane; s < (real ? j.used : 0); s += F::LANES) {
            vec<f32, F::V> x = load_vec<F::V>(attend_part_values<P>(a, j.part + s, r) + piece * F::V);
            for (int e = 0; e < F::V; e++) total[e] = fmaf(weights[s], x.v[e], total[e]);
        }
        for (int e = 0; e < F::V; e++) chains[threadIdx.x * F::V + e] = total[e];
        block_sync();
        for (int e = 0; e < F::V && lane == 0 && real; e++) {
            f32 all = 0;
            for (int l = 0; l < F::LANES; l++) all += chains[(threadIdx.x + l * F::ACROSS) * F::V + e];
            o[piece * F::V + e] = from_float<O>(all * factor);
        }
        block_sync();
    }
}

// A block for every row.
template <class P>
MC_FN void
attend_join(const mc_args &a)
{
    MC_SHARED f32 weights[ATTEND_PARTS];
    MC_SHARED f32 chains[JOIN_THREADS * 4];
    const attend_plan p = attend_plan_of<P>(a);
    if (p.splits == 1) return;
    for (u32 at = blockIdx.x; at < p.items * u32(p.block_rows); at += gridDim.x) {
        u32 item = at / u32(p.block_rows);
        i32 r = i32(at - item * u32(p.block_rows));
        const attend_job j = attend_job_of<P>(p, item, 0);
        if (j.used > 1 && j.first + r < p.rows) join_row<P>(a, p, j, r, weights, chains);
    }
}
