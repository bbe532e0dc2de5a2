/* The runtime on a GPU, with the fake driver (tests/gpu/README.md): sessions step as on a processor, what is wrong with
 * a driver, a device or a call ends in a message, and nothing is left behind. */
#define _GNU_SOURCE
#include "runtime/gpu/cuda_api.h"
#include "tests/support/fake_model.h"
#include "tests/unit/gpu_rig.h"

#include <pthread.h>

/* ---- drivers and devices ----------------------------------------------------------------------------------------- */

START_TEST(a_device)
{
    moec_gpu *gpu, *second;
    moec_gpu_info info;
    fake_env("MOEC_FAKE_DEVICES", "2");
    fake_env("MOEC_FAKE_ARCH", "9.0");
    ck_assert_uint_eq(moec_gpu_count(), 2);
    OK(moec_gpu_open(1, &gpu, &error));
    OK(moec_gpu_open(1, &second, &error));
    moec_gpu_describe(gpu, &info);
    ck_assert_int_eq(info.ordinal, 1);
    ck_assert_uint_eq(info.arch, 90);
    ck_assert(info.name[0] && info.n_multiprocessors && info.shared_bytes && info.memory_bytes);
    moec_gpu_close(gpu);
    moec_gpu_close(second);
    moec_gpu_close(NULL);
    nothing_left();
}
END_TEST

START_TEST(bad_drivers)
{
    static const struct {
        const char *variable, *value, *part;
    } cases[] = {
        {"MOEC_CUDA_DRIVER", "/nowhere/libcuda.so", "no NVIDIA driver"},
        {"MOEC_CUDA_DRIVER", "libm.so.6", "no CUDA driver"},
        {"MOEC_FAKE_DRIVER_VERSION", "11080", "it speaks CUDA 11.8, moec needs 12.0"},
        {"MOEC_FAKE_LACKS", "cuLaunchKernelEx", "it lacks cuLaunchKernelEx"},
        {"MOEC_FAKE_STUB", "1", "stub"},
        {"MOEC_FAKE_DEVICES", "0", "no GPU"},
        {"MOEC_FAKE_FAIL", "cuInit:1:999", "cuInit failed"},
        {"MOEC_FAKE_FAIL", "cuDevicePrimaryCtxRetain:1:2", "cuDevicePrimaryCtxRetain failed: CUDA_ERROR_OUT_OF_MEMORY"},
    };
    moec_gpu *gpu;
    fake_env(cases[_i].variable, cases[_i].value);
    moec_status s = moec_gpu_open(0, &gpu, &error);
    ck_assert_int_eq(s, strstr(cases[_i].part, "MEMORY") ? MOEC_ERR_MEMORY : MOEC_ERR_DEVICE);
    ck_assert_msg(strstr(error.text, cases[_i].part) != NULL, "%s", error.text);
    ck_assert_ptr_null(gpu);
    if (strstr(cases[_i].part, "driver")) ck_assert_uint_eq(moec_gpu_count(), 0);
}
END_TEST

START_TEST(ordinals)
{
    moec_gpu *gpu;
    REFUSED(moec_gpu_open(1, &gpu, &error), MOEC_ERR_ARGUMENT, "no GPU 1");
    REFUSED(moec_gpu_open(-1, &gpu, &error), MOEC_ERR_ARGUMENT, "no GPU -1");
}
END_TEST

