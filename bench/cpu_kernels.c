/* The matrix kernels, as ratios to what the machine can do in the same seconds: a dense tile against the FMA rate, and
 * the two kernels of a MoE layer against FMA rate and read bandwidth.
 *
 *     cpu_kernels [threads [experts top D F]]      defaults: 2 threads, 128 8 2048 768
 *
 * On a shared machine a repetition counts only when a loop of FMAs before and after it ran within 0.7 % of the best
 * ever seen; medians are over those, and "best" is the fastest of all repetitions. Compare the percentages, not
 * absolute numbers of different hours. */
#define _GNU_SOURCE
#include "bench/cpu_limits.h"
#include "codegen/cpu/gemm.h"
#include "codegen/cpu/llvm_emit.h"
#include "runtime/base/clock.h"
#include "runtime/base/dtype.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { WANTED = 9, MOST = 40, N_DENSE = 3, DENSE_ROWS = 480, DENSE_COLUMNS = 1024, WIDE_COLUMNS = 16384 };
static const moec_dtype DENSE[N_DENSE] = {MOEC_BF16, MOEC_F32, MOEC_F8E4M3};

typedef struct bench {
    limits limits;
    moec_kernel_fn *linear[N_DENSE], *up, *down;
    int64_t experts, top, d, f;
    char *w_up, *w_down, *scratch;
    float *x, *h, *y, *gates, *scales;
    int32_t *offsets, *tokens;
    int64_t n_tokens;
} bench;

static uint32_t random_state = 7;

