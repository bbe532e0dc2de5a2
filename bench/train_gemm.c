/* The matrix kernels of training, as fractions of the FMA rate of the same seconds: those of a MoE layer forward and
 * backward, and dense ones of as many tokens.
 *
 *     train_gemm [threads [tokens [experts top D F [skew]]]]      defaults: 2 threads, 512 tokens, 8 2 1024 3584
 *
 * skew n: half of all choices fall on n experts. The best of several repetitions, in CPU time of the slowest thread. */
#define _GNU_SOURCE
#include "codegen/cpu/train_gemm.h"
#include "bench/cpu_limits.h"
#include "codegen/cpu/llvm_emit.h"
#include "runtime/base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { REPETITIONS = 7, N_KINDS = 3 };

typedef struct bench {
    limits limits;
    moec_kernel_fn *kernels[N_KINDS];
    size_t scratch_bytes;
    char *scratch;
    int64_t experts, top, d, f, tokens, skew;
    float *x, *h, *g, *y, *w, *dw, *gates;
    int32_t *offsets, *rows;
} bench;

typedef struct job { /* a kernel and its arguments, to be copied by every thread */
    bench *bench;
    mc_train_kind kind;
    moec_kernel_args args;
} job;

static uint32_t random_state = 7;

static uint32_t
next_random(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

static float *
floats(int64_t n)
{
    float *p = NULL;
    if (posix_memalign((void **)&p, 4096, (size_t)n * sizeof *p)) abort();
    for (int64_t i = 0; i < n; i++) p[i] = (float)((int)(next_random() & 0xFFFF) - 32768) / 65536;
    return p;
}

static int64_t
choose(const bench *b)
{
    int64_t n = b->skew && next_random() % 2 ? b->skew : b->experts;
    return next_random() % (uint32_t)n;
}

/* `top` different experts for each token; rows in order of (expert, token). */
static void
route(bench *b)
{
    int64_t n = b->tokens * b->top;
    int32_t *choice = malloc((size_t)n * sizeof *choice), *next = calloc((size_t)b->experts, sizeof *next);
    memset(b->offsets, 0, (size_t)(b->experts + 1) * sizeof *b->offsets);
    for (int64_t i = 0; i < n; i++) {
        bool again;
        do {
            choice[i] = (int32_t)choose(b);
            again = false;
            for (int64_t j = i / b->top * b->top; j < i; j++) again |= choice[j] == choice[i];
        } while (again);
        b->offsets[choice[i] + 1]++;
    }
    for (int64_t e = 0; e < b->experts; e++) {
        b->offsets[e + 1] += b->offsets[e];
        next[e] = b->offsets[e];
    }
    for (int64_t i = 0; i < n; i++) b->rows[next[choice[i]]++] = (int32_t)(i / b->top);
    free(choice);
    free(next);
}

static void
run(void *context, int thread, int n_threads)
{
    const job *j = context;
    moec_kernel_args a = j->args;
    a.thread = thread;
    a.n_threads = n_threads;
    a.scratch = j->bench->scratch + (size_t)thread * j->bench->scratch_bytes;
    j->bench->kernels[j->kind](&a);
}

static void
measure(const char *what, job *j, int64_t flop)
{
    bench *b = j->bench;
    double best = 1e9;
    for (int i = 0; i < REPETITIONS; i++) {
        limits_fma(&b->limits);
        double t = team_run(b->limits.team, run, j);
        if (t < best) best = t;
    }
    double rate = (double)flop / best;
    printf("  %-34s %8.2f ms  %6.1f GF/s  %5.1f %% of FMA\n", what, best * 1e3, rate * 1e-9,
           100 * rate / b->limits.best);
}

static job
rows_job(bench *b, float *y, float *a, int64_t width, int64_t n, bool grouped, bool listed, bool as_it_lies)
{
    job j = {.bench = b, .kind = MC_TRAIN_KIND_ROWS};
    j.args.ptr[MC_TRAIN_Y] = y;
    j.args.ptr[MC_TRAIN_A] = a;
    j.args.ptr[MC_TRAIN_B] = b->w;
    j.args.ptr[MC_TRAIN_OFFSETS] = grouped ? b->offsets : NULL;
    j.args.ptr[MC_TRAIN_A_ROWS] = listed ? b->rows : NULL;
    j.args.i[MC_TRAIN_GROUPS] = b->experts;
    j.args.i[MC_TRAIN_ROWS] = b->tokens;
    j.args.i[MC_TRAIN_WIDTH] = width;
    j.args.i[MC_TRAIN_N] = n;
    j.args.i[MC_TRAIN_AS_IT_LIES] = as_it_lies;
    return j;
}

static job
dw_job(bench *b, float *dy, float *x, int64_t width, int64_t n, bool grouped, bool accumulate)
{
    job j = rows_job(b, b->dw, dy, width, n, grouped, false, false);
    j.kind = MC_TRAIN_KIND_DW;
    j.args.ptr[MC_TRAIN_B] = x;
    j.args.i[MC_TRAIN_ACCUMULATE] = accumulate;
    return j;
}

static void
bench_experts(bench *b)
{
    int64_t flop = 2 * b->tokens * b->top * b->d * b->f;
    job up = rows_job(b, b->h, b->x, b->d, b->f, true, true, false);
    measure("grouped_matmul up, gathered", &up, flop);
    job down = rows_job(b, b->y, b->h, b->f, b->d, true, true, false);
    down.kind = MC_TRAIN_KIND_DOWN;
    down.args.ptr[MC_TRAIN_GATES] = b->gates;
    measure("moe.ffn_down", &down, flop);
    job da = rows_job(b, b->h, b->x, b->d, b->f, true, true, true);
    measure("grouped_dx of down, gathered", &da, flop);
    job dx = rows_job(b, b->g, b->h, b->f, b->d, true, false, true);
    measure("grouped_dx of up", &dx, flop);
    job dw = dw_job(b, b->h, b->x, b->f, b->d, true, true);
    dw.args.ptr[MC_TRAIN_B_ROWS] = b->rows;
    measure("grouped_dw of up, added", &dw, flop);
    dw.args.i[MC_TRAIN_ACCUMULATE] = 0;
    measure("grouped_dw of up, written", &dw, flop);
    job dw_down = dw_job(b, b->x, b->h, b->d, b->f, true, true);
    dw_down.args.ptr[MC_TRAIN_A_ROWS] = b->rows;
    dw_down.args.ptr[MC_TRAIN_GATES] = b->gates;
    measure("grouped_dw of down, gates, added", &dw_down, flop);
}

static void
bench_dense(bench *b)
{
    int64_t flop = 2 * b->tokens * b->d * b->f;
    job y = rows_job(b, b->h, b->x, b->d, b->f, false, false, false);
    measure("linear", &y, flop);
    job dx = rows_job(b, b->y, b->h, b->f, b->d, false, false, true);
    measure("linear_dx", &dx, flop);
    job dw = dw_job(b, b->h, b->x, b->f, b->d, false, true);
    measure("linear_dw, added", &dw, flop);
}

static mc_jit *
make_kernels(bench *b, mc_arena *arena)
{
    mc_diags d;
    mc_cpu_target target;
    mc_diags_init(&d, arena, NULL);
    if (!mc_cpu_target_find("native", &d, &target)) exit(1);
    mc_buf object = {0};
    for (int with_limits = 0;; with_limits++) {
        double begin = mc_thread_seconds();
        mc_kb *kb = mc_kb_create(&target, "bench", arena);
        for (int i = 0; i < N_KINDS; i++) mc_train_kernel(kb, (mc_train_kind)i);
        if (with_limits) bench_add_limits(kb);
        mc_buf_clear(&object);
        if (!mc_kb_emit(kb, MC_EMIT_OBJECT, &d, &object)) exit(1);
        mc_kb_destroy(kb);
        if (with_limits) break;
        printf("%s: all kernels made in %.1f ms, %zu bytes\n", target.cpu, (mc_thread_seconds() - begin) * 1e3,
               object.len);
    }
    mc_jit *jit = mc_jit_load(object.data, object.len, &d);
    if (!jit) exit(1);
    mc_buf_fini(&object);
    for (int i = 0; i < N_KINDS; i++) {
        b->kernels[i] = bench_kernel(jit, mc_train_kernel_name((mc_train_kind)i), &d);
        size_t bytes = (mc_train_scratch_bytes(&target, (mc_train_kind)i) + 4095) & ~(size_t)4095;
        if (bytes > b->scratch_bytes) b->scratch_bytes = bytes;
    }
    b->limits.fma_loop = bench_kernel(jit, "fma_loop", &d);
    b->limits.read_loop = bench_kernel(jit, "read_loop", &d);
    b->limits.vl = target.vl;
    return jit;
}

static int64_t
argument(int argc, char **argv, int i, int64_t otherwise)
{
    return argc > i ? atoll(argv[i]) : otherwise;
}

int
main(int argc, char **argv)
{
    bench b = {.tokens = argument(argc, argv, 2, 512),
               .experts = argument(argc, argv, 3, 8),
               .top = argument(argc, argv, 4, 2),
               .d = argument(argc, argv, 5, 1024),
               .f = argument(argc, argv, 6, 3584),
               .skew = argument(argc, argv, 7, 0)};
    int64_t rows = b.tokens * b.top;
    b.limits.team = team_create((int)argument(argc, argv, 1, 2));
    mc_arena *arena = mc_arena_create();
    mc_jit *jit = make_kernels(&b, arena);
    b.scratch = (char *)floats(team_size(b.limits.team) * (int64_t)(b.scratch_bytes / sizeof(float)));
    b.x = floats(rows * b.d);
    b.y = floats(rows * b.d);
    b.g = floats(rows * b.d);
    b.h = floats(rows * b.f);
    b.w = floats(b.experts * b.d * b.f);
    b.dw = floats(b.experts * b.d * b.f);
    b.gates = floats(rows);
    b.offsets = malloc((size_t)(b.experts + 1) * sizeof *b.offsets);
    b.rows = malloc((size_t)rows * sizeof *b.rows);
    route(&b);
    for (int i = 0; i < 50; i++) limits_fma(&b.limits);
    printf("%d threads, FMA %.1f GF/s; T %lld E %lld top %lld D %lld F %lld\n", team_size(b.limits.team),
           b.limits.best * 1e-9, (long long)b.tokens, (long long)b.experts, (long long)b.top, (long long)b.d,
           (long long)b.f);
    bench_experts(&b);
    bench_dense(&b);
    mc_jit_destroy(jit);
    team_destroy(b.limits.team);
    mc_arena_destroy(arena);
    return 0;
}
