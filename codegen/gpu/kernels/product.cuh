// product: what the matrix products of a model have in common, whatever kernel does the sums: where rows of x, lines of
// the weight and elements of the result lie, and what happens to a sum before it is stored.
//
// A product has `groups`: one (linear), the experts (each has the rows offsets[g] .. offsets[g + 1] - 1), or heads
// (each has all rows, and its own part of every row).
//
// ptr: y (null: scratch), x, w, w of up, bias, bias of up, scale, scale of up, offsets, rows of x, residual
// i:   rows (experts: of all), k, n, groups, tiles for the grid, then steps in elements: x row, x group, y row, y
// group,
//      w row, w group, first row of w in its group, scale group (scales have ceil(columns of w / 128) a row)
#pragma once
#include "activation.cuh"
#include "schedule.cuh"
#include "vectors.cuh"

enum { PRODUCT_SCALE_SHIFT = 7 };

/* What is known when a kernel is made. */
enum {
    EXPERTS = 1, /* rows of groups come from offsets */
    PAIR = 2,    /* two weights; the result is ACT(gate) * up */
    COLUMNS = 4, /* the sum runs over the weight's rows (dx = dy w), not over its columns (y = x w^T) */
    ALIGNED = 8, /* rows of what is multiplied are multiples of 8 elements */
    EVEN = 16,   /* rows of the result are multiples of 4 elements */
    CORES = 32,  /* by tensor cores: X is bf16 or f16, W the same or FP8 (of 16 elements), ALIGNED */
    GATED = 64,  /* the terms of dw have factors */
    ADD = 128,   /* to what is there (a gradient) */
    SPLIT = 256  /* the sums of dw are made in parts, which lie in scratch memory */
};

/* Element types of x, weight, result and residual; what is known. */
template <typename X_, typename W_, typename Y_, typename R_, int FLAGS_, f32 (*ACT)(f32) = op_silu> struct form {
    using X = X_;
    using W = W_;
    using Y = Y_;
    using R = R_;
    static constexpr int FLAGS = FLAGS_;

    MC_FN static constexpr bool
    is(int flag)
    {
        return (FLAGS_ & flag) != 0;
    }

    MC_FN static f32
    act(f32 x)
    {
        return ACT(x);
    }
};

template <typename F> struct product {
    using X = typename F::X;
    using W = typename F::W;
    using Y = typename F::Y;
    using R = typename F::R;

    const mc_args &a;
    Y *y;
    const i32 *offsets, *list;
    i32 rows, k, n, groups;

    MC_FN
    product(const mc_args &args) : a(args)
    {
        y = args.ptr[0] ? arg<Y>(args, 0) : static_cast<Y *>(args.scratch);
        offsets = arg<const i32>(args, 8);
        list = arg<const i32>(args, 9);
        rows = i32(args.i[0]);
        k = i32(args.i[1]);
        n = i32(args.i[2]);
        groups = i32(args.i[3]);
    }

    /* The rows of a group: numbers of rows of y. */
    MC_FN i32
    first_row(i32 group) const
    {
        return F::is(EXPERTS) ? offsets[group] : 0;
    }

    MC_FN i32
    end_row(i32 group) const
    {
        return F::is(EXPERTS) ? offsets[group + 1] : rows;
    }

    MC_FN i64
    x_line(i32 row) const
    {
        return list ? list[row] : row;
    }

    MC_FN const X *
    x_row(i32 group, i32 row) const
    {
        return arg<const X>(a, 1) + x_line(row) * a.i[5] + group * a.i[6];
    }

    /* Line `line` of the weight of a group; `up`: of the second weight. */
    MC_FN const W *
    w_line(i32 group, i32 line, bool up = false) const
    {
        return arg<const W>(a, up ? 3 : 2) + group * a.i[10] + (line + a.i[11]) * a.i[9];
    }

    /* The number of a line among those that share an array of scales. */
    MC_FN i64
    scale_line(i32 group, i32 line) const
    {
        return line + a.i[11] + (a.i[12] ? 0 : a.i[9] ? group * (a.i[10] / a.i[9]) : 0);
    }

    MC_FN i64
    scale_width() const
    {
        return (a.i[9] + 127) >> PRODUCT_SCALE_SHIFT;
    }

    /* The scales of a line, one for every 128 elements of it; null: none. */
    MC_FN const f32 *
    scales(i32 group, i32 line, bool up = false) const
    {
        const f32 *scale = sizeof(W) == 1 ? arg<const f32>(a, up ? 7 : 6) : nullptr;
        if (!scale) return nullptr;
        return scale + group * a.i[12] + (scale_line(group, line) >> PRODUCT_SCALE_SHIFT) * scale_width();
    }

    /* From the scales of line 0 to those of a line. */
    MC_FN i64
    scale_distance(i32 group, i32 line) const
    {
        i64 first = scale_line(group, 0) >> PRODUCT_SCALE_SHIFT;
        return ((scale_line(group, line) >> PRODUCT_SCALE_SHIFT) - first) * scale_width();
    }

    MC_FN f32
    biased(i32 group, i32 column, f32 sum, bool up = false) const
    {
        const f32 *bias = arg<const f32>(a, up ? 5 : 4);
        return bias ? add_rn(sum, bias[i64(group) * n + column]) : sum;
    }

    MC_FN i64
    at(i32 group, i32 row, i32 column) const
    {
        return row * a.i[7] + group * a.i[8] + column;
    }

    MC_FN f32
    with_residual(i64 place, f32 x) const
    {
        const R *residual = arg<const R>(a, 10);
        return residual ? add_rn(to_float(residual[place]), x) : x;
    }

    /* The result of one element of the sum; up: of the second weight. */
    MC_FN f32
    result(i32 group, i32 column, f32 sum, f32 up) const
    {
        f32 x = biased(group, column, sum);
        if constexpr (F::is(PAIR)) x = mul_rn(F::act(x), biased(group, column, up, true));
        return x;
    }

    /* N neighbouring results of one row; those past n are left out. */
    template <int N>
    MC_FN void
    store(i32 group, i32 row, i32 column, const f32 *sum, const f32 *up) const
    {
        f32 x[N];
        i64 place = at(group, row, column);
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = column + i < n ? with_residual(place + i, result(group, column + i, sum[i], up[i])) : 0;
        if (F::is(EVEN) && column + N <= n) {
            store_floats<N>(y + place, x);
            return;
        }
#pragma unroll
        for (int i = 0; i < N; i++)
            if (column + i < n) y[place + i] = from_float<Y>(x[i]);
    }
};
