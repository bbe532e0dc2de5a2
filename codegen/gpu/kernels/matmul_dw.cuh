// matmul_dw: gradients of weights, dw[g] = sum over the rows r of group g of dy[r]^T (gates[r] x[r]). The number of
// tiles is known before; what differs from group to group is how long the sums are. A gradient is added to, and its
// sums go on from what it holds; where the caller has none (null) nothing is done.
//
// A form: X is the type of dy, W of x, Y of dw; EXPERTS, ALIGNED, EVEN, CORES, GATED, ADD, SPLIT. A gradient of few
// tiles and many rows is SPLIT: every part of the rows is a group, whose sums go to scratch memory, and dw_join adds
// them up in their order.
//
// ptr: dw, dy, x, offsets, rows of dy, rows of x, gates   i: rows, O, I, groups, tiles for the grid
#pragma once
#include "gemm_mma.cuh"
#include "gemm_simt.cuh"
#include "product.cuh"

using mma_dw_great = mma_shape<128, 128, 32, 4, 2, 4>;
using mma_dw_small = mma_shape<64, 64, 64, 4, 2, 4>;

enum { DW_PARTS = 16, DW_PART = 1024 /* rows of a part, at least */ };

MC_FN i32
dw_parts(i64 rows)
{
    i64 parts = rows / DW_PART;
    return parts < 1 ? 1 : parts < DW_PARTS ? i32(parts) : i32(DW_PARTS);
}