static uint32_t
next_random(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

static void *
big(size_t n_bytes)
{
    size_t page = (size_t)2 << 20, size = (n_bytes + page - 1) / page * page;
    void *p = NULL;
    if (posix_memalign(&p, page, size)) abort();
    madvise(p, size, MADV_HUGEPAGE);
    return p;
}

/* bf16 of magnitude 2^-4 or so, written a 64 KiB pattern at a time. */
static void
fill_weights(char *p, size_t n_bytes)
{
    uint16_t pattern[32768];
    for (size_t i = 0; i < 32768; i++) pattern[i] = (uint16_t)(0x3D00 | (next_random() & 0x807F));
    for (size_t at = 0; at < n_bytes; at += sizeof pattern)
        memcpy(p + at, pattern, n_bytes - at < sizeof pattern ? n_bytes - at : sizeof pattern);
}

static void
fill_floats(float *p, size_t n)
{
    for (size_t i = 0; i < n; i++) p[i] = (float)((int)(next_random() & 0xFFFF) - 32768) / 32768;
}

static int
compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* ---- the layer ------------------------------------------------------------------------------------------------ */

/* Random choices of `top` different experts for each token; lists in order of (expert, token). */
static int64_t
route(bench *b)
{
    int64_t n = b->n_tokens * b->top, active = 0;
    int32_t *choice = malloc((size_t)n * sizeof *choice), *next = calloc((size_t)b->experts, sizeof *next);
    memset(b->offsets, 0, (size_t)(b->experts + 1) * sizeof *b->offsets);
    for (int64_t i = 0; i < n; i++) {
        bool again;
        do {
            choice[i] = (int32_t)(next_random() % (uint32_t)b->experts);
            again = false;
            for (int64_t j = i / b->top * b->top; j < i; j++) again |= choice[j] == choice[i];
        } while (again);
        b->offsets[choice[i] + 1]++;
    }
    for (int64_t e = 0; e < b->experts; e++) {
        active += b->offsets[e + 1] > 0;
        b->offsets[e + 1] += b->offsets[e];
        next[e] = b->offsets[e];
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t r = next[choice[i]]++;
        b->tokens[r] = (int32_t)(i / b->top);
        b->gates[r] = 1.0f / (float)b->top;
    }
    free(choice);
    free(next);
    return active;
}

static moec_kernel_args
layer_args(bench *b, int thread, int n_threads)
{
    moec_kernel_args a = {.thread = thread, .n_threads = n_threads};
    a.ptr[MC_GEMM_OFFSETS] = b->offsets;
    a.ptr[MC_GEMM_TOKENS] = b->tokens;
    a.i[MC_GEMM_ROWS] = b->experts;
    return a;
}

static void
up_job(void *context, int thread, int n_threads)
{
    bench *b = context;
    moec_kernel_args a = layer_args(b, thread, n_threads);
    a.ptr[MC_GEMM_Y] = b->h;
    a.ptr[MC_GEMM_X] = b->x;
    a.ptr[MC_GEMM_W] = b->w_up;
    a.i[MC_GEMM_K] = a.i[MC_GEMM_X_STRIDE] = b->d;
    a.i[MC_GEMM_N] = a.i[MC_GEMM_Y_STRIDE] = b->f;
    b->up(&a);
}

static void
down_job(void *context, int thread, int n_threads)
{
    bench *b = context;
    moec_kernel_args a = layer_args(b, thread, n_threads);
    a.ptr[MC_GEMM_Y] = b->y;
    a.ptr[MC_GEMM_X] = b->h;
    a.ptr[MC_GEMM_W] = b->w_down;
    a.ptr[MC_GEMM_GATES] = b->gates;
    a.i[MC_GEMM_K] = a.i[MC_GEMM_X_STRIDE] = b->f;
    a.i[MC_GEMM_N] = a.i[MC_GEMM_Y_STRIDE] = b->d;
    a.i[MC_GEMM_Y_ROWS] = b->n_tokens;
    b->down(&a);
}

typedef struct sample {
    double seconds, up, bytes_per_second, read;
} sample;

static int
compare_samples(const void *a, const void *b)
{
    double x = ((const sample *)a)->seconds, y = ((const sample *)b)->seconds;
    return x < y ? -1 : x > y;
}

static void
print_layer(const bench *b, const char *what, sample s)
{
    double rate = 6.0 * (double)(b->n_tokens * b->top * b->d * b->f) / s.seconds;
    printf("T %4lld %s: %8.3f ms (up %8.3f)  %6.1f GF/s  %5.1f %% of FMA  %5.1f GB/s  %5.1f %% of a read at %.1f\n",
           (long long)b->n_tokens, what, s.seconds * 1e3, s.up * 1e3, rate * 1e-9, 100 * rate / b->limits.best,
           s.bytes_per_second * 1e-9, 100 * s.bytes_per_second / s.read, s.read * 1e-9);
}

static void
bench_layer(bench *b, int64_t n_tokens)
{
    sample kept[MOST], best = {.seconds = 1e9};
    int n = 0, tries = 0;
    double read_best = 0;
    size_t read_bytes = (size_t)256 << 20, all = (size_t)(b->experts * b->f * b->d * 4);
    if (read_bytes > all) read_bytes = all;
    b->n_tokens = n_tokens;
    for (; n < WANTED && tries < MOST; tries++) {
        int64_t active = route(b);
        sample s = {.read = limits_read(&b->limits, b->w_up, read_bytes)};
        bool quiet = limits_quiet(&b->limits);
        s.up = team_run(b->limits.team, up_job, b);
        s.seconds = s.up + team_run(b->limits.team, down_job, b);
        s.bytes_per_second = 6.0 * (double)(active * b->f * b->d) / s.seconds;
        if (s.read > read_best) read_best = s.read;
        if (s.seconds < best.seconds) best = s;
        if (limits_quiet(&b->limits) && quiet) kept[n++] = s;
    }
    best.read = read_best;
    printf("T %4lld: %d of %d repetitions were quiet\n", (long long)n_tokens, n, tries);
    if (n) {
        qsort(kept, (size_t)n, sizeof *kept, compare_samples);
        print_layer(b, "median", kept[n / 2]);
    }
    print_layer(b, "best  ", best);
}

/* ---- dense ---------------------------------------------------------------------------------------------------- */

typedef struct dense {
    bench *bench;
    int which;
    int64_t m, n, k;
} dense;

static void
dense_job(void *context, int thread, int n_threads)
{
    dense *p = context;
    bench *b = p->bench;
    moec_kernel_args a = {.thread = thread, .n_threads = n_threads};
    a.ptr[MC_GEMM_Y] = b->h;
    a.ptr[MC_GEMM_X] = b->x;
    a.ptr[MC_GEMM_W] = b->w_up;
    a.ptr[MC_GEMM_SCALE] = DENSE[p->which] == MOEC_F8E4M3 ? b->scales : NULL;
    a.i[MC_GEMM_ROWS] = p->m;
    a.i[MC_GEMM_K] = a.i[MC_GEMM_X_STRIDE] = p->k;
    a.i[MC_GEMM_N] = a.i[MC_GEMM_Y_STRIDE] = p->n;
    a.scratch = b->scratch + thread * (p->k * 32 * 4);
    b->linear[p->which](&a);
}

static void
bench_dense(bench *b, int which, int64_t m, int64_t n_columns, int64_t k)
{
    dense p = {b, which, m, n_columns, k};
    double seconds[MOST], best = 1e9;
    int n = 0, tries = 0;
    for (; n < WANTED && tries < MOST; tries++) {
        bool quiet = limits_quiet(&b->limits);
        double t = team_run(b->limits.team, dense_job, &p);
        if (t < best) best = t;
        if (limits_quiet(&b->limits) && quiet) seconds[n++] = t;
    }
    qsort(seconds, (size_t)n, sizeof *seconds, compare_doubles);
    double flop = 2.0 * (double)(m * n_columns * k), rate = flop / (n ? seconds[n / 2] : best);
    printf("linear %-6s M %4lld N %5lld K %5lld: %6.1f GF/s  %5.1f %% of FMA, best %5.1f %%  %5.1f GB/s  (%d of %d)\n",
           moec_dtype_name(DENSE[which]), (long long)m, (long long)n_columns, (long long)k, rate * 1e-9,
           100 * rate / b->limits.best, 100 * flop / best / b->limits.best,
           (double)(n_columns * k) * (double)moec_dtype_bytes(DENSE[which]) / best * 1e-9, n, tries);
}

/* ---- setup ---------------------------------------------------------------------------------------------------- */

static mc_jit *
make_kernels(bench *b, mc_arena *arena)
{
    mc_diags d;
    mc_cpu_target target;
    mc_diags_init(&d, arena, NULL);
    if (!mc_cpu_target_find("native", &d, &target)) exit(1);
    double t0 = mc_thread_seconds();
    mc_kb *kb = mc_kb_create(&target, "bench", arena);
    const char *up = mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_MOE_UP, MOEC_BF16, MC_ACT_SILU});
    const char *down = mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_MOE_DOWN, MOEC_BF16, MC_ACT_SILU});
    double t1 = mc_thread_seconds();
    mc_buf object = {0};
    if (!mc_kb_emit(kb, MC_EMIT_OBJECT, &d, &object)) exit(1);
    double t2 = mc_thread_seconds();
    mc_kb_destroy(kb);
    mc_jit *layer = mc_jit_load(object.data, object.len, &d);
    if (!layer) exit(1);
    b->up = bench_kernel(layer, up, &d);
    b->down = bench_kernel(layer, down, &d);
    printf("%s: the layer's kernels: IR %.1f ms, code %.1f ms, load %.1f ms, %zu bytes\n", target.cpu, (t1 - t0) * 1e3,
           (t2 - t1) * 1e3, (mc_thread_seconds() - t2) * 1e3, object.len);
    mc_jit_destroy(layer);

    kb = mc_kb_create(&target, "bench", arena);
    mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_MOE_UP, MOEC_BF16, MC_ACT_SILU});
    mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_MOE_DOWN, MOEC_BF16, MC_ACT_SILU});
    bench_add_limits(kb);
    const char *linear[N_DENSE];
    for (int i = 0; i < N_DENSE; i++)
        linear[i] = mc_gemm_kernel(kb, &(mc_gemm_spec){MC_GEMM_LINEAR, DENSE[i], MC_ACT_SILU});
    mc_buf_clear(&object);
    if (!mc_kb_emit(kb, MC_EMIT_OBJECT, &d, &object)) exit(1);
    mc_kb_destroy(kb);
    mc_jit *jit = mc_jit_load(object.data, object.len, &d);
    if (!jit) exit(1);
    b->up = bench_kernel(jit, up, &d);
    b->down = bench_kernel(jit, down, &d);
    for (int i = 0; i < N_DENSE; i++) b->linear[i] = bench_kernel(jit, linear[i], &d);
    b->limits.fma_loop = bench_kernel(jit, "fma_loop", &d);
    b->limits.read_loop = bench_kernel(jit, "read_loop", &d);
    b->limits.vl = target.vl;
    mc_buf_fini(&object);
    return jit;
}

