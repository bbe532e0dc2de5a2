// gemm_mma: one tile of a product of bf16 or f16 matrices on the tensor cores, with f32 sums. Copies run a few tiles of
// k ahead of the arithmetic, into swizzled shared memory, so that neither copies nor ldmatrix meet a conflict of banks.
//
// Each operand lies in one of two ways:
//   rows     k is contiguous (x, w of a forward product): tile [rows][k]; every row has an address of its own, so rows
//            may be gathered, and one tile may hold rows of two matrices
//   columns  the other axis is contiguous (w of dx, both of dw): tile [k][columns]; the k may be gathered
// and FP8 weights by rows, which become the other operand's type on their way from shared memory to registers.
#pragma once
#include "base.cuh"

/* Tile of M x N, K at a time, copies STAGES - 1 tiles ahead; ACROSS_M x ACROSS_N warps. */
template <int M_, int N_, int K_, int STAGES_, int ACROSS_M_, int ACROSS_N_> struct mma_shape {
    enum {
        M = M_,
        N = N_,
        K = K_,
        STAGES = STAGES_,
        ACROSS_N = ACROSS_N_,
        THREADS = ACROSS_M_ * ACROSS_N_ * 32,
        WARP_M = M_ / ACROSS_M_,
        WARP_N = N_ / ACROSS_N_,
        TILES_M = WARP_M / 16,
        TILES_N = WARP_N / 8
    };
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0 && K_ % 16 == 0, "a warp has whole fragments");
};

MC_FN void
mma(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16)
{
    mma_bf16(d, a, b);
}

MC_FN void
mma(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], f16)
{
    mma_f16(d, a, b);
}

/* Whether the upper half of an f32 is the number in T, cut off. */
template <typename T> struct mma_keeps_top {
    static constexpr bool yes = false;
};
template <> struct mma_keeps_top<bf16> {
    static constexpr bool yes = true;
};

/* ---- operands in shared memory ----------------------------------------------------------------------------------- */

/* Where 16-byte piece `piece` of a line of PIECES pieces lies: lines that are read together use all banks. */
template <int PIECES>
MC_FN i32
swizzled(i32 line, i32 piece)
{
    static_assert(PIECES == 2 || PIECES == 4 || PIECES % 8 == 0, "lines of 32, 64 or k * 128 bytes");
    if (PIECES == 2) return piece ^ (line >> 2 & 1);
    return PIECES == 4 ? piece ^ (line >> 1 & 3) : piece ^ (line & 7);
}

/* COUNT rows, K at a time, of an operand whose k is contiguous. */
template <typename T, int COUNT, int K, int THREADS> struct mma_rows {
    enum {
        PIECE = 16 / sizeof(T),
        PIECES = K / PIECE,
        STEP = THREADS / PIECES,
        EACH = (COUNT + STEP - 1) / STEP,
        BYTES = COUNT * K * int(sizeof(T))
    };
    using type = T;
    static_assert(STEP % 8 == 0, "the swizzle is the same for all pieces of a thread");
    const T *base, *at[EACH];
    i32 row, k, to;

    /* row_at(i): the address of row i of the tile, or null: zeros. */
    template <typename F>
    MC_FN void
    begin(const T *any, F row_at)
    {
        i32 piece = i32(threadIdx.x) % PIECES;
        base = any;
        row = i32(threadIdx.x) / PIECES;
        k = piece * PIECE;
        to = (row * PIECES + swizzled<PIECES>(row, piece)) * PIECE;
        for (int u = 0; u < EACH; u++) at[u] = row + u * STEP < COUNT ? row_at(row + u * STEP) : nullptr;
    }

    MC_FN void
    copy(T *tile, i32 from, i32 end)
    {
        i32 first = from + k;
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            if (COUNT % STEP && row + u * STEP >= COUNT) continue;
            bool valid = at[u] && first < end;
            cp_async16(tile + to + u * STEP * K, valid ? at[u] + first : base, valid);
        }
    }

    MC_FN static const T *
    line(const T *tile, i32 r, i32 piece)
    {
        return tile + (r * PIECES + swizzled<PIECES>(r, piece)) * PIECE;
    }
};

