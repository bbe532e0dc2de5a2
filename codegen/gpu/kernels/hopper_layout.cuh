// hopper_layout: where everything lies in the products of hopper.cuh, as plain functions: the swizzle of shared memory,
// the descriptors that wgmma reads, the fragment of an accumulator, the ring of stages. Nothing here is an instruction,
// so tests/unit/test_gpu_schedule.c checks these functions as they are. Definitions: PTX ISA, "Asynchronous warpgroup
// level matrix instructions" and "Tensor swizzling modes".
//
// The unit of shared memory is a brick: 64 rows of 64 elements of 16 bits, 128 bytes a row, 8192 bytes. Operands are K
// major (k is contiguous), and a brick holds 64 k of 64 rows; a tile of more rows is bricks one after the other.
#pragma once
#include "base.cuh"

enum {
    BRICK_ROWS = 64,
    BRICK_K = 64,
    BRICK_LINE = BRICK_K * 2, /* bytes: the span of the 128-byte swizzle */
    BRICK_BYTES = BRICK_ROWS * BRICK_LINE,
    BRICK_ALIGNMENT = 1024, /* the swizzle's pattern repeats after 8 rows, and is a function of the address */
    WGMMA_K = 16            /* of one wgmma of 16-bit elements: 32 bytes */
};

/* The offset in a tile of 16-byte chunk `chunk` (8 elements) of row `row`. The 128-byte swizzle of the copy engine and
 * of wgmma: bits 4 to 6 of the address (the chunk) are xored with bits 7 to 9 (the row modulo 8, as tiles begin at
 * multiples of 1024). */
MC_FN u32
brick_offset(u32 row, u32 chunk)
{
    return row * BRICK_LINE + ((chunk ^ (row & 7)) << 4);
}

/* The descriptor of a K-major operand that begins at shared address `address`. Addresses and distances are in units of
 * 16 bytes:
 *   bits  0-13  address
 *   bits 16-29  leading dimension: the distance between halves of k; unused, since 16 k lie within one swizzled line (1
 *               by convention)
 *   bits 32-45  stride dimension: from 8 rows to the next 8: 8 * 128 bytes = 1024
 *   bits 49-51  base offset: 0, the pattern begins at a multiple of 1024
 *   bits 62-63  layout: 1 is the 128-byte swizzle
 * The operand of the next 16 k begins 32 bytes further on: the swizzle works on addresses, so it stays right. */
MC_FN u64
wgmma_descriptor(u32 address)
{
    return u64(address >> 4 & 0x3FFF) | u64(1) << 16 | u64(8 * BRICK_LINE >> 4) << 32 | u64(1) << 62;
}

/* Of the k part `part` (16 k each) of the same operand. */
MC_FN u64
wgmma_descriptor_k(u64 descriptor, u32 part)
{
    return descriptor + (part * WGMMA_K * 2 >> 4);
}

/* Element i of the accumulator of thread `thread` (0 to 127 of its warpgroup): row and column of the 64 x N result.
 * Warp w has rows 16 w to 16 w + 15; of 8 columns, a lane has two neighbours in row lane / 4 and the two in row + 8. */
MC_FN u32
wgmma_row(u32 thread, u32 i)
{
    return (thread >> 5) * 16 + (thread >> 2 & 7) + (i >> 1 & 1) * 8;
}

MC_FN u32
wgmma_column(u32 thread, u32 i)
{
    return (i >> 2) * 8 + (thread & 3) * 2 + (i & 1);
}

/* A place in a ring of STAGES, and the parity of the phase that completes there next: 0 the first time round. */
template <int STAGES> struct ring_place {
    u32 stage, parity;

    MC_FN void
    next()
    {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* The 16-byte pieces of a tile that a thread of 128 copies by itself: chunk copy_chunk(thread) of rows copy_row(thread,
 * 0) to copy_row(thread, 7). Eight neighbouring threads copy the 128 bytes of a row, and since rows are 16 apart the
 * swizzle is the same for all of them. */
enum { COPY_THREADS = 128, COPY_ROWS = 128, COPY_EACH = COPY_ROWS * 8 / COPY_THREADS, COPY_STEP = COPY_THREADS / 8 };

MC_FN u32
copy_chunk(u32 thread)
{
    return thread & 7;
}

MC_FN u32
copy_row(u32 thread, u32 i)
{
    return (thread >> 3) + i * COPY_STEP;
}

/* Four lanes that hold the same row (lane modulo 4 is `quad`) have two columns each of four blocks of 8 columns, packed
 * in a word each. Afterwards a lane has the four words of block `quad`: 8 neighbours, 16 bytes. A transposition of 4 x
 * 4 words in two steps of exchange. */
MC_FN void
quad_transpose(u32 (&w)[4], u32 quad)
{
#pragma unroll
    for (u32 d = 2; d; d >>= 1) { /* lanes with the bit exchange their w[j] for w[j + d] of those without */
        bool high = (quad & d) != 0;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (j & d) continue;
            u32 other = shfl_xor(high ? w[j] : w[j + d], int(d));
            if (high)
                w[j] = other;
            else
                w[j + d] = other;
        }
    }
}
