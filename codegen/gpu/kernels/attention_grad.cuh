// attention_grad: sdpa_grad in f32 FMAs. Attention is computed again block by block, in two kernels that share their
// inner products:
//
//     attend_grad_rows   a block of query rows goes over its keys twice: maximum, sum and the mean of dp; then
//                        ds = p (dp - mean) f' scale and dq += ds k. Leaves maximum, 1 / sum and mean in scratch.
//     attend_grad_keys   a block of keys goes over the query rows that see it: dk += ds q, dv += p dy.
//
// Every sum has a fixed order, so the same input gives the same bits; nothing is added by two blocks. 128 threads are
// 8 x 16: thread (ty, tx) has rows ty + 8 i of the block at work and columns tx + 16 n of the tile that passes by.
//
// ptr: q, k, v, dy, dq, dk, dv   i: as in attention.cuh, then B * KV * keys   f: scale, softcap
#pragma once
#include "attention_fma.cuh"

enum { GRAD_Q, GRAD_K, GRAD_V, GRAD_DY, GRAD_DQ, GRAD_DK, GRAD_DV };

// Shared memory, in floats (codegen/gpu/attention_grad.c computes the same): the block's rows, of W and of HV channels,
// the tile's, then p and ds of every pair.
template <class P, int RM, int BN> struct grad_form {
    static constexpr int ROWS = 8 * RM, NK = BN / 16, PS = BN + 4;
    static constexpr int WP = (P::W + 3) / 4 * 4, VP = (P::HV + 3) / 4 * 4;
    static constexpr int WS = (WP / 4 | 1) * 4, VS = (VP / 4 | 1) * 4, NW = (P::W + 63) / 64, NV = (P::HV + 63) / 64;
    static constexpr int A1 = 0, A2 = A1 + ROWS * WS, B1 = A2 + ROWS * VS, B2 = B1 + BN * WS;
    static constexpr int SHARES = B2 + BN * VS + 64, SLOPES = SHARES + ROWS * PS; // 64: rows are read in whole 64s
};

// The products of RM x NK pairs of rows, each one chain in ascending channel.
template <int RM, int NK, int STRIDE, int N>
MC_FN void
grad_dot(const f32 *rows, const f32 *columns, f32 (&x)[RM][NK])
{
    const f32 *a = rows + (threadIdx.x >> 4) * STRIDE, *b = columns + (threadIdx.x & 15) * STRIDE;
#pragma unroll
    for (int i = 0; i < RM; i++)
#pragma unroll
        for (int n = 0; n < NK; n++) x[i][n] = 0;
#pragma unroll 2
    for (int c = 0; c < N; c += 4) {
        vec<f32, 4> av[RM], bv[NK];
#pragma unroll
        for (int i = 0; i < RM; i++) av[i] = load_vec<4>(a + 8 * i * STRIDE + c);
#pragma unroll
        for (int n = 0; n < NK; n++) bv[n] = load_vec<4>(b + 16 * n * STRIDE + c);
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
            for (int n = 0; n < NK; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) x[i][n] = fmaf(av[i].v[e], bv[n].v[e], x[i][n]);
    }
}

// acc[row] += sum over the tile's BN rows, ascending, of weight[row][.] * tile[.], four channels from 4 tx + 64 c.
template <int RM, int BN, int STRIDE, int NC>
MC_FN void
grad_add(const f32 *weights, const f32 *tile, f32 (&acc)[RM][NC * 4])
{
    const f32 *w = weights + (threadIdx.x >> 4) * (BN + 4), *value = tile + (threadIdx.x & 15) * 4;
#pragma unroll 1
    for (int n = 0; n < BN; n += 4) {
        vec<f32, 4> x[RM];
#pragma unroll
        for (int i = 0; i < RM; i++) x[i] = load_vec<4>(w + 8 * i * (BN + 4) + n);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int c = 0; c < NC; c++) {
                vec<f32, 4> y = load_vec<4>(value + (n + e) * STRIDE + 64 * c);
#pragma unroll
                for (int i = 0; i < RM; i++)
#pragma unroll
                    for (int u = 0; u < 4; u++) acc[i][c * 4 + u] = fmaf(x[i].v[e], y.v[u], acc[i][c * 4 + u]);
            }
    }
}

template <int RM, int NC, int N, class T, class R>
MC_FN void
grad_store(const f32 (&acc)[RM][NC * 4], R row)
{
#pragma unroll
    for (int i = 0; i < RM; i++) {
        T *to = row(i32(threadIdx.x >> 4) + 8 * i);
        if (!to) continue;
#pragma unroll
        for (int c = 0; c < NC * 4; c++) {
            i32 at = i32(threadIdx.x & 15) * 4 + c / 4 * 64 + c % 4;
            if (at < N) to[at] = from_float<T>(acc[i][c]);
        }
    }
}