/* K lines of COUNT columns of an operand whose columns are contiguous. */
template <typename T, int COUNT, int K, int THREADS> struct mma_columns {
    enum { PIECES = COUNT / 8, STEP = THREADS / PIECES, EACH = K / STEP, BYTES = COUNT * K * int(sizeof(T)) };
    using type = T;
    static constexpr i32 NOWHERE = 0x40000000; /* a k past every end */
    static_assert(STEP % 8 == 0 && K % STEP == 0, "every thread has as many pieces");
    const T *base;
    const i32 *list;
    i32 stride, k, to, next[EACH];

    /* Column `first` on, of `end` columns; lines from, from + 1 ... come next, those in `lines` if there is such. */
    MC_FN void
    begin(const T *data, i64 row_stride, const i32 *lines, i32 first, i32 end, i32 from, i32 k_end)
    {
        i32 piece = i32(threadIdx.x) % PIECES;
        bool inside = first + piece * 8 < end;
        base = inside ? data + first + piece * 8 : data;
        k = inside ? i32(threadIdx.x) / PIECES : NOWHERE;
        list = lines;
        stride = i32(row_stride);
        i32 line = i32(threadIdx.x) / PIECES;
        to = line * COUNT + swizzled<PIECES>(line, piece) * 8;
        look(from, k_end);
    }

    /* The numbers of the lines of the tile after this one: reading them early hides the wait. */
    MC_FN void
    look(i32 from, i32 end)
    {
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            i32 r = from + k + u * STEP;
            next[u] = r >= end ? -1 : list ? list[r] : r;
        }
    }

    MC_FN void
    copy(T *tile, i32 from, i32 end)
    {
#pragma unroll
        for (int u = 0; u < EACH; u++) {
            bool valid = next[u] >= 0;
            cp_async16(tile + to + u * STEP * COUNT, valid ? base + i64(next[u]) * stride : base, valid);
        }
        look(from + K, end);
    }

    MC_FN static const T *
    line(const T *tile, i32 r, i32 piece)
    {
        return tile + r * COUNT + swizzled<PIECES>(r, piece) * 8;
    }
};

/* ---- fragments --------------------------------------------------------------------------------------------------- */

/* a: 16 rows from r on, 16 k from k on. */
template <typename T, int COUNT, int K, int THREADS>
MC_FN void
fragment_a(u32 (&a)[4], const mma_rows<T, COUNT, K, THREADS> &, const T *tile, i32 r, i32 k)
{
    i32 lane = i32(threadIdx.x & 31);
    ldmatrix_x4(a, mma_rows<T, COUNT, K, THREADS>::line(tile, r + (lane & 15), (k >> 3) + (lane >> 4)));
}

template <typename T, int COUNT, int K, int THREADS>
MC_FN void
fragment_a(u32 (&a)[4], const mma_columns<T, COUNT, K, THREADS> &, const T *tile, i32 r, i32 k)
{
    i32 lane = i32(threadIdx.x & 31), line = k + (lane & 7) + (lane >> 4 << 3);
    ldmatrix_x4_trans(a, mma_columns<T, COUNT, K, THREADS>::line(tile, line, (r >> 3) + (lane >> 3 & 1)));
}

/* Two neighbours of FP8, exactly; but NaN becomes 480. */
template <typename X>
MC_FN u32
f8_pair(const f8e4m3 *at)
{
    vec<u8, 2> two = load_vec<2>(reinterpret_cast<const u8 *>(at));
    u32 low = two.v[0], high = two.v[1];
    f32 factor = bits_f32(u32(127 + 120) << 23);
    f32 x = bits_f32((low & 0x80) << 24 | (low & 0x7F) << 20) * factor;
    f32 y = bits_f32((high & 0x80) << 24 | (high & 0x7F) << 20) * factor;
    if constexpr (mma_keeps_top<X>::yes) return f32_bits(x) >> 16 | (f32_bits(y) & 0xFFFF0000);
    return pack2<X>(x, y);
}

/* b0, b1: 8 columns each, from c on, 16 k from k on. */
template <typename X, typename T, int COUNT, int K, int THREADS>
MC_FN void
fragment_b(u32 (&b0)[2], u32 (&b1)[2], const mma_rows<T, COUNT, K, THREADS> &, const T *tile, i32 c, i32 k)
{
    i32 lane = i32(threadIdx.x & 31);
    if constexpr (sizeof(T) == 2) {
        u32 r[4];
        i32 row = c + (lane & 7) + (lane >> 4 << 3);
        ldmatrix_x4(r, mma_rows<T, COUNT, K, THREADS>::line(tile, row, (k >> 3) + (lane >> 3 & 1)));
        b0[0] = r[0], b0[1] = r[1], b1[0] = r[2], b1[1] = r[3];
    } else {
        for (int half = 0; half < 2; half++) {
            const T *line = mma_rows<T, COUNT, K, THREADS>::line(tile, c + half * 8 + (lane >> 2), k >> 4);
            for (int i = 0; i < 2; i++) (half ? b1 : b0)[i] = f8_pair<X>(line + (lane & 3) * 2 + i * 8);
        }
    }
}

template <typename X, typename T, int COUNT, int K, int THREADS>
MC_FN void
fragment_b(u32 (&b0)[2], u32 (&b1)[2], const mma_columns<T, COUNT, K, THREADS> &, const T *tile, i32 c, i32 k)
{
    u32 r[4];
    i32 lane = i32(threadIdx.x & 31), line = k + (lane & 15);
    ldmatrix_x4_trans(r, mma_columns<T, COUNT, K, THREADS>::line(tile, line, (c >> 3) + (lane >> 4)));
    b0[0] = r[0], b0[1] = r[1], b1[0] = r[2], b1[1] = r[3];
}

