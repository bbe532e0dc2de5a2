// matmul: the products of product.cuh, of any number of rows, by one kernel. How many rows there are is known when it
// runs, and then decides: few rows (gemv.cuh), or tiles, on tensor cores where the form says so, small ones while great
// ones would leave multiprocessors idle or be mostly empty.
#pragma once
#include "gemm_mma.cuh"
#include "gemm_simt.cuh"
#include "product_few.cuh"

using mma_great = mma_shape<128, 128, 32, 4, 2, 4>;
using mma_middle = mma_shape<64, 64, 64, 4, 2, 4>;
using mma_small = mma_shape<32, 64, 64, 5, 2, 4>;
/* FP8 weights need a second set of sums. */
using mma_great_f8 = mma_shape<64, 128, 32, 4, 2, 4>;

template <typename W> struct mma_greatest {
    using shape = mma_great;
};
template <> struct mma_greatest<f8e4m3> {
    using shape = mma_great_f8;
};

/* Columns of the result in a tile of N lines of weights. */
template <typename F>
MC_FN i32
tile_width(i32 lines)
{
    return F::is(PAIR) ? lines / 2 : lines;
}

/* A warp's columns of a pair: the first half are lines of gate, the second of up. Line `c` of the tile is that column,
 * and of the second weight when `up`. SPAN: a warp's columns. */
template <typename F, int SPAN>
MC_FN i32
tile_column(i32 c, bool &up)
{
    if (!F::is(PAIR)) {
        up = false;
        return c;
    }
    up = c % SPAN >= SPAN / 2;
    return c / SPAN * (SPAN / 2) + c % (SPAN / 2);
}

/* ---- tensor cores ------------------------------------------------------------------------------------------------ */

template <typename S, typename F>
MC_FN void
matmul_mma_store(const product<F> &p, const mma_sums<S> &sums, i32 group, i32 row, i32 end, i32 column)
{
    enum { N = F::is(PAIR) ? int(S::TILES_N) / 2 : int(S::TILES_N) };
#pragma unroll
    for (int m = 0; m < S::TILES_M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            i32 r = row + sums.row(m, half * 2);
            if (r >= end) continue;
#pragma unroll
            for (int c = 0; c < N; c++) {
                bool up;
                i32 at = column + tile_column<F, S::WARP_N>(sums.column(c), up);
                const f32 *sum = &sums.v[m][c][half * 2], *other = &sums.v[m][F::is(PAIR) ? c + N : c][half * 2];
                if (at < p.n) p.template store<2>(group, r, at, sum, other);
            }
        }
}

/* The sums of FP8 weights: every 128 k are summed by themselves, and join the total times their scale. */
template <typename S, typename F> struct matmul_promote {
    const f32 *scale, *scale_up;
    mma_sums<S> total;
    i32 k;

    MC_FN void
    operator()(mma_sums<S> &sums, i32 done)
    {
        if (done % 128 && done < k) return;
        i32 at = (done - 1 < k - 1 ? done - 1 : k - 1) >> PRODUCT_SCALE_SHIFT;
        f32 gate = scale ? scale[at] : 1.0f, up = scale_up ? scale_up[at] : 1.0f;
#pragma unroll
        for (int m = 0; m < S::TILES_M; m++)
#pragma unroll
            for (int n = 0; n < S::TILES_N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    f32 factor = F::is(PAIR) && n >= S::TILES_N / 2 ? up : gate;
                    total.v[m][n][i] = fmaf(sums.v[m][n][i], factor, total.v[m][n][i]);
                    sums.v[m][n][i] = 0;
                }
    }
};