template <class P, int RM, int BN> struct grad_worker {
    using F = grad_form<P, RM, BN>;
    using T = typename P::T;
    using Y = typename P::O; // of dy

    const mc_args &a;
    const attend_plan &p;
    f32 *shared;
    f32 scale, cap;
    i32 b, kv;

    MC_FN
    grad_worker(const mc_args &a_, const attend_plan &p_, f32 *shared_, i32 b_, i32 kv_)
        : a(a_), p(p_), shared(shared_), scale(f32(a_.f[0])), cap(f32(a_.f[1])), b(b_), kv(kv_)
    {
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

    // Of row r of the group, or of a key.
    MC_FN i64
    query(i32 r) const
    {
        return ((i64(b) * p.S + r / P::G) * p.KV + kv) * P::G + r % P::G;
    }
    MC_FN i64
    key(i32 c) const
    {
        return (i64(b) * p.C + c) * p.KV + kv;
    }

    // Maximum, 1 / sum and mean of a query row.
    MC_FN f32 *
    row_sums(i32 r) const
    {
        return static_cast<f32 *>(a.scratch) + query(r) * 3;
    }

    template <int ROWS>
    MC_FN void
    load_queries(int area1, int area2, i32 first)
    {
        const T *q = arg<const T>(a, GRAD_Q);
        const Y *dy = arg<const Y>(a, GRAD_DY);
        fma_load<T, P::W, F::WP, F::WS, ROWS>(
            shared + area1, q, [=](i32 r) { return first + r < p.rows ? q + query(first + r) * P::W : nullptr; });
        fma_load<Y, P::HV, F::VP, F::VS, ROWS>(
            shared + area2, dy, [=](i32 r) { return first + r < p.rows ? dy + query(first + r) * P::HV : nullptr; });
    }

    template <int ROWS>
    MC_FN void
    load_keys(int area1, int area2, i32 first, i32 end)
    {
        const T *k = arg<const T>(a, GRAD_K), *v = arg<const T>(a, GRAD_V);
        fma_load<T, P::W, F::WP, F::WS, ROWS>(
            shared + area1, k, [=](i32 r) { return first + r < end ? k + key(first + r) * P::W : nullptr; });
        fma_load<T, P::HV, F::VP, F::VS, ROWS>(
            shared + area2, v, [=](i32 r) { return first + r < end ? v + key(first + r) * P::HV : nullptr; });
    }

    MC_FN void
    arrived()
    {
        cp_async_commit();
        cp_async_wait<0>();
        block_sync();
    }

    // Scores and dp of the pairs; slope: what d score / d product is.
    MC_FN void
    pairs(f32 (&x)[RM][F::NK], f32 (&dp)[RM][F::NK])
    {
        grad_dot<RM, F::NK, F::WS, F::WP>(shared + F::A1, shared + F::B1, x);
        grad_dot<RM, F::NK, F::VS, F::VP>(shared + F::A2, shared + F::B2, dp);
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
            for (int n = 0; n < F::NK; n++) {
                x[i][n] *= scale;
                if (P::SOFTCAP) x[i][n] = cap * tanhf(x[i][n] / cap);
            }
    }

    MC_FN f32
    slope(f32 score) const
    {
        if (!P::SOFTCAP) return scale;
        f32 t = score / cap;
        return (1.0f - t) * (1.0f + t) * scale;
    }

    MC_FN void
    range(i32 r, i32 &low, i32 &high) const
    {
        attend_range<P::FLAGS>(p.C, p.window, p.chunk, p.C - p.S + r / P::G, low, high);
        if (r >= p.rows) high = -1;
    }
};

// ---- by rows

template <class P, int RM, int BN> struct grad_rows_worker : grad_worker<P, RM, BN> {
    using base = grad_worker<P, RM, BN>;
    using F = typename base::F;
    using T = typename P::T;
    i32 first, begin, end;
    i32 low[RM], high[RM];
    f32 max[RM], sum[RM], mean[RM];

    MC_FN
    grad_rows_worker(const mc_args &a, const attend_plan &p, f32 *shared, const attend_job &j)
        : base(a, p, shared, j.b, j.kv), first(j.first), begin(j.begin), end(j.end)
    {
#pragma unroll
        for (int i = 0; i < RM; i++) {
            this->range(first + this->ty() + 8 * i, low[i], high[i]);
            max[i] = ATTEND_LOWEST;
            sum[i] = mean[i] = 0;
        }
    }

    MC_FN bool
    sees(int i, int n, i32 c) const
    {
        i32 key = c + this->tx() + 16 * n;
        return key >= low[i] && key <= high[i];
    }

    MC_FN void
    take_sums(i32 c, f32 (&x)[RM][F::NK], const f32 (&dp)[RM][F::NK])
    {
#pragma unroll
        for (int i = 0; i < RM; i++) {
            f32 greatest = max[i];
#pragma unroll
            for (int n = 0; n < F::NK; n++)
                if (sees(i, n, c)) greatest = fmaxf(greatest, x[i][n]);
            for (int mask = 8; mask; mask >>= 1) greatest = fmaxf(greatest, shfl_xor(greatest, mask));
            f32 alpha = expf(max[i] - greatest);
            max[i] = greatest;
            sum[i] *= alpha;
            mean[i] *= alpha;
#pragma unroll
            for (int n = 0; n < F::NK; n++) {
                if (!sees(i, n, c)) continue;
                f32 weight = expf(x[i][n] - greatest);
                sum[i] += weight;
                mean[i] = fmaf(weight, dp[i][n], mean[i]);
            }
        }
    }

    // sum becomes 1 / sum.
    MC_FN void
    finish_sums()
    {
#pragma unroll
        for (int i = 0; i < RM; i++) {
            for (int mask = 8; mask; mask >>= 1) {
                sum[i] += shfl_xor(sum[i], mask);
                mean[i] += shfl_xor(mean[i], mask);
            }
            sum[i] = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
            mean[i] *= sum[i];
            i32 r = first + this->ty() + 8 * i;
            if (this->tx() != 0 || r >= this->p.rows) continue;
            f32 *to = this->row_sums(r);
            to[0] = max[i];
            to[1] = sum[i];
            to[2] = mean[i];
        }
    }

    MC_FN void
    give_slopes(i32 c, const f32 (&x)[RM][F::NK], const f32 (&dp)[RM][F::NK])
    {
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
            for (int n = 0; n < F::NK; n++) {
                f32 weight = expf(x[i][n] - max[i]) * sum[i], ds = weight * (dp[i][n] - mean[i]) * this->slope(x[i][n]);
                this->shared[F::SLOPES + (this->ty() + 8 * i) * F::PS + this->tx() + 16 * n] =
                    sees(i, n, c) ? ds : 0.0f;
            }
        warp_sync();
    }

    MC_FN void
    run()
    {
        f32 dq[RM][F::NW * 4], x[RM][F::NK], dp[RM][F::NK];
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
            for (int c = 0; c < F::NW * 4; c++) dq[i][c] = 0;
        this->template load_queries<F::ROWS>(F::A1, F::A2, first);
#pragma unroll 1
        for (int sweep = 0; sweep < 2; sweep++) {
            for (i32 c = begin; c < end; c += BN) {
                block_sync();
                this->template load_keys<BN>(F::B1, F::B2, c, end);
                this->arrived();
                this->pairs(x, dp);
                if (sweep == 0) {
                    take_sums(c, x, dp);
                } else {
                    give_slopes(c, x, dp);
                    grad_add<RM, BN, F::WS, F::NW>(this->shared + F::SLOPES, this->shared + F::B1, dq);
                }
            }
            if (sweep == 0) finish_sums();
        }
        cp_async_commit(); // of a block without keys
        cp_async_wait<0>();
        T *to = arg<T>(this->a, GRAD_DQ);
        grad_store<RM, F::NW, P::W, T>(
            dq, [=](i32 r) { return first + r < this->p.rows ? to + this->query(first + r) * P::W : nullptr; });
    }
};

template <class P, int RM, int BN>
MC_FN void
attend_grad_rows(const mc_args &a)
{
    MC_DYNAMIC_SHARED(bytes);
    attend_plan p = attend_plan_of<P>(a);
    p.splits = 1;
    for (u32 at = blockIdx.x; at < p.items; at += gridDim.x) {
        const attend_job j = attend_job_of<P>(p, at, 0);
        block_sync();
        grad_rows_worker<P, RM, BN> w(a, p, reinterpret_cast<f32 *>(bytes), j);
        w.run();
    }
}

// ---- by keys

template <class P, int RM, int BN> struct grad_keys_worker : grad_worker<P, RM, BN> {
    using base = grad_worker<P, RM, BN>;
    using F = typename base::F;
    using T = typename P::T;
    i32 first, begin, end; // key of the block's row 0; rows of queries that may see some

    MC_FN
    grad_keys_worker(const mc_args &a, const attend_plan &p, f32 *shared, i32 b, i32 kv, i32 first_)
        : base(a, p, shared, b, kv), first(first_)
    {
        i32 last = lesser(first + F::ROWS, p.C) - 1, position = 0,
            past_end = p.C; // positions that see keys first..last
        if (P::FLAGS & ATTEND_CAUSAL) position = first;
        if (P::FLAGS & ATTEND_WINDOW) past_end = i32(lesser(i64(past_end), i64(last) + p.window));
        if (P::FLAGS & ATTEND_CHUNKED) {
            if (P::FLAGS & ATTEND_CAUSAL || first >= p.chunk) position = greater(position, first / p.chunk * p.chunk);
            past_end = i32(lesser(i64(past_end), (i64(last / p.chunk) + 1) * p.chunk));
        }
        begin = greater(position - (p.C - p.S), 0) * P::G;
        end = greater(past_end - (p.C - p.S), 0) * P::G;
        if (position == 0) begin = 0; // queries before the first key may see it
    }

    MC_FN void
    give_weights(i32 c, const f32 (&x)[RM][F::NK], const f32 (&dp)[RM][F::NK])
    {
#pragma unroll
        for (int n = 0; n < F::NK; n++) {
            i32 r = c + this->tx() + 16 * n, low, high;
            this->range(r, low, high);
            const f32 *sums = this->row_sums(lesser(r, this->p.rows - 1));
            f32 max = sums[0], factor = sums[1], mean = sums[2];
#pragma unroll
            for (int i = 0; i < RM; i++) {
                i32 key = first + this->ty() + 8 * i, at = (this->ty() + 8 * i) * F::PS + this->tx() + 16 * n;
                bool seen = key >= low && key <= high;
                f32 weight = expf(x[i][n] - max) * factor, ds = weight * (dp[i][n] - mean) * this->slope(x[i][n]);
                this->shared[F::SHARES + at] = seen ? weight : 0.0f;
                this->shared[F::SLOPES + at] = seen ? ds : 0.0f;
            }
        }
        warp_sync();
    }

    MC_FN void
    run()
    {
        f32 dk[RM][F::NW * 4], dv[RM][F::NV * 4], x[RM][F::NK], dp[RM][F::NK];
#pragma unroll
        for (int i = 0; i < RM; i++) {
#pragma unroll
            for (int c = 0; c < F::NW * 4; c++) dk[i][c] = 0;
#pragma unroll
            for (int c = 0; c < F::NV * 4; c++) dv[i][c] = 0;
        }
        this->template load_keys<F::ROWS>(F::A1, F::A2, first, this->p.C);
        for (i32 c = begin; c < end; c += BN) {
            block_sync();
            this->template load_queries<BN>(F::B1, F::B2, c);
            this->arrived();
            this->pairs(x, dp);
            give_weights(c, x, dp);
            grad_add<RM, BN, F::WS, F::NW>(this->shared + F::SLOPES, this->shared + F::B1, dk);
            grad_add<RM, BN, F::VS, F::NV>(this->shared + F::SHARES, this->shared + F::B2, dv);
        }
        cp_async_commit(); // of keys that nobody sees
        cp_async_wait<0>();
        T *dk_to = arg<T>(this->a, GRAD_DK), *dv_to = arg<T>(this->a, GRAD_DV);
        grad_store<RM, F::NW, P::W, T>(
            dk, [=](i32 r) { return first + r < this->p.C ? dk_to + this->key(first + r) * P::W : nullptr; });
        grad_store<RM, F::NV, P::HV, T>(
            dv, [=](i32 r) { return first + r < this->p.C ? dv_to + this->key(first + r) * P::HV : nullptr; });
    }
};

template <class P, int RM, int BN>
MC_FN void
attend_grad_keys(const mc_args &a)
{
    MC_DYNAMIC_SHARED(bytes);
    const attend_plan p = attend_plan_of<P>(a);
    i32 rows = 8 * RM, blocks = (p.C + rows - 1) / rows;
    for (u32 at = blockIdx.x; at < u32(a.i[ATTEND_I_B]) * u32(p.KV * blocks); at += gridDim.x) {
        u32 group = at / u32(blocks);
        block_sync();
        grad_keys_worker<P, RM, BN> w(a, p, reinterpret_cast<f32 *>(bytes), i32(group / u32(p.KV)),
                                      i32(group % u32(p.KV)), i32(at % u32(blocks)) * rows);
        w.run();
    }
}
