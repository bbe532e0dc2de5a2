// attention_mma: sdpa and latent_sdpa on tensor cores, for q, k and v of one 16-bit type. A warp has 16 rows; the four
// warps of a block are WR row groups x WC groups of value channels x WK groups of keys. WK > 1 is for few rows, as in
// decoding: every warp has the same rows and a part of every tile's keys, and the warps' results are joined in shared
// memory at the end. WC > 1 is for values that are too wide for the registers of one warp; its warps compute the same
// scores.
//
// Scores and results are f32 and never leave registers between the two products: the layout of a result of mma is that
// of an operand. The tile of V is on its way while scores are computed, that of the next keys while values are added.
// In latent_sdpa the tile of V is the tile of K.
#pragma once
#include "attention.cuh"

template <typename T> MC_FN void attend_mma(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
MC_FN void
attend_mma<bf16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    const u32 b[2] = {b0, b1};
    mma_bf16(d, a, b);
}

template <>
MC_FN void
attend_mma<f16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1)
{
    const u32 b[2] = {b0, b1};
    mma_f16(d, a, b);
}

// Shared memory, in bytes (codegen/gpu/attention.c computes the same). Rows are an odd number of 16 bytes apart.
template <class P, int WR, int WC, int WK, int BN> struct mma_form {
    static constexpr int ROWS = 16 * WR, QS = P::W + 8, VS = P::LATENT ? QS : P::HV + 8;
    static constexpr int Q = 0, K = ROWS * QS * 2, V = P::LATENT ? K : K + BN * QS * 2, LIST = V + BN * VS * 2;
    static constexpr int NS = BN / WK / 8, NO = P::HV / WC / 8; // results of mma: of scores, of values
    static constexpr int JOIN = P::HV + 8;                      // floats of a row that is joined: values, maximum, sum
    static_assert(WR * WC * WK == 4 && NS % 2 == 0 && NO % 2 == 0 && P::W % 16 == 0, "whole matrices");
};

template <class P, int WR, int WC, int WK, int BN> struct mma_worker {
    using F = mma_form<P, WR, WC, WK, BN>;
    using T = typename P::T;
    using O = typename P::O;
    static constexpr int NS = F::NS, NO = F::NO;
    static constexpr bool HELD = P::W <= 128; // Q stays in registers

    const mc_args &a;
    const attend_plan &p;
    const attend_job &j;
    unsigned char *shared;
    const T *k, *v, *k_rot;
    i32 *list;
    i32 lane, row0, key0, channel0; // of the warp
    i32 inner_low, inner_high;      // keys that all rows see
    f32 max[2], sum[2];             // of rows row0 + lane / 4 and 8 further
    i32 low[2], high[2];
    u32 q[HELD ? P::W / 16 : 1][4];
    f32 acc[NO][4];

    MC_FN
    mma_worker(const mc_args &a_, const attend_plan &p_, const attend_job &j_, unsigned char *shared_)
        : a(a_), p(p_), j(j_), shared(shared_)
    {
        k = attend_base<T>(a, p, j, ATTEND_K, ATTEND_I_K_STATE, j.kv, i64(p.KV) * P::OWN, P::OWN);
        v = attend_base<T>(a, p, j, ATTEND_V, ATTEND_I_V_STATE, j.kv, i64(p.KV) * P::HV, P::HV);
        k_rot = attend_base<T>(a, p, j, ATTEND_K_ROT, ATTEND_I_ROT_STATE, 0, P::ROT, 0);
        list = reinterpret_cast<i32 *>(shared + F::LIST);
        i32 warp = i32(threadIdx.x >> 5);
        lane = i32(threadIdx.x & 31);
        row0 = warp % WR * 16;
        channel0 = warp / WR % WC * (P::HV / WC);
        key0 = warp / (WR * WC) * (BN / WK);
    }

    MC_FN T *
    at(int area) const
    {
        return reinterpret_cast<T *>(shared + area);
    }

    MC_FN void
    start()
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            i32 r = row0 + lane / 4 + 8 * i;
            bool valid = j.first + r < p.rows;
            attend_row_range<P>(p, j, valid ? r : 0, low[i], high[i]);
            if (!valid) high[i] = -1;
            max[i] = valid ? attend_start<P>(a, j, r, j.split, sum[i]) : ATTEND_LOWEST;
            if (!valid || lane % 4 != 0 || key0 != 0) sum[i] = 0; // one of the partial sums has the sink
            if (key0 != 0) max[i] = ATTEND_LOWEST;
        }