static void
make_data(bench *b, int64_t most_tokens)
{
    size_t n_weights = (size_t)(b->experts * b->f * b->d), rows = (size_t)(most_tokens * b->top);
    size_t dense_weights = (size_t)(WIDE_COLUMNS * b->d), h = rows * (size_t)b->f;
    if (h < DENSE_ROWS * DENSE_COLUMNS) h = DENSE_ROWS * DENSE_COLUMNS;
    b->w_up = big((n_weights > dense_weights ? n_weights : dense_weights) * 4);
    b->w_down = big(n_weights * 2);
    fill_weights(b->w_up, (n_weights > dense_weights ? n_weights : dense_weights) * 4);
    fill_weights(b->w_down, n_weights * 2);
    b->x = big((size_t)(most_tokens * b->d) * 4);
    b->y = big((size_t)(most_tokens * b->d) * 4);
    b->h = big(h * 4);
    b->scratch = big((size_t)team_size(b->limits.team) * (size_t)b->d * 32 * 4);
    fill_floats(b->x, (size_t)(most_tokens * b->d));
    b->offsets = malloc((size_t)(b->experts + 1) * sizeof *b->offsets);
    b->tokens = malloc(rows * sizeof *b->tokens);
    b->gates = malloc(rows * sizeof *b->gates);
    size_t n_scales = WIDE_COLUMNS / 128 * (size_t)((b->d + 127) / 128);
    b->scales = malloc(n_scales * sizeof *b->scales);
    fill_floats(b->scales, n_scales);
}

