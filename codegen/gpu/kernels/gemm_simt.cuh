// gemm_simt: one tile of a product whose operands may have any element types, by f32 multiply-adds. Every element is
// one chain in ascending k, as the interpreter makes it. Operands become f32 on their way through registers into shared
// memory, one tile of k ahead of the arithmetic. They lie by rows or by columns, as in gemm_mma.cuh.
#pragma once
#include "vectors.cuh"

/* SIDE x SIDE elements, 16 k at a time, by 256 threads of (SIDE / 16)^2 elements each. */
template <int SIDE_> struct simt_shape {
    enum {
        SIDE = SIDE_,
        K = 16,
        RUN = SIDE_ / 16,  /* elements of each operand that a thread brings for one tile of k */
        HALF = SIDE_ / 32, /* a thread has two runs of so many neighbouring rows, and of columns */
        LINE = SIDE_ + 4,
        BYTES = 2 * 2 * K * LINE * 4
    };
};

/* RUN elements at p as floats; those from `count` on are 0. ALIGNED: all or none are there. */
template <int RUN, bool ALIGNED, typename T>
MC_FN void
simt_load(f32 (&v)[RUN], const T *p, i64 count)
{
    if (ALIGNED && count > 0) {
        load_floats<RUN>(p, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < RUN; i++) v[i] = !ALIGNED && i < count ? to_float(p[i]) : 0;
}

template <int RUN>
MC_FN void
simt_scale(f32 (&v)[RUN], f32 factor)
{
#pragma unroll
    for (int i = 0; i < RUN; i++) v[i] = mul_rn(factor, v[i]);
}

/* A thread's part of an operand by rows: RUN neighbouring k of one row. */
template <typename S, typename T, bool ALIGNED> struct simt_rows {
    const T *at;       /* null: zeros */
    const f32 *scales; /* null: none; otherwise element k is multiplied by scales[k / 128] */

    MC_FN static i32
    row()
    {
        return i32(threadIdx.x) % S::SIDE;
    }

    MC_FN static i32
    k()
    {
        return i32(threadIdx.x) / S::SIDE * S::RUN;
    }

    MC_FN void
    begin(const T *row_address, const f32 *row_scales)
    {
        at = row_address;
        scales = row_scales;
    }

    MC_FN void
    load(f32 (&v)[S::RUN], i32 from, i32 end)
    {
        i64 first = from + k();
        bool there = at && first < end;
        simt_load<S::RUN, ALIGNED>(v, there ? at + first : nullptr, there ? end - first : 0);
        if (there && scales) simt_scale(v, scales[first >> 7]);
    }

    MC_FN static void
    store(f32 *tile, const f32 (&v)[S::RUN])
    {
#pragma unroll
        for (int i = 0; i < S::RUN; i++) tile[(k() + i) * S::LINE + row()] = v[i];
    }
};

/* A thread's part of an operand by columns: RUN neighbouring columns of one k. */
template <typename S, typename T, bool ALIGNED> struct simt_columns {
    const T *base;
    const i32 *list;  /* null: line k is line k */
    const f32 *gates; /* null: none; otherwise line k is multiplied by gates[k] */
    const f32
        *scales; /* null: none; otherwise line k is multiplied by scales[(k + scale_first) / 128 * scale_stride] */
    i64 stride, scale_first, scale_stride;
    i32 left; /* columns from this thread's first one on */

    MC_FN static i32
    column()
    {
        return i32(threadIdx.x) % 16 * S::RUN;
    }

    MC_FN static i32
    k()
    {
        return i32(threadIdx.x) / 16;
    }

    MC_FN void
    begin(const T *data, i64 row_stride, const i32 *lines, i32 first, i32 end)
    {
        base = data + first + column();
        left = end - first - column();
        list = lines;
        gates = nullptr;
        scales = nullptr;
        stride = row_stride;
    }

    /* The scales of the line that shares `line`'s array as number `number`, `width` for every 128 lines. */
    MC_FN void
    scales_of(const f32 *line, i64 number, i64 width, i32 first)
    {
        scales = line && left > 0 ? line + ((first + column()) >> 7) : nullptr;
        scale_first = number & 127;
        scale_stride = width;
    }

    MC_FN void
    load(f32 (&v)[S::RUN], i32 from, i32 end)
    {
        i32 line = from + k();
        bool there = line < end && left > 0;
        simt_load<S::RUN, ALIGNED>(v, base + (there ? list ? list[line] : line : 0) * stride, there ? left : 0);
        if (there && gates) simt_scale(v, gates[line]);
        if (there && scales) simt_scale(v, scales[((line + scale_first) >> 7) * scale_stride]);
    }

    MC_FN static void
    store(f32 *tile, const f32 (&v)[S::RUN])
    {
        store_floats<S::RUN>(tile + k() * S::LINE + column(), v);
    }
};

/* What a thread holds of the tile. */
template <typename S> struct simt_sums {
    f32 v[S::RUN][S::RUN];

    MC_FN void
    clear()
    {
        for (int m = 0; m < S::RUN; m++)
            for (int n = 0; n < S::RUN; n++) v[m][n] = 0;
    }

    MC_FN static i32
    place(i32 thread, int i)
    {
        return i / S::HALF * (S::SIDE / 2) + thread * S::HALF + i % S::HALF;
    }

    MC_FN static i32
    row(int m)
    {
        return place(i32(threadIdx.x) / 16, m);
    }

    MC_FN static i32
    column(int n)
    {
        return place(i32(threadIdx.x) % 16, n);
    }
};

template <typename S, typename A, typename B> struct simt_pipe {
    A a;
    B b;
    f32 *memory; /* [2 stages][a, b][K][LINE] */

    MC_FN f32 *
    stage(i32 n)
    {
        return memory + (n & 1) * (2 * S::K * S::LINE);
    }

    MC_FN void
    multiply(simt_sums<S> &sums, const f32 *tile)
    {
        const f32 *fa = tile + sums.row(0), *fb = tile + S::K * S::LINE + sums.column(0);
#pragma unroll
        for (int k = 0; k < S::K; k++) {
            f32 x[S::RUN], y[S::RUN];
            for (int h = 0; h < 2; h++) {
                load_floats<S::HALF>(fa + k * S::LINE + h * (S::SIDE / 2), x + h * S::HALF);
                load_floats<S::HALF>(fb + k * S::LINE + h * (S::SIDE / 2), y + h * S::HALF);
            }
#pragma unroll
            for (int m = 0; m < S::RUN; m++)
#pragma unroll
                for (int n = 0; n < S::RUN; n++) sums.v[m][n] = fmaf(x[m], y[n], sums.v[m][n]);
        }
    }

    /* sums += the product over k = from .. end - 1. after(k) is called when all k below it are in. */
    template <typename F>
    MC_FN void
    run(simt_sums<S> &sums, i32 from, i32 end, F after)
    {
        f32 x[S::RUN], y[S::RUN];
        a.load(x, from, end);
        b.load(y, from, end);
        for (i32 k = from, n = 0; k < end; k += S::K, n++) {
            f32 *tile = stage(n);
            a.store(tile, x);
            b.store(tile + S::K * S::LINE, y);
            block_sync();
            if (k + S::K < end) {
                a.load(x, k + S::K, end);
                b.load(y, k + S::K, end);
            }
            multiply(sums, tile);
            after(k + S::K);
        }
        block_sync();
    }
};