#pragma unroll
        for (int n = 0; n < NO; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[n][e] = 0;
        i32 last = lesser(i32(F::ROWS), p.rows - j.first) - 1, unused;
        attend_row_range<P>(p, j, last, inner_low, unused);
        attend_row_range<P>(p, j, 0, unused, inner_high);
        inner_high = P::SELECT || last + 1 < F::ROWS ? -1 : lesser(inner_high, j.end - 1);
    }

    // N elements of each of `rows` rows, zeros where row(r) is null.
    template <int N, int STRIDE, int ROWS, class R>
    MC_FN void
    load(T *to, const T *any, R row)
    {
        for (i32 i = i32(threadIdx.x); i < ROWS * (N / 8); i += 128) {
            i32 r = i / (N / 8), c = i % (N / 8) * 8;
            const T *from = row(r);
            cp_async16(to + r * STRIDE + c, from ? from + c : any, from != nullptr);
        }
    }

    MC_FN void
    load_q()
    {
        const T *own = arg<const T>(a, ATTEND_Q), *rot = arg<const T>(a, ATTEND_Q_ROT);
        load<P::OWN, F::QS, F::ROWS>(at(F::Q), own, [&](i32 r) {
            return j.first + r < p.rows ? own + attend_row_index<P>(p, j, r) * P::OWN : nullptr;
        });
        if constexpr (P::LATENT)
            load<P::ROT, F::QS, F::ROWS>(at(F::Q) + P::OWN, rot, [&](i32 r) {
                return j.first + r < p.rows ? rot + attend_row_index<P>(p, j, r) * P::ROT : nullptr;
            });
    }

    template <int N, int STRIDE>
    MC_FN void
    load_keys(T *to, const T *base, i64 step, i32 first)
    {
        load<N, STRIDE, BN>(to, base, [&](i32 r) {
            i32 key = P::SELECT ? list[r] : first + r < j.end ? first + r : -1;
            return key >= 0 ? base + i64(key) * step : nullptr;
        });
    }

    MC_FN void
    load_k(i32 first)
    {
        if (P::SELECT) {
            if (i32(threadIdx.x) < BN) list[threadIdx.x] = attend_key<P>(a, p, j, first + i32(threadIdx.x));
            block_sync();
        }
        load_keys<P::OWN, F::QS>(at(F::K), k, i64(p.KV) * P::OWN, first);
        if constexpr (P::LATENT) load_keys<P::ROT, F::QS>(at(F::K) + P::OWN, k_rot, P::ROT, first);
        cp_async_commit();
    }

    MC_FN void
    load_v(i32 first)
    {
        if constexpr (!P::LATENT) load_keys<P::HV, F::VS>(at(F::V), v, i64(p.KV) * P::HV, first);
        cp_async_commit();
    }

    MC_FN const T *
    q_address(int step) const
    {
        return at(F::Q) + (row0 + (lane & 15)) * F::QS + step * 16 + (lane >> 4) * 8;
    }

    MC_FN void
    hold_q()
    {
        if constexpr (HELD)
#pragma unroll
            for (int step = 0; step < P::W / 16; step++) ldmatrix_x4(q[step], q_address(step));
    }

    MC_FN void
    dot(f32 (&x)[NS][4])
    {
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[n][e] = 0;
        const T *key = at(F::K) + (key0 + (lane & 7) + (lane >> 4) * 8) * F::QS + (lane >> 3 & 1) * 8;
#pragma unroll
        for (int step = 0; step < P::W / 16; step++) {
            u32 fresh[4];
            if constexpr (!HELD) ldmatrix_x4(fresh, q_address(step));
            const u32(&rows)[4] = HELD ? q[HELD ? step : 0] : fresh;
#pragma unroll
            for (int n = 0; n < NS; n += 2) {
                u32 b[4];
                ldmatrix_x4(b, key + n * 8 * F::QS + step * 16);
                attend_mma<T>(x[n], rows, b[0], b[1]);
                attend_mma<T>(x[n + 1], rows, b[2], b[3]);
            }
        }
    }

    MC_FN void
    mask(f32 (&x)[NS][4], i32 first)
    {
        if (first >= inner_low && first + BN - 1 <= inner_high) return;
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                i32 slot = key0 + n * 8 + (lane & 3) * 2 + (e & 1);
                i32 key = P::SELECT ? list[slot] : first + slot < j.end ? first + slot : -1;
                if (key < low[e >> 1] || key > high[e >> 1]) x[n][e] = -INFINITY;
            }
    }

    // Products become weights; acc is scaled.
    MC_FN void
    weigh(f32 (&x)[NS][4], i32 first)
    {
        const f32 log2e = 1.4426950408889634f;
        f32 scale = f32(a.f[0]), cap = f32(a.f[1]), greatest[2] = {max[0], max[1]}, alpha[2], base[2];
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[n][e] *= scale;
                if (P::SOFTCAP) x[n][e] = cap * tanhf(x[n][e] / cap);
            }
        mask(x, first);
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) greatest[e >> 1] = fmaxf(greatest[e >> 1], x[n][e]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            greatest[i] = fmaxf(greatest[i], shfl_xor(greatest[i], 1));
            greatest[i] = fmaxf(greatest[i], shfl_xor(greatest[i], 2));
            alpha[i] = exp2_near((max[i] - greatest[i]) * log2e);
            base[i] = greatest[i] * log2e;
            max[i] = greatest[i];
            sum[i] *= alpha[i];
        }