template <typename S, typename F, typename PIPE>
MC_FN void
matmul_mma_run(const product<F> &p, PIPE &pipe, i32 group, i32 row, i32 end, i32 column)
{
    mma_sums<S> sums;
    sums.clear();
    if constexpr (sizeof(typename F::W) == 1) {
        matmul_promote<S, F> promote;
        promote.scale = p.scales(group, column);
        promote.scale_up = F::is(PAIR) ? p.scales(group, column, true) : nullptr;
        promote.k = p.k;
        promote.total.clear();
        pipe.run(sums, 0, p.k, [&](i32 done) { promote(sums, done); });
        matmul_mma_store<S>(p, promote.total, group, row, end, column);
    } else {
        pipe.run(sums, 0, p.k, [](i32) {});
        matmul_mma_store<S>(p, sums, group, row, end, column);
    }
}

template <typename S, typename F>
MC_FN void
matmul_mma_tile(const product<F> &p, unsigned char *memory, mc_tile t)
{
    using X = typename F::X;
    using W = typename F::W;
    using A = mma_rows<X, S::M, S::K, S::THREADS>;
    i32 end = p.end_row(t.group), row = p.first_row(t.group) + t.row * S::M, column = t.column * tile_width<F>(S::N);
    auto begin_a = [&](A &a) {
        a.begin(arg<const X>(p.a, 1),
                [&](i32 i) -> const X * { return row + i < end ? p.x_row(t.group, row + i) : nullptr; });
    };
    if constexpr (F::is(COLUMNS)) {
        mma_pipe<X, S, A, mma_columns<W, S::N, S::K, S::THREADS>> pipe;
        pipe.memory = memory;
        begin_a(pipe.a);
        pipe.b.begin(p.w_line(t.group, 0), p.a.i[9], nullptr, column, p.n, 0, p.k);
        matmul_mma_run<S>(p, pipe, t.group, row, end, column);
    } else {
        mma_pipe<X, S, A, mma_rows<W, S::N, S::K, S::THREADS>> pipe;
        pipe.memory = memory;
        begin_a(pipe.a);
        pipe.b.begin(arg<const W>(p.a, 2), [&](i32 i) -> const W * {
            bool up;
            i32 c = column + tile_column<F, S::WARP_N>(i, up);
            return c < p.n ? p.w_line(t.group, c, up) : nullptr;
        });
        matmul_mma_run<S>(p, pipe, t.group, row, end, column);
    }
}

/* ---- multiply-adds ----------------------------------------------------------------------------------------------- */

template <typename S, typename F>
MC_FN void
matmul_simt_store(const product<F> &p, const simt_sums<S> &sums, i32 group, i32 row, i32 end, i32 column)
{
    enum { HALVES = F::is(PAIR) ? 1 : 2 };
#pragma unroll
    for (int m = 0; m < S::RUN; m++) {
        i32 r = row + sums.row(m);
        if (r >= end) continue;
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            i32 c = column + sums.column(h * S::HALF);
            if (c < p.n) p.template store<S::HALF>(group, r, c, &sums.v[m][h * S::HALF], &sums.v[m][S::HALF]);
        }
    }
}

template <typename S, typename F>
MC_FN void
matmul_simt_tile(const product<F> &p, unsigned char *memory, mc_tile t)
{
    using X = typename F::X;
    using W = typename F::W;
    using A = simt_rows<S, X, F::is(ALIGNED)>;
    i32 end = p.end_row(t.group), row = p.first_row(t.group) + t.row * S::SIDE;
    i32 column = t.column * tile_width<F>(S::SIDE);
    simt_sums<S> sums;
    sums.clear();
    i32 mine = row + A::row();
    const X *x = mine < end ? p.x_row(t.group, mine) : nullptr;
    if constexpr (F::is(COLUMNS)) {
        using B = simt_columns<S, W, F::is(ALIGNED)>;
        simt_pipe<S, A, B> pipe;
        pipe.memory = reinterpret_cast<f32 *>(memory);
        pipe.a.begin(x, nullptr);
        pipe.b.begin(p.w_line(t.group, 0), p.a.i[9], nullptr, column, p.n);
        pipe.b.scales_of(p.scales(t.group, 0), p.scale_line(t.group, 0), p.scale_width(), column);
        pipe.run(sums, 0, p.k, [](i32) {});
    } else {
        using B = simt_rows<S, W, F::is(ALIGNED)>;
        simt_pipe<S, A, B> pipe;
        pipe.memory = reinterpret_cast<f32 *>(memory);
        pipe.a.begin(x, nullptr);
        bool up;
        i32 c = column + tile_column<F, S::SIDE>(B::row(), up);
        pipe.b.begin(c < p.n ? p.w_line(t.group, c, up) : nullptr, p.scales(t.group, c < p.n ? c : 0, up));
        pipe.run(sums, 0, p.k, [](i32) {});
    }
    matmul_simt_store<S>(p, sums, t.group, row, end, column);
}

