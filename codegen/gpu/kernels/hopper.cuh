// hopper: the products of product.cuh on sm_90a, where there are rows enough for tiles of 128: a persistent grid of
// blocks of three warpgroups. The first one fills a ring of stages in shared memory, the other two multiply, 64 rows of
// the tile each. For every stage there are two barriers: `full` (its bytes are there) and `empty` (both multipliers are
// done with it); neither side ever waits for the whole block.
//
//   weights  come by the copy engine: bricks of 64 lines x 64 k of the tensor [groups, n, k], swizzled as wgmma reads
//            them. A pair's tile is bricks of gate, then bricks of up, so one wgmma multiplies both, and a thread holds
//            the gate and the up of the same column
//   x        bricks of the copy engine as well. The last tile of a group reads rows of the next group, which nothing is
//            made of, since a row of the result depends on its own row of x alone. Or rows are gathered: then the 128
//            threads of the first warpgroup copy 16 bytes each time to where the same swizzle puts them
//   k        past the end reads as zeros, of both operands
//
// Where there are few rows, or less tiles than half of the multiprocessors, or sizes that this does not take, the grid
// does what the portable kernel would (matmul.cuh). Arguments: those of product.cuh; maps: the weight, the weight of up
// (PAIR), then x (unused where rows are gathered). codegen/gpu/hopper.c has the other side.
#pragma once
#include "matmul.cuh"
#ifdef MC_HOST
#include "hopper_host.cuh"
#else
#include "hopper_ptx.cuh"
#endif

enum {
    HOPPER_ROWS = 128,
    HOPPER_LINES = 256, /* of weights in a tile */
    HOPPER_STAGES = 4,
    HOPPER_GROUP = 128, /* threads of a warpgroup */
    HOPPER_THREADS = 3 * HOPPER_GROUP,
    HOPPER_RELEASES = 8,  /* warps that multiply: each says by itself that it is done with a stage */
    HOPPER_PORTABLE = 256 /* threads of the portable kernel */
};

/* Activations from the instructions for exponents and quotients, good to 2^-19 for |x| up to 20: what is multiplied
 * here has 8 or 11 bits. */
MC_FN f32
quick_sigmoid(f32 x)
{
    return __fdividef(1.0f, 1.0f + __expf(-x));
}

MC_FN f32
quick_silu(f32 x)
{
    return x * quick_sigmoid(x);
}

MC_FN f32
quick_gelu_tanh(f32 x) /* (1 + tanh u) / 2 is the sigmoid of 2 u */
{
    return x * quick_sigmoid(1.59576912160573071f * (x + 0.044715f * (x * x * x)));
}

/* N: lines of weights in a tile, of both weights in a pair. */
template <typename F_, int N_, int STAGES_> struct hopper_shape {
    using F = F_;
    using X = typename F_::X;
    enum {
        TWO = F_::is(PAIR),
        GROUPS = F_::is(EXPERTS),
        N = N_,
        STAGES = STAGES_,
        WIDTH = TWO ? N_ / 2 : N_, /* columns of the result */
        BRICKS = N_ / BRICK_ROWS,
        X_BYTES = HOPPER_ROWS * BRICK_LINE,
        W_BYTES = N_ * BRICK_LINE,
        STAGE = X_BYTES + W_BYTES,
        BYTES = STAGES_ * STAGE + BRICK_ALIGNMENT
    };
    static_assert(sizeof(X) == 2 && sizeof(typename F_::W) == 2, "bricks are of 16-bit elements");
    static_assert(BRICKS % (1 + int(TWO)) == 0, "a pair's tile is half gate, half up");
};

/* What all threads of a block know. */
template <typename S> struct hopper_block {
    const product<typename S::F> &p;
    const mc_maps &maps;
    const i32 *first;
    i32 tiles, row_tiles, columns, steps;
    bool copies;             /* threads gather x */
    u32 memory, full, empty; /* shared addresses: stages, and a barrier of 8 bytes for each */

    MC_FN mc_tile
    tile(i32 n) const
    {
        return S::GROUPS ? schedule_tile(first, p.groups, columns, n) : schedule_local(0, row_tiles, columns, n);
    }

    MC_FN u32
    stage(u32 n) const
    {
        return memory + n * S::STAGE;
    }
};

/* ---- filling ------------------------------------------------------------------------------------------------------
 */

