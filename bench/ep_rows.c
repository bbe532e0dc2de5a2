/* What it costs to get rows ready for their ranks, on one core, against copying them: rows in random order packed for
 * the wire, unpacked to random places, and added up, for each way in which f32 travels. GB of f32 a second, best of
 * many, in CPU time: other programs on the machine do not count.
 *
 *     ep_rows [width] */
#define _POSIX_C_SOURCE 200809L
#include "runtime/base/dtype.h"
#include "runtime/ep/ep_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROWS = 4096, REPETITIONS = 25, SUMS = 16 };

typedef struct bench {
    ep_codec codec;
    size_t bytes;
    float *rows, *back;
    unsigned char *wire;
    int32_t *index;
} bench;

static void
copy(bench *b)
{
    memcpy(b->back, b->rows, b->bytes);
}

static void
pack(bench *b)
{
    mc_ep_pack(&b->codec, b->wire, b->rows, b->index, ROWS);
}

static void
unpack(bench *b)
{
    mc_ep_unpack(&b->codec, b->back, b->index, b->wire, ROWS);
}

static void
add(bench *b)
{
    for (int64_t i = 0; i < ROWS; i++)
        mc_ep_add(&b->codec, b->back + i % SUMS * b->codec.width, b->wire + (size_t)i * b->codec.wire_bytes);
}

static double
rate(bench *b, void (*what)(bench *))
{
    double best = 1e9;
    for (int i = 0; i < REPETITIONS; i++) {
        struct timespec from, to;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
        what(b);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
        double seconds = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
        if (seconds < best) best = seconds;
    }
    return (double)b->bytes / best * 1e-9;
}

int
main(int argc, char **argv)
{
    static const moec_dtype wires[] = {MOEC_F32, MOEC_BF16, MOEC_F8E4M3};
    static float values[256];
    int64_t width = argc > 1 ? strtoll(argv[1], NULL, 10) : 2048;
    if (width < 1 || width > 1 << 16) return 1;
    bench b = {.bytes = ROWS * (size_t)width * sizeof(float)};
    b.rows = malloc(b.bytes);
    b.back = malloc(b.bytes);
    b.wire = malloc(b.bytes + ROWS * (size_t)8);
    b.index = malloc(ROWS * sizeof *b.index);
    if (!b.rows || !b.back || !b.wire || !b.index) return 1;
    for (int i = 0; i < 256; i++) values[i] = mc_f8e4m3_to_f32((uint8_t)i);
    for (int64_t i = 0; i < ROWS * width; i++) b.rows[i] = (float)(i % 977) * 0.001f - 0.3f;
    uint64_t state = 7;
    for (int32_t i = 0; i < ROWS; i++) { /* a random permutation, grown */
        state = state * UINT64_C(6364136223846793005) + 1;
        int32_t j = (int32_t)((state >> 33) % (uint64_t)(i + 1));
        b.index[i] = b.index[j];
        b.index[j] = i;
    }
    printf("%d rows of %lld f32; copied %.1f GB/s\n", ROWS, (long long)width, rate(&b, copy));
    for (int i = 0; i < 3; i++) {
        mc_ep_row row = {width, MOEC_F32, wires[i]};
        if (!mc_ep_codec(row, width * 4 + 8, values, &b.codec)) return 1;
        double packed = rate(&b, pack), unpacked = rate(&b, unpack);
        printf("%-8s packed %.1f, unpacked %.1f, added %.1f GB/s of f32\n", moec_dtype_name(wires[i]), packed, unpacked,
               rate(&b, add));
    }
    free(b.rows);
    free(b.back);
    free(b.wire);
    free(b.index);
    return 0;
}