#pragma unroll
        for (int n = 0; n < NS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[n][e] = exp2_near(fmaf(x[n][e], log2e, -base[e >> 1]));
                sum[e >> 1] += x[n][e];
            }
#pragma unroll
        for (int n = 0; n < NO; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[n][e] *= alpha[e >> 1];
    }

    MC_FN void
    add_values(const f32 (&x)[NS][4])
    {
        const T *value = at(F::V) + (key0 + (lane & 15)) * F::VS + channel0 + (lane >> 4) * 8;
#pragma unroll
        for (int step = 0; step < NS / 2; step++) {
            const u32 w[4] = {pack2<T>(x[2 * step][0], x[2 * step][1]), pack2<T>(x[2 * step][2], x[2 * step][3]),
                              pack2<T>(x[2 * step + 1][0], x[2 * step + 1][1]),
                              pack2<T>(x[2 * step + 1][2], x[2 * step + 1][3])};
#pragma unroll
            for (int n = 0; n < NO; n += 2) {
                u32 b[4];
                ldmatrix_x4_trans(b, value + step * 16 * F::VS + n * 8);
                attend_mma<T>(acc[n], w, b[0], b[1]);
                attend_mma<T>(acc[n + 1], w, b[2], b[3]);
            }
        }
    }

    MC_FN void
    run()
    {
        start();
        if (j.begin < j.end) {
            load_q();
            load_k(j.begin);
        }
        for (i32 first = j.begin; first < j.end; first += BN) {
            load_v(first);
            f32 x[NS][4];
            cp_async_wait<1>();
            block_sync();
            if (first == j.begin) hold_q();
            dot(x);
            weigh(x, first);
            cp_async_wait<0>();
            block_sync();
            if (!P::LATENT && !P::SELECT && first + BN < j.end) load_k(first + BN);
            add_values(x);
            block_sync();
            if ((P::LATENT || P::SELECT) && first + BN < j.end) load_k(first + BN);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum[i] += shfl_xor(sum[i], 1);
            sum[i] += shfl_xor(sum[i], 2);
        }
    }

    // N pairs of neighbours of a row, 8 channels apart, leave: divided when they are complete, else as a part.
    template <int N, class X>
    MC_FN void
    put(i32 r, i32 channel, f32 greatest, f32 total, X x)
    {
        if (j.used > 1) {
            f32 *to = attend_part_values<P>(a, j.part, r) + channel;
#pragma unroll
            for (int n = 0; n < N; n++) store_vec(to + 8 * n, vec<f32, 2>{{x(n, 0), x(n, 1)}});
            if (channel == 0) store_vec(attend_part_sums<P>(a, j.part, r), vec<f32, 2>{{greatest, total}});
            return;
        }
        f32 factor = total == 0.0f ? 0.0f : 1.0f / total;
        O *to = arg<O>(a, ATTEND_O) + attend_row_index<P>(p, j, r) * P::HV + channel;
#pragma unroll
        for (int n = 0; n < N; n++)
            store_vec(to + 8 * n, vec<O, 2>{{from_float<O>(x(n, 0) * factor), from_float<O>(x(n, 1) * factor)}});
    }

    MC_FN void
    store()
    {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            i32 r = row0 + lane / 4 + 8 * i;
            if (j.first + r >= p.rows) continue;
            put<NO>(r, channel0 + (lane & 3) * 2, max[i], sum[i], [&](int n, int e) { return acc[n][2 * i + e]; });
        }
    }

    // Rows of the warps with different keys are added up in ascending order of the warps.
    MC_FN void
    join()
    {
        f32 *rows = reinterpret_cast<f32 *>(shared) + key0 / (BN / WK) * F::ROWS * F::JOIN;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            f32 *row = rows + (row0 + lane / 4 + 8 * i) * F::JOIN;
#pragma unroll
            for (int n = 0; n < NO; n++)
                store_vec(row + channel0 + n * 8 + (lane & 3) * 2, vec<f32, 2>{{acc[n][2 * i], acc[n][2 * i + 1]}});
            if (channel0 == 0 && (lane & 3) == 0) store_vec(row + P::HV, vec<f32, 2>{{max[i], sum[i]}});
        }
        block_sync();
        for (i32 i = i32(threadIdx.x); i < F::ROWS * (P::HV / 2); i += 128) {
            i32 r = i / (P::HV / 2), c = i % (P::HV / 2) * 2;
            if (j.first + r >= p.rows) continue;
            const f32 *row = reinterpret_cast<const f32 *>(shared) + r * F::JOIN;
            f32 greatest = ATTEND_LOWEST, total = 0, x = 0, y = 0;
            for (int w = 0; w < WK; w++) greatest = fmaxf(greatest, row[w * F::ROWS * F::JOIN + P::HV]);
            for (int w = 0; w < WK; w++) {
                const f32 *from = row + w * F::ROWS * F::JOIN;
                f32 factor = exp2_near((from[P::HV] - greatest) * 1.4426950408889634f);
                total = fmaf(from[P::HV + 1], factor, total);
                x = fmaf(from[c], factor, x);
                y = fmaf(from[c + 1], factor, y);
            }
            put<1>(r, c, greatest, total, [&](int, int e) { return e ? y : x; });
        }
    }
};