/* ---- the kernel -------------------------------------------------------------------------------------------------- */

/* All tiles of M rows and N lines; work(tile) does one. */
template <int M, int N, typename F, typename WORK>
MC_FN void
matmul_tiles(const product<F> &p, i32 *first, WORK work)
{
    i32 columns = tiles_of(p.n, tile_width<F>(N)), rows = tiles_of(p.rows, M), each = rows * columns;
    i32 tiles = F::is(EXPERTS) ? schedule_build(first, p.offsets, p.groups, M, columns) : p.groups * each;
    for (i32 tile = i32(blockIdx.x); tile < tiles; tile += i32(gridDim.x))
        work(F::is(EXPERTS) ? schedule_tile(first, p.groups, columns, tile)
                            : schedule_local(tile / each, rows, columns, tile % each));
}

template <typename S, typename F>
MC_FN void
matmul_mma(const product<F> &p, unsigned char *memory, i32 *first)
{
    matmul_tiles<S::M, S::N>(p, first, [&](mc_tile t) { matmul_mma_tile<S>(p, memory, t); });
}

template <typename S, typename F>
MC_FN void
matmul_simt(const product<F> &p, unsigned char *memory, i32 *first)
{
    matmul_tiles<S::SIDE, S::SIDE>(p, first, [&](mc_tile t) { matmul_simt_tile<S>(p, memory, t); });
}

/* Whether tiles of m x n keep the grid busy, and have more than half of their rows. */
template <typename F>
MC_FN bool
worth(const product<F> &p, i32 m, i32 n)
{
    i32 rows = F::is(EXPERTS) ? p.rows / p.groups : p.rows;
    i64 tiles = i64(F::is(EXPERTS) ? 1 : p.groups) * tiles_of(p.rows, m) * tiles_of(p.n, tile_width<F>(n));
    return rows * 2 > m && tiles * 2 >= i64(gridDim.x);
}

/* Whether rows are so few that gemv.cuh is faster: on average, where experts share them. */
template <typename F>
MC_FN bool
are_few(const product<F> &p)
{
    i32 most = F::is(CORES) ? GEMV_ROWS : 2 * GEMV_ROWS;
    return !F::is(COLUMNS) && (p.rows <= most || (F::is(EXPERTS) && p.rows < GEMV_ROWS * p.groups));
}

template <typename F>
MC_FN void
matmul(const mc_args &a)
{
    MC_DYNAMIC_SHARED(memory);
    MC_SHARED i32 first[SCHEDULE_GROUPS + 1];
    product<F> p(a);
    if (are_few(p)) {
        product_few(p, memory, first);
    } else if constexpr (F::is(CORES)) {
        using great = typename mma_greatest<typename F::W>::shape;
        if (worth(p, great::M, great::N)) {
            matmul_mma<great>(p, memory, first);
            return;
        }
        if constexpr (sizeof(typename F::W) == 2) { /* the great shape of FP8 is a middle one */
            if (worth(p, mma_middle::M, mma_middle::N)) {
                matmul_mma<mma_middle>(p, memory, first);
                return;
            }
        }
        matmul_mma<mma_small>(p, memory, first);
    } else {
        if (worth(p, 128, 128))
            matmul_simt<simt_shape<128>>(p, memory, first);
        else
            matmul_simt<simt_shape<64>>(p, memory, first);
    }
}