/* What the copy engine brings to a stage, from k on. One thread. */
template <typename S>
MC_FN void
hopper_load(const hopper_block<S> &b, mc_tile t, i32 row, i32 k, u32 stage)
{
    enum { EACH = S::TWO ? S::BRICKS / 2 : S::BRICKS };
    u32 barrier = b.full + stage * 8, to = b.stage(stage);
    barrier_arrive_expect(barrier, b.copies ? S::W_BYTES : S::STAGE);
    if (!b.copies)
        for (int i = 0; i < HOPPER_ROWS / BRICK_ROWS; i++)
            tensor_load(to + i * BRICK_BYTES, b.maps.map[1 + S::TWO], k, row + i * BRICK_ROWS, barrier);
#pragma unroll
    for (int i = 0; i < S::BRICKS; i++)
        tensor_load(to + S::X_BYTES + i * BRICK_BYTES, b.maps.map[i / EACH], k,
                    t.column * S::WIDTH + i % EACH * BRICK_ROWS, t.group, barrier);
}

/* The copy engine brings everything: one thread. */
template <typename S>
MC_FN void
hopper_fill(const hopper_block<S> &b)
{
    ring_place<S::STAGES> at{0, 0};
    for (i32 n = i32(blockIdx.x); n < b.tiles; n += i32(gridDim.x)) {
        mc_tile t = b.tile(n);
        i32 row = b.p.first_row(t.group) + t.row * HOPPER_ROWS;
        for (i32 k = 0; k < b.steps; k++, at.next()) {
            barrier_wait(b.empty + at.stage * 8, at.parity ^ 1);
            hopper_load(b, t, row, k * BRICK_K, at.stage);
        }
    }
}

/* The rows of x that a thread copies; -1: zeros. */
struct hopper_rows {
    i32 at[COPY_EACH];
};

template <typename S>
MC_FN void
hopper_look(const hopper_block<S> &b, hopper_rows &rows, i32 n)
{
    if (n >= b.tiles) return;
    mc_tile t = b.tile(n);
    i32 row = b.p.first_row(t.group) + t.row * HOPPER_ROWS, end = b.p.end_row(t.group);
#pragma unroll
    for (int i = 0; i < COPY_EACH; i++) {
        i32 r = row + i32(copy_row(threadIdx.x, i));
        rows.at[i] = r >= end ? -1 : b.p.list ? b.p.list[r] : r;
    }
}

/* The warpgroup gathers x, and its first thread asks for the weights. The numbers of the next tile's rows are read one
 * tile ahead: nobody waits for them. */
template <typename S>
MC_FN void
hopper_fill_copies(const hopper_block<S> &b)
{
    ring_place<S::STAGES> at{0, 0};
    u32 chunk = copy_chunk(threadIdx.x), to = brick_offset(copy_row(threadIdx.x, 0), chunk);
    const unsigned char *x = static_cast<const unsigned char *>(b.p.a.ptr[1]) + chunk * 16;
    u32 stride = u32(b.p.a.i[5]) * 2;
    hopper_rows rows, next;
    hopper_look(b, next, i32(blockIdx.x));
    for (i32 n = i32(blockIdx.x); n < b.tiles; n += i32(gridDim.x)) {
        mc_tile t = b.tile(n);
        rows = next;
        hopper_look(b, next, n + i32(gridDim.x));
        for (i32 k = 0; k < b.steps; k++, at.next()) {
            barrier_wait(b.empty + at.stage * 8, at.parity ^ 1);
            if (threadIdx.x == 0) hopper_load(b, t, 0, k * BRICK_K, at.stage);
            bool inside = k * BRICK_K + i32(chunk) * 8 < b.p.k;
#pragma unroll
            for (int i = 0; i < COPY_EACH; i++) {
                bool valid = inside && rows.at[i] >= 0;
                const unsigned char *from = x + u64(u32(rows.at[i])) * stride + k * BRICK_LINE;
                copy16(b.stage(at.stage) + to + i * COPY_STEP * BRICK_LINE, valid ? from : x, valid);
            }
            barrier_arrive_copies(b.full + at.stage * 8);
        }
    }
    copies_wait();
}

/* ---- multiplying --------------------------------------------------------------------------------------------------
 */

/* The warp is done with a stage. */
template <typename S>
MC_FN void
hopper_release(const hopper_block<S> &b, u32 stage)
{
    if ((threadIdx.x & 31) == 0) barrier_arrive(b.empty + stage * 8);
}

/* d = the product of rows 64 `half` to 64 `half` + 63 of the tile. A stage is given back when the wgmma after it have
 * been started, so that the tensor cores always have work. */
