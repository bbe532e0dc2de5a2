// product_few: products of a few rows (gemv.cuh). A task is a group that has rows, and as many of its columns as the
// block's warps take at a time.
#pragma once
#include "gemv.cuh"
#include "product.cuh"

/* Lines and columns of one task: the lines of a pair are two of gate, then two of up. */
template <typename F> struct few_columns {
    enum { EACH = F::is(PAIR) ? GEMV_LINES / 2 : GEMV_LINES };

    MC_FN static i32
    of_block(i32 split)
    {
        return EACH * GEMV_WARPS / split;
    }
};

/* ROWS or fewer rows from `row` on, and the columns of this warp from `column` on. */
template <typename F, int ROWS>
MC_FN void
few_rows(const product<F> &p, f32 *memory, i32 group, i32 row, i32 end, i32 column, i32 split)
{
    using X = typename F::X;
    using W = typename F::W;
    enum { EACH = few_columns<F>::EACH, V = gemv_piece<W, F::is(ALIGNED)>::n };
    gemv_operands<X, W, ROWS> o;
    o.x = arg<const X>(p.a, 1) + group * p.a.i[6];
    for (int r = 0; r < ROWS; r++) o.row[r] = u32(p.x_line(row + r < end ? row + r : end - 1) * p.a.i[5]);
    for (int half = 0; half < 2; half++) {
        o.w[half] = p.w_line(group, 0, F::is(PAIR) && half);
        o.scale[half] = p.scales(group, 0, F::is(PAIR) && half);
    }
    for (int c = 0; c < GEMV_LINES; c++) {
        i32 line = column + c % EACH < p.n ? column + c % EACH : p.n - 1;
        o.line[c] = u32(line * p.a.i[9]);
        o.scale_line[c] = u32(p.scale_distance(group, line));
    }
    f32 sums[ROWS][GEMV_LINES] = {};
    i32 part = i32(threadIdx.x >> 5) % split;
    gemv_run<ROWS, V>(sums, o, gemv_bound<V>(p.k, part, split), gemv_bound<V>(p.k, part + 1, split));
    gemv_finish(sums, memory, split, [&](i32 r, i32 c, const f32 *at) {
        if (c >= EACH || row + r >= end || column + c >= p.n) return;
        f32 sum = gemv_total<ROWS>(at, split), up = F::is(PAIR) ? gemv_total<ROWS>(at + EACH, split) : 0;
        p.template store<1>(group, row + r, column + c, &sum, &up);
    });
}

template <typename F>
MC_FN void
few_task(const product<F> &p, f32 *memory, i32 group, i32 column, i32 split)
{
    enum { ROWS = sizeof(typename F::W) == 1 ? GEMV_ROWS / 2 : GEMV_ROWS }; /* FP8 takes registers to widen */
    i32 end = p.end_row(group);
    for (i32 row = p.first_row(group); row < end; row += ROWS) {
        if (end - row == 1)
            few_rows<F, 1>(p, memory, group, row, end, column, split);
        else
            few_rows<F, ROWS>(p, memory, group, row, end, column, split);
    }
}

/* The whole product; first: i32[groups + 1] in shared memory. */
template <typename F>
MC_FN void
product_few(const product<F> &p, unsigned char *memory, i32 *first)
{
    using W = typename F::W;
    i64 active = F::is(EXPERTS) && p.rows < p.groups ? p.rows : p.groups;
    i32 split = gemv_split<gemv_piece<W, F::is(ALIGNED)>::n>(active * p.n * (F::is(PAIR) ? 2 : 1), p.k);
    i32 width = few_columns<F>::of_block(split), columns = tiles_of(p.n, width);
    i32 tasks = p.groups * columns;
    if (F::is(EXPERTS)) tasks = schedule_build(first, p.offsets, p.groups, 0x3FFFFFFF, columns);
    for (i32 task = i32(blockIdx.x); task < tasks; task += i32(gridDim.x)) {
        i32 group = F::is(EXPERTS) ? schedule_group(first, p.groups, task) : task / columns;
        i32 at = F::is(EXPERTS) ? task - first[group] : task % columns;
        i32 column = at * width + i32(threadIdx.x >> 5) / split * few_columns<F>::EACH;
        few_task<F>(p, reinterpret_cast<f32 *>(memory), group, column, split);
    }
}