template <typename F> struct dw_product {
    using Y = typename F::Y;
    const mc_args &a;
    i32 rows, m, n, groups;

    MC_FN
    dw_product(const mc_args &args)
        : a(args), rows(i32(args.i[0])), m(i32(args.i[1])), n(i32(args.i[2])),
          groups(F::is(SPLIT) ? dw_parts(args.i[0]) : i32(args.i[3]))
    {
    }

    MC_FN i32
    begin(i32 group) const
    {
        if (F::is(SPLIT)) return i32(i64(rows) * group / groups);
        return F::is(EXPERTS) ? arg<const i32>(a, 3)[group] : 0;
    }

    MC_FN i32
    end(i32 group) const
    {
        return F::is(EXPERTS) || F::is(SPLIT) ? begin(group + 1) : rows;
    }

    MC_FN Y *
    at(i32 group, i32 row, i32 column) const
    {
        Y *to = F::is(SPLIT) ? static_cast<Y *>(a.scratch) : arg<Y>(a, 0);
        return to + (i64(group) * m + row) * n + column;
    }

    /* N neighbouring elements: what is there, before the sum; and the sum. */
    template <int N>
    MC_FN void
    load(i32 group, i32 row, i32 column, f32 *x) const
    {
        bool inside = F::is(ADD) && row < m;
        const Y *from = at(group, row, column);
        if (F::is(EVEN) && inside && column + N <= n) {
            load_floats<N>(from, x);
            return;
        }
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = inside && column + i < n ? to_float(from[i]) : 0;
    }

    template <int N>
    MC_FN void
    store(i32 group, i32 row, i32 column, const f32 *x) const
    {
        if (row >= m) return;
        Y *to = at(group, row, column);
        if (F::is(EVEN) && column + N <= n) {
            store_floats<N>(to, x);
            return;
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (column + i < n) to[i] = from_float<Y>(x[i]);
    }
};

template <typename S, typename F>
MC_FN void
dw_mma_tile(const dw_product<F> &p, unsigned char *memory, mc_tile t)
{
    using A = mma_columns<typename F::X, S::M, S::K, S::THREADS>;
    using B = mma_columns<typename F::W, S::N, S::K, S::THREADS>;
    i32 from = p.begin(t.group), end = p.end(t.group), row = t.row * S::M, column = t.column * S::N;
    mma_sums<S> sums;
#pragma unroll
    for (int m = 0; m < S::TILES_M; m++)
#pragma unroll
        for (int n = 0; n < S::TILES_N; n++)
            for (int i = 0; i < 4; i += 2)
                p.template load<2>(t.group, row + sums.row(m, i), column + sums.column(n), &sums.v[m][n][i]);
    mma_pipe<typename F::X, S, A, B, F::is(GATED)> pipe;
    pipe.memory = memory;
    pipe.gates = arg<const f32>(p.a, 6);
    pipe.a.begin(arg<const typename F::X>(p.a, 1), p.m, arg<const i32>(p.a, 4), row, p.m, from, end);
    pipe.b.begin(arg<const typename F::W>(p.a, 2), p.n, arg<const i32>(p.a, 5), column, p.n, from, end);
    pipe.run(sums, from, end, [](i32) {});
#pragma unroll
    for (int m = 0; m < S::TILES_M; m++)
#pragma unroll
        for (int n = 0; n < S::TILES_N; n++)
            for (int i = 0; i < 4; i += 2)
                p.template store<2>(t.group, row + sums.row(m, i), column + sums.column(n), &sums.v[m][n][i]);
}

template <typename S, typename F>
MC_FN void
dw_simt_tile(const dw_product<F> &p, unsigned char *memory, mc_tile t)
{
    using A = simt_columns<S, typename F::X, F::is(ALIGNED)>;
    using B = simt_columns<S, typename F::W, F::is(ALIGNED)>;
    i32 row = t.row * S::SIDE, column = t.column * S::SIDE;
    simt_sums<S> sums;
#pragma unroll
    for (int m = 0; m < S::RUN; m++)
        for (int n = 0; n < S::RUN; n += S::HALF)
            p.template load<S::HALF>(t.group, row + sums.row(m), column + sums.column(n), &sums.v[m][n]);
    simt_pipe<S, A, B> pipe;
    pipe.memory = reinterpret_cast<f32 *>(memory);
    pipe.a.begin(arg<const typename F::X>(p.a, 1), p.m, arg<const i32>(p.a, 4), row, p.m);
    pipe.b.begin(arg<const typename F::W>(p.a, 2), p.n, arg<const i32>(p.a, 5), column, p.n);
    pipe.b.gates = arg<const f32>(p.a, 6);
    pipe.run(sums, p.begin(t.group), p.end(t.group), [](i32) {});
#pragma unroll
    for (int m = 0; m < S::RUN; m++)
        for (int n = 0; n < S::RUN; n += S::HALF)
            p.template store<S::HALF>(t.group, row + sums.row(m), column + sums.column(n), &sums.v[m][n]);
}

/* All tiles of M x N; work(tile) does one. A group without rows changes no gradient. */
template <int M, int N, typename F, typename WORK>
MC_FN void
dw_tiles(const dw_product<F> &p, WORK work)
{
    i32 rows = tiles_of(p.m, M), columns = tiles_of(p.n, N), each = rows * columns;
    for (i32 tile = i32(blockIdx.x); tile < p.groups * each; tile += i32(gridDim.x)) {
        mc_tile t = schedule_local(tile / each, rows, columns, tile % each);
        if (!F::is(ADD) || p.begin(t.group) < p.end(t.group)) work(t);
    }
}

template <typename F>
MC_FN bool
dw_worth(const dw_product<F> &p, i32 side)
{
    return i64(p.groups) * tiles_of(p.m, side) * tiles_of(p.n, side) >= i64(gridDim.x);
}

template <typename F>
MC_FN void
matmul_dw(const mc_args &a)
{
    MC_DYNAMIC_SHARED(memory);
    if (!a.ptr[0]) return;
    dw_product<F> p(a);
    if constexpr (F::is(CORES)) {
        using great = mma_dw_great;
        using small = mma_dw_small;
        if (dw_worth(p, 128))
            dw_tiles<great::M, great::N>(p, [&](mc_tile t) { dw_mma_tile<great>(p, memory, t); });
        else
            dw_tiles<small::M, small::N>(p, [&](mc_tile t) { dw_mma_tile<small>(p, memory, t); });
    } else {
        using great = simt_shape<128>;
        using small = simt_shape<64>;
        if (dw_worth(p, 128))
            dw_tiles<128, 128>(p, [&](mc_tile t) { dw_simt_tile<great>(p, memory, t); });
        else
            dw_tiles<64, 64>(p, [&](mc_tile t) { dw_simt_tile<small>(p, memory, t); });
    }
}

/* The parts of a SPLIT gradient, V neighbouring elements a thread. ptr: dw   i: rows, elements of dw */
template <typename Y, int V, bool ADDED>
MC_FN void
dw_join(const mc_args &a)
{
    i64 at = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * V, size = a.i[1];
    if (!a.ptr[0] || at >= size) return;
    f32 sum[V], part[V];
    Y *to = arg<Y>(a, 0) + at;
    if (ADDED) load_floats<V>(to, sum);
    for (i32 g = 0; g < dw_parts(a.i[0]); g++) {
        load_floats<V>(static_cast<const f32 *>(a.scratch) + g * size + at, part);
#pragma unroll
        for (int i = 0; i < V; i++) sum[i] = ADDED || g ? add_rn(sum[i], part[i]) : part[i];
    }
    store_floats<V>(to, sum);
}