START_TEST(architectures)
{
    static const struct {
        const char *arch, *part; /* NULL: it runs */
    } cases[] = {
        {"8.0", NULL},          {"8.6", NULL}, {"8.9", NULL}, {"9.0", "--gpu sm_90a"}, {"10.0", "--gpu sm_100a"},
        {"7.5", "8.0 or newer"}};
    rig r;
    fake_env("MOEC_FAKE_ARCH", cases[_i].arch);
    rig_open(&r, &counter_image);
    moec_session_options options = {.gpu = r.gpu};
    if (cases[_i].part) {
        REFUSED(moec_model_check_gpu(r.model, r.gpu, &error), MOEC_ERR_UNSUPPORTED, cases[_i].part);
        REFUSED(moec_session_create(r.model, r.weights, &options, &r.session, &error), MOEC_ERR_UNSUPPORTED, "sm_80");
        ck_assert_ptr_null(r.session);
    } else {
        OK(moec_model_check_gpu(r.model, r.gpu, &error));
        OK(moec_session_create(r.model, r.weights, &options, &r.session, &error));
    }
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(the_wrong_kind_of_model)
{
    rig r;
    moec_model *cpu;
    moec_weights *weights;
    moec_session *session;
    rig_open(&r, &counter_image);
    OK(moec_model_from_abi(fake_counter(), &cpu, &error));
    OK(moec_weights_synthetic(cpu, NULL, &weights, &error));
    moec_session_options options = {.gpu = r.gpu};
    REFUSED(moec_session_create(cpu, weights, &options, &session, &error), MOEC_ERR_UNSUPPORTED, "--gpu");
    REFUSED(moec_session_create(r.model, r.weights, NULL, &session, &error), MOEC_ERR_UNSUPPORTED, "moec_gpu_open");
    REFUSED(moec_model_check_gpu(cpu, r.gpu, &error), MOEC_ERR_UNSUPPORTED, "compiled for a CPU");
    options = (moec_session_options){.device_pointers = true};
    REFUSED(moec_session_create(cpu, weights, &options, &session, &error), MOEC_ERR_ARGUMENT, "without a GPU");
    moec_weights_close(weights);
    moec_model_destroy(cpu);
    rig_close(&r);
    nothing_left();
}
END_TEST

/* ---- language models ----------------------------------------------------------------------------------------------
 */

enum { VOCAB = 256 };

/* The same calls on a session of the processor: every logit must be the same. */
static void
feed_both(rig *r, moec_session *cpu, size_t n_sequences, size_t n, int32_t first)
{
    static float ours[2 * 64 * VOCAB], theirs[2 * 64 * VOCAB];
    int32_t ids[2 * 64];
    for (size_t i = 0; i < n_sequences * n; i++) ids[i] = (int32_t)((size_t)first + 7 * i) % 5;
    memset(ours, 0xFF, sizeof ours);
    OK(moec_session_feed(cpu, ids, n_sequences, n, theirs, &error));
    OK(moec_session_feed(r->session, ids, n_sequences, n, ours, &error));
    ck_assert_mem_eq(ours, theirs, n_sequences * n * VOCAB * sizeof *ours);
    ck_assert_int_eq(moec_session_past(r->session), moec_session_past(cpu));
    for (size_t b = 0; b < n_sequences; b++)
        ck_assert_mem_eq(moec_session_logits(r->session, b), moec_session_logits(cpu, b), VOCAB * sizeof *ours);
    OK(moec_session_truncate(cpu, moec_session_past(cpu) - (int64_t)n, &error));
    OK(moec_session_truncate(r->session, moec_session_past(cpu), &error));
    OK(moec_session_feed(cpu, ids, n_sequences, n, NULL, &error));
    OK(moec_session_feed(r->session, ids, n_sequences, n, NULL, &error));
    for (uint64_t step = 0; step < 6; step++) {
        int32_t a, b;
        moec_sampling sampling = {.temperature = step % 2, .top_p = step < 4 ? 0.5 : 0, .seed = step};
        OK(moec_sample(cpu, n_sequences - 1, &sampling, step, &a, &error));
        OK(moec_sample(r->session, n_sequences - 1, &sampling, step, &b, &error));
        ck_assert_int_eq(a, b);
    }
    for (size_t b = 0; b < n_sequences; b++)
        ck_assert_mem_eq(moec_session_logits(r->session, b), moec_session_logits(cpu, b), VOCAB * sizeof *ours);
}

START_TEST(steps_as_on_a_processor)
{
    rig r;
    moec_model *cpu_model;
    moec_weights *cpu_weights;
    moec_session *cpu;
    bool no_graph = _i & 1, profile = _i & 2, lazy = _i & 4;
    if (lazy) fake_env("MOEC_FAKE_LAZY", "1");
    moec_session_options options = {
        .max_batch = 2, .max_positions = 64, .max_new = 5, .no_graph = no_graph, .profile = profile};
    OK(moec_model_from_abi(fake_counter(), &cpu_model, &error));
    OK(moec_weights_synthetic(cpu_model, NULL, &cpu_weights, &error));
    OK(moec_session_create(cpu_model, cpu_weights, &options, &cpu, &error));
    rig_open(&r, &counter_image);
    rig_session(&r, options);
    for (int round = 0; round < 2; round++) {
        feed_both(&r, cpu, 2, 9, 1); /* in pieces of 5 and 4 */
        for (int i = 0; i < 6; i++) feed_both(&r, cpu, 2, 1, i);
        moec_session_reset(cpu);
        moec_session_reset(r.session);
        feed_both(&r, cpu, 1, 3, 2);
        moec_session_reset(cpu);
        moec_session_reset(r.session);
    }
    fake_stats s = stats_now();
    if (no_graph || profile)
        ck_assert_uint_eq(s.graph_launches, 0);
    else
        ck_assert_uint_ge(s.graph_launches, 20);
    moec_profile_entry e;
    ck_assert_int_eq(moec_session_profile(r.session, 1, &e), profile);
    if (profile) ck_assert_uint_gt(e.n_launches, 0);
    moec_session_destroy(cpu);
    moec_weights_close(cpu_weights);
    moec_model_destroy(cpu_model);
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(refused_feeds_change_nothing)
{
    rig r;
    int32_t ids[3] = {1, 300, 2};
    float logits[VOCAB];
    rig_open(&r, &counter_image);
    rig_session(&r, (moec_session_options){.max_positions = 4});
    OK(moec_session_feed(r.session, ids, 1, 1, NULL, &error));
    memcpy(logits, moec_session_logits(r.session, 0), sizeof logits);
    REFUSED(moec_session_feed(r.session, ids, 1, 3, NULL, &error), MOEC_ERR_RANGE, "outside the vocabulary");
    ids[1] = 3;
    OK(moec_session_feed(r.session, ids, 1, 3, NULL, &error));
    REFUSED(moec_session_feed(r.session, ids, 1, 1, NULL, &error), MOEC_ERR_RANGE, "this session holds 4");
    ck_assert_int_eq(moec_session_past(r.session), 4);
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(weights_are_shared)
{
    rig r;
    moec_session *other;
    rig_open(&r, &counter_image);
    rig_session(&r, (moec_session_options){0});
    uint64_t modules = stats_now().modules, blocks = stats_now().device_blocks;
    moec_session_options options = {.gpu = r.gpu};
    OK(moec_session_create(r.model, r.weights, &options, &other, &error));
    uint64_t more = stats_now().device_blocks - blocks;
    ck_assert_uint_eq(stats_now().modules, modules);
    moec_session_destroy(other);
    ck_assert_uint_eq(stats_now().device_blocks, blocks);
    moec_session_destroy(r.session);
    r.session = NULL;
    ck_assert_uint_eq(stats_now().device_blocks, blocks - more); /* the weights are still there */
    ck_assert_uint_gt(stats_now().device_blocks, 0);
    rig_close(&r);
    nothing_left();
}
END_TEST

typedef struct worker {
    pthread_t thread;
    const rig *r;
    float last[VOCAB];
} worker;

static void *
work(void *context)
{
    worker *w = context;
    moec_session *s;
    moec_error e;
    moec_session_options options = {.gpu = w->r->gpu, .max_positions = 32};
    if (moec_session_create(w->r->model, w->r->weights, &options, &s, &e) != MOEC_OK) return NULL;
    for (int32_t i = 0; i < 20; i++)
        if (moec_session_feed(s, &(int32_t){i % 3}, 1, 1, NULL, &e) != MOEC_OK) return NULL;
    memcpy(w->last, moec_session_logits(s, 0), sizeof w->last);
    moec_session_destroy(s);
    return w;
}

START_TEST(sessions_side_by_side)
{
    rig r;
    worker workers[3];
    rig_open(&r, &counter_image);
    for (int i = 0; i < 3; i++) {
        workers[i].r = &r;
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(workers[i].thread, &result);
        ck_assert_ptr_eq(result, &workers[i]);
        ck_assert_mem_eq(workers[i].last, workers[0].last, sizeof workers[0].last);
    }
    rig_close(&r);
    nothing_left();
}
END_TEST

/* ---- tensors, pointers, streams -----------------------------------------------------------------------------------
 */

static const mc_cuda *
cuda(void)
{
    const mc_cuda *c;
    mc_fault fault;
    ck_assert_int_eq(mc_cuda_get(&c, &fault), MOEC_OK);
    return c;
}

/* The primary context of a device as current, as a host program has it. */
static void
use_device(int ordinal)
{
    CUcontext context;
    ck_assert_int_eq(cuda()->cuDevicePrimaryCtxRetain(&context, ordinal), 0);
    ck_assert_int_eq(cuda()->cuCtxPushCurrent(context), 0);
}

static void
leave_device(int ordinal)
{
    CUcontext context;
    ck_assert_int_eq(cuda()->cuCtxPopCurrent(&context), 0);
    ck_assert_int_eq(cuda()->cuDevicePrimaryCtxRelease(ordinal), 0);
}

static CUdeviceptr
device_floats(const float *values, size_t n)
{
    CUdeviceptr p;
    ck_assert_int_eq(cuda()->cuMemAlloc(&p, n * sizeof *values), 0);
    ck_assert_int_eq(cuda()->cuMemcpyHtoDAsync(p, values, n * sizeof *values, NULL), 0);
    ck_assert_int_eq(cuda()->cuStreamSynchronize(NULL), 0);
    return p;
}

static moec_tensor
rows_at(CUdeviceptr at, int64_t t)
{
    return (moec_tensor){
        .dtype = MOEC_F32, .rank = 2, .dims = {t, 4}, .data = (void *)(uintptr_t)at, .n_bytes = (size_t)t * 16};
}

START_TEST(named_tensors)
{
    rig r;
    float x[28], y[28];
    rig_open(&r, &scale_image);
    rig_session(&r, (moec_session_options){0});
    for (int64_t t = 1; t <= 7; t++)
        for (int again = 0; again < 3; again++) {
            for (int i = 0; i < 28; i++) x[i] = (float)(i + 100 * again);
            moec_tensor in = rows_at((uintptr_t)x, t), out = {.name = "y", .data = y, .n_bytes = sizeof y};
            memset(y, 0, sizeof y);
            OK(moec_session_run(r.session, &in, 1, &out, 1, &error));
            ck_assert_int_eq(out.dims[0], t);
            for (int i = 0; i < 28; i++) ck_assert(y[i] == (i < 4 * t ? 2 * x[i] + 1 : 0));
        }
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(device_pointers)
{
    rig r;
    float x[40], y[40];
    rig_open(&r, &scale_image);
    use_device(0);
    CUstream stream;
    ck_assert_int_eq(cuda()->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), 0);
    rig_session(&r, (moec_session_options){.device_pointers = true, .stream = _i ? stream : NULL});
    for (int i = 0; i < 40; i++) x[i] = (float)i;
    CUdeviceptr dx = device_floats(x, 40), dy = device_floats(x, 40);
    for (int again = 0; again < 4; again++) {
        moec_tensor in = rows_at(dx, 10 - again), out = {.data = (void *)(uintptr_t)dy, .n_bytes = sizeof y};
        OK(moec_session_run(r.session, &in, 1, &out, 1, &error));
        OK(moec_session_run(r.session, &in, 1, &out, 1, &error));
        OK(moec_session_run(r.session, &in, 1, NULL, 0, &error)); /* nobody wants it */
    }
    CUcontext still = NULL, before = NULL;
    ck_assert_int_eq(cuda()->cuCtxGetCurrent(&still), 0);
    ck_assert_int_eq(cuda()->cuStreamGetCtx(stream, &before), 0);
    ck_assert_ptr_eq(still, before); /* the caller's context is current again */
    if (_i) {
        ck_assert_int_eq(cuda()->cuMemcpyDtoHAsync(y, dy, sizeof y, stream), 0);
        ck_assert_int_eq(cuda()->cuStreamSynchronize(stream), 0);
        for (int i = 0; i < 40; i++) ck_assert(y[i] == 2 * x[i] + 1);
    }
    moec_tensor in = rows_at(dx + 4, 2), out = {.data = (void *)(uintptr_t)dy, .n_bytes = sizeof y};
    REFUSED(moec_session_run(r.session, &in, 1, &out, 1, &error), MOEC_ERR_ARGUMENT, "no multiple of 16");
    in = rows_at((uintptr_t)x & ~(uintptr_t)15, 2);
    REFUSED(moec_session_run(r.session, &in, 1, &out, 1, &error), MOEC_ERR_ARGUMENT, "memory of the processor");
    in = rows_at(dx, 2);
    out.data = (void *)((uintptr_t)y & ~(uintptr_t)15);
    REFUSED(moec_session_run(r.session, &in, 1, &out, 1, &error), MOEC_ERR_ARGUMENT, "output y is memory of the proc");
    REFUSED(moec_session_run(r.session, &in, 1, &in, 1, &error), MOEC_OK, "");
    moec_session_destroy(r.session);
    r.session = NULL;
    ck_assert_int_eq(cuda()->cuMemFree(dx) + cuda()->cuMemFree(dy) + cuda()->cuStreamDestroy(stream), 0);
    leave_device(0);
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(another_device)
{
    rig r;
    float x[8] = {0};
    fake_env("MOEC_FAKE_DEVICES", "2");
    rig_open(&r, &scale_image);
    use_device(1);
    CUstream stream;
    ck_assert_int_eq(cuda()->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), 0);
    moec_session_options options = {.gpu = r.gpu, .stream = stream};
    REFUSED(moec_session_create(r.model, r.weights, &options, &r.session, &error), MOEC_ERR_ARGUMENT,
            "another device or context than GPU 0");
    rig_session(&r, (moec_session_options){.device_pointers = true});
    CUdeviceptr there = device_floats(x, 8);
    moec_tensor in = rows_at(there, 2);
    REFUSED(moec_session_run(r.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "lies on GPU 1");
    ck_assert_int_eq(cuda()->cuMemFree(there) + cuda()->cuStreamDestroy(stream), 0);
    leave_device(1);
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(in_the_callers_graph)
{
    rig r;
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[8];
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    rig_open(&r, &scale_image);
    use_device(0);
    ck_assert_int_eq(cuda()->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), 0);
    rig_session(&r, (moec_session_options){.device_pointers = true, .stream = stream});
    CUdeviceptr dx = device_floats(x, 8), dy = device_floats(x, 8);
    moec_tensor in = rows_at(dx, 2), out = rows_at(dy, 2);
    ck_assert_int_eq(cuda()->cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), 0);
    OK(moec_session_run(r.session, &in, 1, &out, 1, &error));
    ck_assert_int_eq(cuda()->cuStreamEndCapture(stream, &graph), 0);
    ck_assert_int_eq(cuda()->cuGraphInstantiateWithFlags(&exec, graph, 0), 0);
    ck_assert_int_eq(cuda()->cuMemcpyDtoHAsync(y, dy, sizeof y, stream), 0);
    ck_assert_int_eq(cuda()->cuStreamSynchronize(stream), 0);
    ck_assert_mem_eq(x, y, sizeof x); /* nothing ran yet */
    ck_assert_int_eq(cuda()->cuGraphLaunch(exec, stream), 0);
    ck_assert_int_eq(cuda()->cuMemcpyDtoHAsync(y, dy, sizeof y, stream), 0);
    ck_assert_int_eq(cuda()->cuStreamSynchronize(stream), 0);
    for (int i = 0; i < 8; i++) ck_assert(y[i] == 2 * x[i] + 1);
    ck_assert_int_eq(cuda()->cuGraphExecDestroy(exec) + cuda()->cuGraphDestroy(graph), 0);
    moec_session_destroy(r.session);
    r.session = NULL;
    ck_assert_int_eq(cuda()->cuMemFree(dx) + cuda()->cuMemFree(dy) + cuda()->cuStreamDestroy(stream), 0);
    leave_device(0);
    rig_close(&r);
    nothing_left();
}
END_TEST

START_TEST(too_many_blocks)
{
    rig r;
    rig_open(&r, &scale_image);
    moec_limit limit = {"T", 100000};
    rig_session(&r, (moec_session_options){.limits = &limit, .n_limits = 1});
    float *x = calloc(70000, 16);
    moec_tensor in = rows_at((uintptr_t)x, 70000);
    REFUSED(moec_session_run(r.session, &in, 1, NULL, 0, &error), MOEC_ERR_RANGE, "70000 blocks");
    in = rows_at((uintptr_t)x, 2);
    OK(moec_session_run(r.session, &in, 1, NULL, 0, &error));
    free(x);
    rig_close(&r);
    nothing_left();
}
END_TEST

static void
add(TCase *t)
{
    tcase_add_test(t, a_device);
    tcase_add_loop_test(t, bad_drivers, 0, 8);
    tcase_add_test(t, ordinals);
    tcase_add_loop_test(t, architectures, 0, 6);
    tcase_add_test(t, the_wrong_kind_of_model);
    tcase_add_loop_test(t, steps_as_on_a_processor, 0, 8);
    tcase_add_test(t, refused_feeds_change_nothing);
    tcase_add_test(t, weights_are_shared);
    tcase_add_test(t, sessions_side_by_side);
    tcase_add_test(t, named_tensors);
    tcase_add_loop_test(t, device_pointers, 0, 2);
    tcase_add_test(t, another_device);
    tcase_add_test(t, in_the_callers_graph);
    tcase_add_test(t, too_many_blocks);
}

int
main(void)
{
    return rig_main("gpu_runtime", add);
}
