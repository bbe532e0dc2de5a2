// attention_fma: sdpa and latent_sdpa in f32 FMAs, for operands of any float type and any head size. 128 threads are
// 8 x 16: thread (ty, tx) has rows ty + 8 i and, of a tile of keys, keys tx + 16 j; of the result, four channels from
// 4 tx + 64 c. The 16 threads of a row are half a warp, so a row's maximum and sum need no barrier.
//
//     scores = scale * q . k   one chain in ascending channel      tiles of Q and K in shared memory, as f32
//     p = exp(score - max)     online: max and sum go on from tile to tile
//     acc = acc * alpha + p . v
//
// The tile of V is on its way while scores are computed, that of the next keys while values are added. In latent_sdpa
// the tile of V is the tile of K.
#pragma once
#include "attention.cuh"
#include "vectors.cuh"

// Shared memory, in floats (codegen/gpu/attention.c computes the same).
template <class P, int RM, int BN> struct fma_form {
    static constexpr int ROWS = 8 * RM, KEYS = BN / 16;
    static constexpr int WP = (P::W + 3) / 4 * 4, WS = (WP / 4 | 1) * 4; // rows an odd number of 16 bytes apart
    static constexpr int NC = (P::HV + 63) / 64, VS = P::LATENT ? WS : NC * 64, PS = BN + 4;
    static constexpr int Q = 0, K = ROWS * WS, V = P::LATENT ? K : K + BN * WS;
    static constexpr int SHARES = P::LATENT ? K + BN * WS + 64 : V + BN * VS; // 64: the last row is read in whole 64s
    static constexpr int LIST = SHARES + ROWS * PS;
};

template <int RM, int NC> struct fma_state {
    f32 max[RM], sum[RM];
    i32 low[RM], high[RM];
    f32 acc[RM][NC * 4];
};

// N elements of each of `rows` rows; PAD floats are written, zeros after N and where row(r) is null.
template <typename T, int N, int PAD, int STRIDE, int ROWS, class R>
MC_FN void
fma_load(f32 *to, const T *any, R row)
{
    if constexpr (sizeof(T) == 4 && N % 4 == 0 && PAD == N) {
#pragma unroll 4
        for (i32 i = i32(threadIdx.x); i < ROWS * (N / 4); i += 128) {
            i32 r = i / (N / 4), c = i % (N / 4) * 4;
            const T *from = row(r);
            cp_async16(to + r * STRIDE + c, from ? from + c : any, from != nullptr);
        }
    } else {
#pragma unroll 4
        for (i32 i = i32(threadIdx.x); i < ROWS * PAD; i += 128) {
            i32 r = i / PAD, c = i % PAD;
            const T *from = row(r);
            to[r * STRIDE + c] = from && c < N ? to_float(from[c]) : 0.0f;
        }
    }
}

// The tile of K or V that begins at `first`.
template <class P, int N, int PAD, int STRIDE, int BN, bool LISTED>
MC_FN void
fma_load_keys(f32 *to, const typename P::T *base, i64 step, const i32 *list, i32 first, i32 end)
{
    fma_load<typename P::T, N, PAD, STRIDE, BN>(to, base, [=](i32 r) {
        i32 key = LISTED ? list[r] : first + r < end ? first + r : -1;
        return key >= 0 ? base + i64(key) * step : nullptr;
    });
}

// How a part of a row of Q or K is padded: the first of two parts not at all.
template <class P, class F> struct fma_parts {
    static constexpr int OWN_PAD = P::LATENT ? P::OWN : F::WP, ROT_PAD = F::WP - P::OWN;
};

template <class P, class F, int RM>
MC_FN void
fma_load_q(const mc_args &a, const attend_plan &p, const attend_job &j, f32 *shared)
{
    using T = typename P::T;
    using parts = fma_parts<P, F>;
    const T *q = arg<const T>(a, ATTEND_Q), *rot = arg<const T>(a, ATTEND_Q_ROT);
    fma_load<T, P::OWN, parts::OWN_PAD, F::WS, F::ROWS>(shared + F::Q, q, [=](i32 r) {
        return j.first + r < p.rows ? q + attend_row_index<P>(p, j, r) * P::OWN : nullptr;
    });
    if constexpr (P::LATENT)
        fma_load<T, P::ROT, parts::ROT_PAD, F::WS, F::ROWS>(shared + F::Q + P::OWN, rot, [=](i32 r) {
            return j.first + r < p.rows ? rot + attend_row_index<P>(p, j, r) * P::ROT : nullptr;
        });
}