template <typename S>
MC_FN void
hopper_multiply(const hopper_block<S> &b, ring_place<S::STAGES> &at, u32 half, f32 (&d)[S::N / 2])
{
    u32 before = 0;
    for (i32 k = 0; k < b.steps; k++) {
        barrier_wait(b.full + at.stage * 8, at.parity);
        if (b.copies) fence_async();
        u64 x = wgmma_descriptor(b.stage(at.stage) + half * BRICK_BYTES);
        u64 w = wgmma_descriptor(b.stage(at.stage) + S::X_BYTES);
        wgmma_begin();
#pragma unroll
        for (u32 part = 0; part < BRICK_K / WGMMA_K; part++)
            wgmma<typename S::X, S::N>(d, wgmma_descriptor_k(x, part), wgmma_descriptor_k(w, part), (k | part) != 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (k) hopper_release(b, before);
        before = at.stage;
        at.next();
    }
    wgmma_wait<0>();
    hopper_release(b, before);
}

/* The stages of a tile that has no rows for this warpgroup. */
template <typename S>
MC_FN void
hopper_pass(const hopper_block<S> &b, ring_place<S::STAGES> &at)
{
    for (i32 k = 0; k < b.steps; k++, at.next()) {
        barrier_wait(b.full + at.stage * 8, at.parity);
        warp_sync();
        hopper_release(b, at.stage);
    }
}

MC_FN void
hopper_biased(f32 (&x)[2], const f32 *sums, const f32 *bias, i64 at)
{
    vec<f32, 2> two = {{0, 0}};
    if (bias) two = load_vec<2>(bias + at);
    for (int e = 0; e < 2; e++) x[e] = bias ? add_rn(sums[e], two.v[e]) : sums[e];
}

/* The results of two neighbouring columns, from the sums that begin at `at` (in a pair, the sums of up lie half an
 * accumulator further on). `place`: of the first in y. Not valid: a row that there is not. */
template <typename S>
MC_FN void
hopper_result(const hopper_block<S> &b, const f32 (&d)[S::N / 2], int at, i32 group, i32 column, i64 place, bool valid,
              f32 (&x)[2])
{
    using F = typename S::F;
    i64 lines = i64(group) * b.p.n + column;
    hopper_biased(x, &d[at], arg<const f32>(b.p.a, 4), lines);
    if constexpr (S::TWO) {
        f32 up[2];
        hopper_biased(up, &d[at + S::N / 4], arg<const f32>(b.p.a, 5), lines);
        for (int e = 0; e < 2; e++) x[e] = mul_rn(F::act(x[e]), up[e]);
    }
    const typename F::R *residual = arg<const typename F::R>(b.p.a, 10);
    if (!residual || !valid) return;
    f32 more[2];
    load_floats<2>(residual + place, more);
    for (int e = 0; e < 2; e++) x[e] = add_rn(more[e], x[e]);
}

/* The rows of this warpgroup begin at `row`. A block of 8 columns is inside or outside as a whole, since n is a
 * multiple of 8; results of 16 bits are exchanged between four lanes, so that each stores 16 bytes. */
template <typename S>
MC_FN void
hopper_store(const hopper_block<S> &b, const f32 (&d)[S::N / 2], i32 group, i32 row, i32 end, i32 first_column)
{
    using Y = typename S::F::Y;
    u32 thread = threadIdx.x % HOPPER_GROUP, quad = thread & 3;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        i32 r = row + i32(wgmma_row(thread, h * 2));
        i64 line = b.p.at(group, r, 0);
#pragma unroll
        for (int j = 0; j < S::WIDTH / 8; j += 4) {
            i32 column = first_column + j * 8;
            if (column >= b.p.n) break;
            u32 words[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                i32 mine = first_column + i32(wgmma_column(thread, (j + c) * 4));
                bool valid = r < end && mine < b.p.n;
                f32 x[2] = {0, 0};
                if (mine < b.p.n) hopper_result(b, d, (j + c) * 4 + h * 2, group, mine, line + mine, valid, x);
                if constexpr (sizeof(Y) == 2)
                    words[c] = pack2<Y>(x[0], x[1]);
                else if (valid)
                    store_floats<2>(b.p.y + line + mine, x);
            }
            if constexpr (sizeof(Y) == 2) {
                quad_transpose(words, quad);
                vec<u32, 4> all{{words[0], words[1], words[2], words[3]}};
                i32 mine = column + i32(quad) * 8;
                if (r < end && mine < b.p.n) store_vec(reinterpret_cast<u32 *>(b.p.y + line + mine), all);
            }
        }
    }
}