/* Two neighbouring k, each times its factor. */
template <typename T>
MC_FN u32
scaled2(u32 two, f32 low, f32 high)
{
    T l{u16(two)}, h{u16(two >> 16)};
    return pack2<T>(low * to_float(l), high * to_float(h));
}

/* ---- the product ------------------------------------------------------------------------------------------------- */

/* What a thread holds of the tile: acc[m][n][i], rows row(m, i), columns column(n) and the next one. */
template <typename S> struct mma_sums {
    f32 v[S::TILES_M][S::TILES_N][4];

    MC_FN void
    clear()
    {
        for (int m = 0; m < S::TILES_M; m++)
            for (int n = 0; n < S::TILES_N; n++)
                for (int i = 0; i < 4; i++) v[m][n][i] = 0;
    }

    MC_FN static i32
    warp_row()
    {
        return i32(threadIdx.x >> 5) / S::ACROSS_N * S::WARP_M;
    }

    MC_FN static i32
    warp_column()
    {
        return i32(threadIdx.x >> 5) % S::ACROSS_N * S::WARP_N;
    }

    MC_FN static i32
    row(int m, int i)
    {
        return warp_row() + m * 16 + (i >> 1) * 8 + i32(threadIdx.x >> 2 & 7);
    }

    MC_FN static i32
    column(int n)
    {
        return warp_column() + n * 8 + i32(threadIdx.x & 3) * 2;
    }
};

/* GATED: b[k] is multiplied by gates[k]. */
template <typename X, typename S, typename A, typename B, bool GATED = false> struct mma_pipe {
    enum { STAGE = A::BYTES + B::BYTES + (GATED ? S::K * 4 : 0), BYTES = STAGE * S::STAGES };
    A a;
    B b;
    const f32 *gates;
    unsigned char *memory;

    MC_FN unsigned char *
    stage(i32 n)
    {
        return memory + n % S::STAGES * STAGE;
    }

    /* Tile number n of k, which are from .. end - 1, if there is one. */
    MC_FN void
    copy(i32 n, i32 from, i32 end)
    {
        i32 k = from + n * S::K;
        if (k < end) {
            unsigned char *to = stage(n);
            a.copy(reinterpret_cast<typename A::type *>(to), k, end);
            b.copy(reinterpret_cast<typename B::type *>(to + A::BYTES), k, end);
            if (GATED && threadIdx.x < S::K) {
                i32 at = k + i32(threadIdx.x);
                reinterpret_cast<f32 *>(to + A::BYTES + B::BYTES)[threadIdx.x] = at < end ? gates[at] : 0;
            }
        }
        cp_async_commit();
    }

    MC_FN void
    scale(u32 (&b)[S::TILES_N][2], const f32 *factors)
    {
        for (int i = 0; i < 2; i++) {
            vec<f32, 2> f = load_vec<2>(factors + (threadIdx.x & 3) * 2 + i * 8);
            for (int n = 0; n < S::TILES_N; n++) b[n][i] = scaled2<X>(b[n][i], f.v[0], f.v[1]);
        }
    }

    MC_FN void
    multiply(mma_sums<S> &sums, i32 n)
    {
        const unsigned char *at = stage(n);
        auto *a_tile = reinterpret_cast<const typename A::type *>(at);
        auto *b_tile = reinterpret_cast<const typename B::type *>(at + A::BYTES);
#pragma unroll
        for (int k = 0; k < S::K; k += 16) {
            u32 fa[S::TILES_M][4], fb[S::TILES_N][2];
#pragma unroll
            for (int m = 0; m < S::TILES_M; m++) fragment_a(fa[m], a, a_tile, sums.warp_row() + m * 16, k);
#pragma unroll
            for (int c = 0; c < S::TILES_N; c += 2)
                fragment_b<X>(fb[c], fb[c + 1], b, b_tile, sums.warp_column() + c * 8, k);
            if (GATED) scale(fb, reinterpret_cast<const f32 *>(at + A::BYTES + B::BYTES) + k);
#pragma unroll
            for (int m = 0; m < S::TILES_M; m++)
#pragma unroll
                for (int c = 0; c < S::TILES_N; c++) mma(sums.v[m][c], fa[m], fb[c], X{});
        }
    }

    /* sums += the product over k = from .. end - 1. after(k) is called when all k below it are in. */
    template <typename F>
    MC_FN void
    run(mma_sums<S> &sums, i32 from, i32 end, F after)
    {
        i32 tiles = (end - from + S::K - 1) / S::K;
        for (i32 n = 0; n < S::STAGES - 1; n++) copy(n, from, end);
        for (i32 n = 0; n < tiles; n++) {
            cp_async_wait<S::STAGES - 2>();
            block_sync();
            copy(n + S::STAGES - 1, from, end);
            multiply(sums, n);
            after(from + (n + 1) * S::K);
        }
        cp_async_wait<0>();
        block_sync();
    }
};
