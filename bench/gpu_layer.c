/* MoE layers on a GPU: forward, and forward with backward, at the shapes of gpu_shapes.def, in bf16.
 *
 *     gpu_layer [--train] [--peak TFLOPS] [--seconds S] [NAME...]        a line a shape; names of shapes, or parts of
 * them
 *
 * Time is that of the whole layer (router, top-k, sort, products, combine), by events around replays of a step; the
 * least and the median of the rounds. Work is counted as 6 T K D F forward and 12 backward; bytes are those of the
 * weights that the routing touched at least once in expectation, so GB/s says something for few tokens only. Inputs are
 * random normal numbers. `peak`: of the same device, measured elsewhere (bench/gpu_torch.py); fractions are of it. */
#include "moec/moec.h"
#include "runtime/base/dtype.h"
#include "runtime/gpu/gpu_device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    const char *name;
    int64_t tokens, width, inner, experts, top;
} shape;

static const shape shapes[] = {
#define GPU_SHAPE(name, t, d, f, e, k) {name, t, d, f, e, k},
#include "bench/gpu_shapes.def"
#undef GPU_SHAPE
};

enum { ROUNDS = 15, BUFFERS = 4, MOST_PARAMS = 16, MOST_OUTPUTS = 8 };

typedef struct bench {
    moec_gpu *gpu;
    CUstream stream;
    moec_error error;
    mc_fault fault;
    double peak, seconds;
    bool train;
} bench;

static _Noreturn void
stop(const bench *b, const char *where)
{
    fprintf(stderr, "%s: %s%s\n", where, b->error.text, b->fault.text);
    exit(1);
}

static void
must(bench *b, CUresult r, const char *call)
{
    if (mc_cuda_check(b->gpu->cuda, r, call, &b->fault) != MOEC_OK) stop(b, call);
}

/* ---- memory -------------------------------------------------------------------------------------------------------
 */

static double
next_uniform(void)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) * 0x1p-53;
}

static CUdeviceptr
device_memory(bench *b, size_t n_bytes, const char *what)
{
    CUdeviceptr p;
    if (mc_gpu_alloc(b->gpu, n_bytes, what, &p, &b->fault) != MOEC_OK) stop(b, what);
    return p;
}

/* Normal numbers times scale; a long array repeats a million of them. */
static CUdeviceptr
normal(bench *b, size_t n, moec_dtype dtype, double scale, const char *what)
{
    enum { PERIOD = 1 << 20 };
    static unsigned char block[PERIOD * 4];
    size_t bytes = moec_dtype_bytes(dtype), total = n * bytes;
    CUdeviceptr p = device_memory(b, total, what);
    for (size_t i = 0; i < PERIOD && i < n; i++)
        mc_store_elem(dtype, block, i,
                      scale * sqrt(-2 * log(1 - next_uniform())) * cos(6.283185307179586 * next_uniform()));
    for (size_t at = 0; at < total; at += PERIOD * bytes) {
        size_t part = total - at < PERIOD * bytes ? total - at : PERIOD * bytes;
        must(b, b->gpu->cuda->cuMemcpyHtoDAsync(p + at, block, part, b->stream), "copy");
        must(b, b->gpu->cuda->cuStreamSynchronize(b->stream), "copy");
    }
    return p;
}

/* ---- models -------------------------------------------------------------------------------------------------------
 */