template <typename S>
MC_FN void
hopper_consume(const hopper_block<S> &b, u32 half)
{
    ring_place<S::STAGES> at{0, 0};
    for (i32 n = i32(blockIdx.x); n < b.tiles; n += i32(gridDim.x)) {
        mc_tile t = b.tile(n);
        i32 row = b.p.first_row(t.group) + t.row * HOPPER_ROWS + i32(half) * BRICK_ROWS, end = b.p.end_row(t.group);
        if (row >= end) {
            hopper_pass(b, at);
            continue;
        }
        f32 d[S::N / 2];
        hopper_multiply(b, at, half, d);
        hopper_store(b, d, t.group, row, end, t.column * S::WIDTH);
    }
}

/* ---- the kernel ---------------------------------------------------------------------------------------------------
 */

template <typename S>
MC_FN void
hopper_run(const product<typename S::F> &p, const mc_maps &maps, unsigned char *memory, i32 *first)
{
    MC_SHARED u64 barriers[2 * S::STAGES];
    u32 aligned = (shared_address(memory) + BRICK_ALIGNMENT - 1) & ~u32(BRICK_ALIGNMENT - 1);
    i32 columns = tiles_of(p.n, S::WIDTH), rows = tiles_of(p.rows, HOPPER_ROWS);
    hopper_block<S> b{p,
                      maps,
                      first,
                      S::GROUPS ? 0 : rows * columns,
                      rows,
                      columns,
                      tiles_of(p.k, BRICK_K),
                      p.list || p.a.i[5] != p.k,
                      aligned,
                      shared_address(barriers),
                      shared_address(barriers + S::STAGES)};
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(b.full + i * 8, b.copies ? COPY_THREADS + 1 : 1); /* 1: of hopper_load */
            barrier_init(b.empty + i * 8, HOPPER_RELEASES);
        }
        barrier_init_done();
        for (int i = 0; i < 1 + S::TWO + !b.copies; i++) tensor_prefetch(maps.map[i]);
    }
    if (S::GROUPS) b.tiles = schedule_build(first, p.offsets, p.groups, HOPPER_ROWS, columns);
    block_sync();
    u32 warpgroup = threadIdx.x / HOPPER_GROUP;
    if (warpgroup == 0) {
        registers_fewer<80>();
        if (b.copies)
            hopper_fill_copies(b);
        else if (threadIdx.x == 0)
            hopper_fill(b);
    } else {
        registers_more<208>();
        hopper_consume(b, warpgroup - 1);
    }
}

/* What the maps and 16-byte accesses say of sizes: one product or experts, dense matrices, rows that are multiples of 8
 * elements. */
template <typename S>
MC_FN bool
hopper_takes(const product<typename S::F> &p)
{
    const i64 *i = p.a.i;
    return (S::GROUPS || p.groups == 1) && i[9] == p.k && i[10] == i64(p.n) * p.k && i[11] == 0 && p.n % 8 == 0 &&
           i[5] % 8 == 0 && i[7] % 8 == 0;
}

/* Whether tiles of 128 rows keep at least half of the grid busy. Of experts, at least half of those that could have
 * rows are taken to have some. */
template <typename S>
MC_FN bool
hopper_worth(const product<typename S::F> &p)
{
    i64 rows = tiles_of(p.rows, HOPPER_ROWS);
    if (S::GROUPS) rows = greater(rows, i64(lesser(p.rows, p.groups)) / 2);
    return p.rows > GEMV_ROWS && rows * tiles_of(p.n, S::WIDTH) * 2 >= i64(gridDim.x);
}

template <typename F>
MC_FN void
hopper(const mc_args &a, const mc_maps &maps)
{
    using S = hopper_shape<F, HOPPER_LINES, HOPPER_STAGES>;
    MC_DYNAMIC_SHARED(memory);
    MC_SHARED i32 first[SCHEDULE_GROUPS + 1];
    product<F> p(a);
    if (hopper_takes<S>(p) && hopper_worth<S>(p)) {
        hopper_run<S>(p, maps, memory, first);
        return;
    }
    if (threadIdx.x >= HOPPER_PORTABLE) return; /* threads that are gone do not count in the barriers of the others */
    if (are_few(p))
        product_few(p, memory, first);
    else
        matmul_mma<mma_middle>(p, memory, first);
}