int
main(int argc, char **argv)
{
    static const int64_t TOKENS[] = {1, 8, 32, 128, 512};
    bench b = {.experts = argc > 2 ? atoll(argv[2]) : 128,
               .top = argc > 3 ? atoll(argv[3]) : 8,
               .d = argc > 4 ? atoll(argv[4]) : 2048,
               .f = argc > 5 ? atoll(argv[5]) : 768};
    b.limits.team = team_create(argc > 1 ? atoi(argv[1]) : 2);
    mc_arena *arena = mc_arena_create();
    mc_jit *jit = make_kernels(&b, arena);
    make_data(&b, 512);
    for (int i = 0; i < 50; i++) limits_fma(&b.limits);
    printf("%d threads, FMA %.1f GF/s; E %lld top %lld D %lld F %lld, bf16\n", team_size(b.limits.team),
           b.limits.best * 1e-9, (long long)b.experts, (long long)b.top, (long long)b.d, (long long)b.f);
    for (int i = 0; i < N_DENSE; i++) {
        bench_dense(&b, i, DENSE_ROWS, DENSE_COLUMNS, b.d);
        bench_dense(&b, i, 48, DENSE_COLUMNS, b.d);
        bench_dense(&b, i, 1, WIDE_COLUMNS, b.d);
    }
    for (int i = 0; i < 5; i++) bench_layer(&b, TOKENS[i]);
    mc_jit_destroy(jit);
    team_destroy(b.limits.team);
    mc_arena_destroy(arena);
    return 0;
}