static void
print_diagnostic(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

static moec_compiled *
compile(bench *b, const shape *s, moec_model **model)
{
    char text[1024], arch[16];
    moec_compiled *compiled;
    snprintf(text, sizeof text,
             "moe 1\ndim T in 1..65536\nmodel layer(x: bf16[T, %lld]) -> bf16[T, %lld] {\n  return moe@ffn(x) {\n"
             "    route linear@router | softmax | top %lld | renorm\n    experts %lld of swiglu(%lld)\n  }\n}\n"
             "precision { compute bf16; storage %s }\n",
             (long long)s->width, (long long)s->width, (long long)s->top, (long long)s->experts, (long long)s->inner,
             b->train ? "f32" : "bf16");
    uint32_t number = b->gpu->info.arch / 10 == 8 && b->gpu->info.arch < 89 ? 80 : b->gpu->info.arch;
    snprintf(arch, sizeof arch, "sm_%u%s", number, number >= 90 ? "a" : "");
    moec_compile_options options = {.gpu = arch, .train = b->train, .on_diagnostic = print_diagnostic};
    if (moec_compile_text("layer.moe", text, strlen(text), &options, &compiled)) exit(1);
    if (moec_compiled_load_gpu(compiled, model, &b->error)) stop(b, "load");
    return compiled;
}

/* ---- times --------------------------------------------------------------------------------------------------------
 */

typedef void step_fn(bench *b, void *what, int round);

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of a step: least and median of the rounds. */
static void
measure(bench *b, step_fn *step, void *what, double *least, double *median)
{
    const mc_cuda *cuda = b->gpu->cuda;
    CUevent begin, end;
    double times[ROUNDS];
    int repeats = 1;
    must(b, cuda->cuEventCreate(&begin, 0), "event");
    must(b, cuda->cuEventCreate(&end, 0), "event");
    for (int round = -2; round < ROUNDS; round++) {
        float ms = 0;
        for (int i = 0; round == -2 && i < 2 * BUFFERS; i++) step(b, what, i); /* graphs of all buffers */
        must(b, cuda->cuEventRecord(begin, b->stream), "event");
        for (int i = 0; i < repeats; i++) step(b, what, i);
        must(b, cuda->cuEventRecord(end, b->stream), "event");
        must(b, cuda->cuStreamSynchronize(b->stream), "a step");
        must(b, cuda->cuEventElapsedTime(&ms, begin, end), "event");
        if (round >= 0) times[round] = ms / 1e3 / repeats;
        if (round == -2 && ms > 0) repeats = 1 + (int)(b->seconds / ROUNDS / (ms / 1e3));
        if (repeats > 10000) repeats = 10000;
    }
    cuda->cuEventDestroy(begin);
    cuda->cuEventDestroy(end);
    qsort(times, ROUNDS, sizeof *times, by_value);
    *least = times[0];
    *median = times[ROUNDS / 2];
}

/* ---- forward ------------------------------------------------------------------------------------------------------
 */

typedef struct forward {
    const shape *shape;
    moec_session *session;
    CUdeviceptr x[BUFFERS], y;
} forward;

static void
step_forward(bench *b, void *what, int round)
{
    forward *f = what;
    const shape *s = f->shape;
    size_t n_bytes = (size_t)(s->tokens * s->width) * 2;
    moec_tensor x = {.dtype = MOEC_BF16, .rank = 2, .dims = {s->tokens, s->width}, .n_bytes = n_bytes};
    moec_tensor y = {.data = mc_gpu_pointer(f->y), .n_bytes = n_bytes};
    x.data = mc_gpu_pointer(f->x[round % BUFFERS]);
    if (moec_session_run(f->session, &x, 1, &y, 1, &b->error)) stop(b, s->name);
}

static void
bench_forward(bench *b, const shape *s, double *least, double *median)
{
    moec_model *model;
    moec_weights *weights;
    forward f = {.shape = s};
    moec_compiled *compiled = compile(b, s, &model);
    moec_limit limit = {"T", s->tokens};
    moec_session_options options = {
        .gpu = b->gpu, .stream = b->stream, .device_pointers = true, .limits = &limit, .n_limits = 1};
    if (moec_weights_synthetic(model, NULL, &weights, &b->error)) stop(b, "weights");
    if (moec_session_create(model, weights, &options, &f.session, &b->error)) stop(b, "session");
    for (int i = 0; i < BUFFERS; i++) f.x[i] = normal(b, (size_t)(s->tokens * s->width), MOEC_BF16, 1, "x");
    f.y = device_memory(b, (size_t)(s->tokens * s->width) * 2, "y");
    measure(b, step_forward, &f, least, median);
    for (int i = 0; i < BUFFERS; i++) mc_gpu_free(b->gpu, f.x[i]);
    mc_gpu_free(b->gpu, f.y);
    moec_session_destroy(f.session);
    moec_weights_close(weights);
    moec_compiled_destroy(compiled);
}

/* ---- forward and backward ------------------------------------------------------------------------------------------
 */

typedef struct training {
    const shape *shape;
    moec_model *model;
    moec_train_call call;
    moec_tensor x, outputs[MOST_OUTPUTS], dy, dx;
    void *params[MOST_PARAMS];
    float *grads[MOST_PARAMS];
} training;

static void
step_training(bench *b, void *what, int round)
{
    training *t = what;
    (void)round;
    if (moec_train_forward(t->model, &t->call, &b->error)) stop(b, "forward");
    if (moec_train_backward(t->model, &t->call, &b->error)) stop(b, "backward");
}

static void
make_params(bench *b, training *t)
{
    size_t n_params = moec_train_n_params(t->model);
    for (size_t i = 0; i < n_params && i < MOST_PARAMS; i++) {
        moec_param_info info;
        size_t n = 1;
        if (moec_train_param(t->model, i, &info)) exit(1);
        for (uint32_t d = 0; d < info.rank; d++) n *= (size_t)info.dims[d];
        t->params[i] =
            mc_gpu_pointer(normal(b, n, info.dtype, 1 / sqrt((double)info.dims[info.rank - 1]), "parameters"));
        t->grads[i] = mc_gpu_pointer(device_memory(b, n * sizeof(float), "gradients"));
    }
}

static void
free_params(bench *b, training *t)
{
    for (size_t i = 0; i < MOST_PARAMS; i++) {
        mc_gpu_free(b->gpu, mc_gpu_address(t->params[i]));
        mc_gpu_free(b->gpu, mc_gpu_address(t->grads[i]));
    }
}

static void
bench_training(bench *b, const shape *s, double *least, double *median)
{
    training t = {.shape = s};
    moec_train_sizes sizes;
    moec_limit tokens = {"T", s->tokens};
    moec_compiled *compiled = compile(b, s, &t.model);
    size_t n = (size_t)(s->tokens * s->width);
    if (moec_train_query(t.model, &tokens, 1, 1, &sizes, &b->error)) stop(b, "query");
    make_params(b, &t);
    t.x = (moec_tensor){.dtype = MOEC_BF16, .rank = 2, .dims = {s->tokens, s->width}, .n_bytes = 2 * n};
    t.dy = t.dx = t.outputs[0] = t.x;
    t.x.data = mc_gpu_pointer(normal(b, n, MOEC_BF16, 1, "x"));
    t.dy.data = mc_gpu_pointer(normal(b, n, MOEC_BF16, 1, "dy"));
    t.dx.data = mc_gpu_pointer(device_memory(b, 2 * n, "dx"));
    t.outputs[0].data = mc_gpu_pointer(device_memory(b, 2 * n, "y"));
    CUdeviceptr saved = device_memory(b, sizes.saved_bytes, "saved"),
                workspace = device_memory(b, sizes.workspace_bytes, "workspace");
    t.call = (moec_train_call){.gpu = b->gpu,
                               .stream = b->stream,
                               .inputs = &t.x,
                               .n_inputs = 1,
                               .params = t.params,
                               .saved = mc_gpu_pointer(saved),
                               .saved_bytes = sizes.saved_bytes,
                               .workspace = mc_gpu_pointer(workspace),
                               .workspace_bytes = sizes.workspace_bytes,
                               .outputs = t.outputs,
                               .n_outputs = 1,
                               .cotangents = &t.dy,
                               .n_cotangents = 1,
                               .input_grads = &t.dx,
                               .n_input_grads = 1,
                               .param_grads = t.grads};
    measure(b, step_training, &t, least, median);
    mc_gpu_free(b->gpu, saved);
    mc_gpu_free(b->gpu, workspace);
    const moec_tensor *all[] = {&t.x, &t.dy, &t.dx, &t.outputs[0]};
    for (int i = 0; i < 4; i++) mc_gpu_free(b->gpu, mc_gpu_address(all[i]->data));
    free_params(b, &t);
    moec_compiled_destroy(compiled);
}

/* ---- the table ------------------------------------------------------------------------------------------------------
 */

static bool
chosen(const char *name, int argc, char **argv, int first)
{
    for (int i = first; i < argc; i++)
        if (strstr(name, argv[i])) return true;
    return first == argc;
}

static void
report(const bench *b, const shape *s, double least, double median)
{
    double flops = (b->train ? 18.0 : 6.0) * (double)s->tokens * (double)s->top * (double)s->width * (double)s->inner;
    double missed = pow(1 - (double)s->top / (double)s->experts, (double)s->tokens);
    double bytes = (1 - missed) * (double)s->experts * 3 * (double)s->width * (double)s->inner * 2;
    printf("%-16s moec %s  %9.4f ms  median %9.4f  %7.1f TFLOP/s", s->name, b->train ? "fwd+bwd" : "fwd", least * 1e3,
           median * 1e3, flops / least / 1e12);
    if (b->peak > 0) printf("  %5.1f %% of peak", 100 * flops / least / 1e12 / b->peak);
    if (!b->train) printf("  %7.1f GB/s of weights", bytes / least / 1e9);
    printf("\n");
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    bench b = {.seconds = 0.5};
    int at = 1;
    for (; at < argc && argv[at][0] == '-'; at++) {
        if (strcmp(argv[at], "--train") == 0)
            b.train = true;
        else if (strcmp(argv[at], "--peak") == 0 && at + 1 < argc)
            b.peak = atof(argv[++at]);
        else if (strcmp(argv[at], "--seconds") == 0 && at + 1 < argc)
            b.seconds = atof(argv[++at]);
        else
            return fprintf(stderr, "gpu_layer [--train] [--peak TFLOPS] [--seconds S] [NAME...]\n"), 2;
    }
    if (moec_gpu_open(0, &b.gpu, &b.error)) stop(&b, "open");
    if (mc_gpu_enter(b.gpu, &b.fault)) stop(&b, "enter");
    must(&b, b.gpu->cuda->cuStreamCreate(&b.stream, CU_STREAM_NON_BLOCKING), "stream");
    printf("%s, compute capability %u.%u, %u multiprocessors\n", b.gpu->info.name, b.gpu->info.arch / 10,
           b.gpu->info.arch % 10, b.gpu->info.n_multiprocessors);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        double least, median;
        if (!chosen(shapes[i].name, argc, argv, at)) continue;
        if (b.train)
            bench_training(&b, &shapes[i], &least, &median);
        else
            bench_forward(&b, &shapes[i], &least, &median);
        report(&b, &shapes[i], least, median);
    }
    b.gpu->cuda->cuStreamDestroy(b.stream);
    mc_gpu_leave(b.gpu);
    moec_gpu_close(b.gpu);
    return 0;
}