template <class P, int WR, int WC, int WK, int BN>
MC_FN void
mma_walk(const mc_args &a, const attend_plan &p, unsigned char *shared)
{
    for (u32 at = blockIdx.x; at < p.items * u32(p.splits); at += gridDim.x) {
        u32 item = at / u32(p.splits), split = at - item * u32(p.splits);
        attend_job j = attend_job_of<P>(p, item, i32(split));
        if (i32(split) >= greater(j.used, 1)) continue;
        attend_trim<P>(a, p, j);
        block_sync();
        mma_worker<P, WR, WC, WK, BN> w(a, p, j, shared);
        w.run();
        if (WK > 1)
            w.join();
        else
            w.store();
    }
}

// WR, WC, BN for blocks of rows; FEW_WK, FEW_BN for groups with few rows (FEW_WK = 0: there are none).
template <class P, int WR, int WC, int BN, int FEW_WK, int FEW_BN>
MC_FN void
attend_cores(const mc_args &a)
{
    MC_DYNAMIC_SHARED(shared);
    const attend_plan p = attend_plan_of<P>(a);
    if constexpr (FEW_WK > 0) {
        if (p.few) {
            mma_walk<P, 1, 4 / FEW_WK, FEW_WK, FEW_BN>(a, p, shared);
            return;
        }
    }
    mma_walk<P, WR, WC, 1, BN>(a, p, shared);
}