template <class P, int RM, int BN> struct fma_worker {
    using F = fma_form<P, RM, BN>;
    using T = typename P::T;
    using parts = fma_parts<P, F>;
    static constexpr int NK = F::KEYS, NC = F::NC;

    const mc_args &a;
    const attend_plan &p;
    const attend_job &j;
    f32 *shared;
    const T *k, *v, *k_rot;
    i32 *list;
    fma_state<RM, NC> s;

    MC_FN
    fma_worker(const mc_args &a_, const attend_plan &p_, const attend_job &j_, f32 *shared_)
        : a(a_), p(p_), j(j_), shared(shared_)
    {
        k = attend_base<T>(a, p, j, ATTEND_K, ATTEND_I_K_STATE, j.kv, i64(p.KV) * P::OWN, P::OWN);
        v = attend_base<T>(a, p, j, ATTEND_V, ATTEND_I_V_STATE, j.kv, i64(p.KV) * P::HV, P::HV);
        k_rot = attend_base<T>(a, p, j, ATTEND_K_ROT, ATTEND_I_ROT_STATE, 0, P::ROT, 0);
        list = reinterpret_cast<i32 *>(shared + F::LIST);
    }

    MC_FN i32
    tx() const
    {
        return i32(threadIdx.x & 15);
    }
    MC_FN i32
    ty() const
    {
        return i32(threadIdx.x >> 4);
    }

    MC_FN void
    start()
    {
#pragma unroll
        for (int i = 0; i < RM; i++) {
            i32 r = ty() + 8 * i;
            bool valid = j.first + r < p.rows;
            attend_row_range<P>(p, j, valid ? r : 0, s.low[i], s.high[i]);
            if (!valid) s.high[i] = -1;
            s.max[i] = valid ? attend_start<P>(a, j, r, j.split, s.sum[i]) : ATTEND_LOWEST;
            if (!valid || tx() != 0) s.sum[i] = 0; // of 16 partial sums the first has the sink
#pragma unroll
            for (int c = 0; c < NC * 4; c++) s.acc[i][c] = 0;
        }
    }

    MC_FN void
    load_k(i32 first)
    {
        if (P::SELECT) {
            if (i32(threadIdx.x) < BN) list[threadIdx.x] = attend_key<P>(a, p, j, first + i32(threadIdx.x));
            block_sync();
        }
        i64 step = i64(p.KV) * P::OWN;
        fma_load_keys<P, P::OWN, parts::OWN_PAD, F::WS, BN, P::SELECT>(shared + F::K, k, step, list, first, j.end);
        if constexpr (P::LATENT)
            fma_load_keys<P, P::ROT, parts::ROT_PAD, F::WS, BN, P::SELECT>(shared + F::K + P::OWN, k_rot, P::ROT, list,
                                                                           first, j.end);
        cp_async_commit();
    }

    MC_FN void
    load_v(i32 first)
    {
        if (!P::LATENT)
            fma_load_keys<P, P::HV, (P::HV + 3) / 4 * 4, F::VS, BN, P::SELECT>(shared + F::V, v, i64(p.KV) * P::HV,
                                                                               list, first, j.end);
        cp_async_commit();
    }

    MC_FN void
    dot(f32 (&x)[RM][NK])
    {
        for (int i = 0; i < RM; i++)
            for (int n = 0; n < NK; n++) x[i][n] = 0;
        const f32 *q = shared + F::Q + ty() * F::WS, *key = shared + F::K + tx() * F::WS;
#pragma unroll 2
        for (int c = 0; c < F::WP; c += 4) {
            vec<f32, 4> qv[RM], kv[NK];
#pragma unroll
            for (int i = 0; i < RM; i++) qv[i] = load_vec<4>(q + 8 * i * F::WS + c);
#pragma unroll
            for (int n = 0; n < NK; n++) kv[n] = load_vec<4>(key + 16 * n * F::WS + c);
#pragma unroll
            for (int i = 0; i < RM; i++)
#pragma unroll
                for (int n = 0; n < NK; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) x[i][n] = fmaf(qv[i].v[e], kv[n].v[e], x[i][n]);
        }
    }

    // Products become weights, which go to shared memory; acc is scaled.
    MC_FN void
    weigh(f32 (&x)[RM][NK], i32 first)
    {
        f32 scale = f32(a.f[0]), cap = f32(a.f[1]);
#pragma unroll
        for (int i = 0; i < RM; i++) {
            f32 max = s.max[i];
#pragma unroll
            for (int n = 0; n < NK; n++) {
                i32 slot = tx() + 16 * n, key = P::SELECT ? list[slot] : first + slot < j.end ? first + slot : -1;
                x[i][n] *= scale;
                if (P::SOFTCAP) x[i][n] = cap * tanhf(x[i][n] / cap);
                if (key < s.low[i] || key > s.high[i]) x[i][n] = -INFINITY;
                max = fmaxf(max, x[i][n]);
            }
            for (int mask = 8; mask; mask >>= 1) max = fmaxf(max, shfl_xor(max, mask));
            f32 alpha = expf(s.max[i] - max), sum = s.sum[i] * alpha;
            s.max[i] = max;
            f32 *share = shared + F::SHARES + (ty() + 8 * i) * F::PS + tx();
#pragma unroll
            for (int n = 0; n < NK; n++) {
                f32 weight = expf(x[i][n] - max);
                sum += weight;
                share[16 * n] = weight;
            }
            s.sum[i] = sum;
#pragma unroll
            for (int c = 0; c < NC * 4; c++) s.acc[i][c] *= alpha;
        }
        warp_sync();
    }

    MC_FN void
    add_values()
    {
        const f32 *share = shared + F::SHARES + ty() * F::PS, *value = shared + F::V + tx() * 4;
#pragma unroll 1
        for (int n = 0; n < BN; n += 4) {
            vec<f32, 4> w[RM];
#pragma unroll
            for (int i = 0; i < RM; i++) w[i] = load_vec<4>(share + 8 * i * F::PS + n);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int c = 0; c < NC; c++) {
                    vec<f32, 4> x = load_vec<4>(value + (n + e) * F::VS + 64 * c);
#pragma unroll
                    for (int i = 0; i < RM; i++)
#pragma unroll
                        for (int u = 0; u < 4; u++) s.acc[i][c * 4 + u] = fmaf(w[i].v[e], x.v[u], s.acc[i][c * 4 + u]);
                }
        }
    }

    MC_FN void
    run()
    {
        start();
        if (j.begin >= j.end) return;
        fma_load_q<P, F, RM>(a, p, j, shared);
        load_k(j.begin);
        for (i32 first = j.begin; first < j.end; first += BN) {
            load_v(first);
            f32 x[RM][NK];
            cp_async_wait<1>();
            block_sync();
            dot(x);
            weigh(x, first);
            cp_async_wait<0>();
            block_sync();
            if (!P::LATENT && !P::SELECT && first + BN < j.end) load_k(first + BN);
            add_values();
            block_sync();
            if ((P::LATENT || P::SELECT) && first + BN < j.end) load_k(first + BN);
        }
    }

    // A row's channels of this thread.
    template <typename O>
    MC_FN void
    put(O *row, int i, f32 factor)
    {
#pragma unroll
        for (int c = 0; c < NC; c++) {
            f32 x[4];
            i32 at = tx() * 4 + c * 64;
#pragma unroll
            for (int e = 0; e < 4; e++) x[e] = s.acc[i][c * 4 + e] * factor;
            if (P::HV % 4 == 0) {
                if (at < P::HV) store_floats<P::HV % 4 ? 1 : 4>(row + at, x);
            } else {
                for (int e = 0; e < 4; e++)
                    if (at + e < P::HV) row[at + e] = from_float<O>(x[e]);
            }
        }
    }

    // Rows leave: divided when they are complete, else as a part.
    MC_FN void
    store()
    {
        using O = typename P::O;
#pragma unroll
        for (int i = 0; i < RM; i++) {
            f32 sum = s.sum[i];
            for (int mask = 8; mask; mask >>= 1) sum += shfl_xor(sum, mask);
            i32 r = ty() + 8 * i;
            if (j.first + r >= p.rows) continue;
            if (j.used <= 1) {
                put(arg<O>(a, ATTEND_O) + attend_row_index<P>(p, j, r) * P::HV, i, sum == 0.0f ? 0.0f : 1.0f / sum);
                continue;
            }
            put(attend_part_values<P>(a, j.part, r), i, 1.0f);
            f32 *sums = attend_part_sums<P>(a, j.part, r);
            if (tx() == 0) {
                sums[0] = s.max[i];
                sums[1] = sum;
            }
        }
    }
};

template <class P, int RM, int BN>
MC_FN void
fma_walk(const mc_args &a, const attend_plan &p, f32 *shared)
{
    for (u32 at = blockIdx.x; at < p.items * u32(p.splits); at += gridDim.x) {
        u32 item = at / u32(p.splits), split = at - item * u32(p.splits);
        attend_job j = attend_job_of<P>(p, item, i32(split));
        if (i32(split) >= greater(j.used, 1)) continue;
        attend_trim<P>(a, p, j);
        block_sync();
        fma_worker<P, RM, BN> w(a, p, j, shared);
        w.run();
        w.store();
    }
}

// RM, BN of blocks of rows; FEW_RM, FEW_BN of groups with few rows.
template <class P, int RM, int BN, int FEW_RM, int FEW_BN>
MC_FN void
attend_fma(const mc_args &a)
{
    MC_DYNAMIC_SHARED(bytes);
    f32 *shared = reinterpret_cast<f32 *>(bytes);
    const attend_plan p = attend_plan_of<P>(a);
    if (p.few)
        fma_walk<P, FEW_RM, FEW_BN>(a, p, shared);
    else
        fma_walk<P, RM, BN>(a, p, shared);
}
