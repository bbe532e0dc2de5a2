/* Training calls on a GPU, with the fake driver: the same text compiled for both, the same inputs; results agree, a
 * step neither allocates nor waits, and wrong calls are refused before anything is queued. */
#define _GNU_SOURCE
#include "moec/gpu.h"
#include "runtime/gpu/gpu_device.h"
#include "tests/gpu/fake.h"
#include "tests/support/train_rig.h"

#include <check.h>
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char layer[] = "moe 1\ndim T in 1..4096\nmodel layer(x: f32[T, 24]) -> f32[T, 24] {\n"
                            "  return x + moe@mlp(x) {\n    route linear@gate | softmax | top 2 | renorm\n"
                            "    experts 6 of swiglu(20)\n  }\n}\ntrain { aux switch; z 1 }\n";

enum { MAX_BUFFERS = 128 };

typedef struct mirror {
    CUdeviceptr device;
    void *host; /* NULL: nothing to bring back */
    size_t n_bytes;
} mirror;

/* A step whose buffers are on the device. */
typedef struct gpu_step {
    moec_gpu *gpu;
    mc_rig_step host;
    moec_train_call call;
    moec_tensor inputs[MC_RIG_MAX], outputs[MC_RIG_MAX], cotangents[MC_RIG_MAX], input_grads[MC_RIG_MAX];
    void *params[MC_RIG_MAX];
    float *grads[MC_RIG_MAX];
    mirror mirrors[MAX_BUFFERS];
    int n;
} gpu_step;

static moec_error error;

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define REFUSED(expression, status, part)                                                                              \
    do {                                                                                                               \
        ck_assert_int_eq((expression), (status));                                                                      \
        ck_assert_msg(strstr(error.text, (part)) != NULL, "\"%s\" does not say \"%s\"", error.text, (part));           \
    } while (0)

static void *
upload(gpu_step *s, void *host, size_t n_bytes, bool back)
{
    mirror *m = &s->mirrors[s->n++];
    mc_fault fault;
    ck_assert_int_lt(s->n, MAX_BUFFERS);
    ck_assert_int_eq(mc_gpu_enter(s->gpu, &fault), MOEC_OK);
    ck_assert_int_eq(mc_gpu_alloc(s->gpu, n_bytes, "a buffer", &m->device, &fault), MOEC_OK);
    ck_assert_int_eq(s->gpu->cuda->cuMemcpyHtoDAsync(m->device, host, n_bytes, NULL), 0);
    mc_gpu_leave(s->gpu);
    m->host = back ? host : NULL;
    m->n_bytes = n_bytes;
    return mc_gpu_pointer(m->device);
}

static void
upload_tensors(gpu_step *s, const moec_tensor *from, size_t n, bool back, moec_tensor *to)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = from[i];
        if (from[i].data) to[i].data = upload(s, from[i].data, from[i].n_bytes, back);
    }
}

/* Memory that holds no number. */
static void *
poison(gpu_step *s, size_t n_bytes)
{
    void *host = malloc(n_bytes);
    ck_assert_ptr_nonnull(host);
    memset(host, 0xFF, n_bytes);
    void *device = upload(s, host, n_bytes, false);
    free(host);
    return device;
}

/* Inputs and shapes are those of the step on the processor; how much is saved is the GPU's own affair. */
static void
step_open(gpu_step *s, const mc_rig *rig, const mc_rig *on_gpu, moec_gpu *gpu, int64_t t)
{
    moec_limit dims[] = {{"T", t}};
    moec_train_sizes sizes;
    *s = (gpu_step){.gpu = gpu};
    mc_rig_step_open(&s->host, rig, dims, 1, 0, 3);
    mc_rig_zero(&s->host);
    OK(moec_train_query(on_gpu->model, dims, 1, 0, &sizes, &error));
    moec_train_call *c = &s->call;
    *c = s->host.call;
    c->gpu = gpu;
    upload_tensors(s, c->inputs, c->n_inputs, false, s->inputs);
    upload_tensors(s, c->outputs, c->n_outputs, true, s->outputs);
    upload_tensors(s, c->cotangents, c->n_cotangents, false, s->cotangents);
    upload_tensors(s, c->input_grads, c->n_input_grads, true, s->input_grads);
    for (size_t i = 0; i < rig->n_params; i++) {
        s->params[i] = upload(s, rig->values[i], mc_rig_param_bytes(rig, i), false);
        if (s->host.grads[i]) s->grads[i] = upload(s, s->host.grads[i], mc_rig_param_bytes(rig, i), true);
    }
    c->inputs = s->inputs;
    c->outputs = s->outputs;
    c->cotangents = s->cotangents;
    c->input_grads = s->input_grads;
    c->params = s->params;
    c->param_grads = s->grads;
    c->saved_bytes = sizes.saved_bytes;
    c->workspace_bytes = sizes.workspace_bytes;
    c->saved = poison(s, c->saved_bytes);
    c->workspace = poison(s, c->workspace_bytes);
}

/* What the device has made, to where mc_rig_collect looks. */
static mc_buf
collect(gpu_step *s)
{
    mc_buf out = {0};
    mc_fault fault;
    ck_assert_int_eq(mc_gpu_enter(s->gpu, &fault), MOEC_OK);
    for (int i = 0; i < s->n; i++)
        if (s->mirrors[i].host)
            ck_assert_int_eq(
                s->gpu->cuda->cuMemcpyDtoHAsync(s->mirrors[i].host, s->mirrors[i].device, s->mirrors[i].n_bytes, NULL),
                0);
    ck_assert_int_eq(s->gpu->cuda->cuStreamSynchronize(NULL), 0);
    mc_gpu_leave(s->gpu);
    mc_rig_collect(&s->host, &out);
    return out;
}

static void
step_close(gpu_step *s)
{
    for (int i = 0; i < s->n; i++) mc_gpu_free(s->gpu, s->mirrors[i].device);
    mc_rig_step_close(&s->host);
}

static fake_stats
stats_now(void)
{
    fake_stats s;
    fake_stats_fn *get = NULL;
    void *address = dlsym(dlopen(FAKE_CUDA, RTLD_NOW), "fake_cuda_stats");
    memcpy(&get, &address, sizeof get);
    get(&s);
    return s;
}

static void
open_rigs(mc_rig *cpu, mc_rig *gpu, bool recompute)
{
    moec_compile_options options = {.cache = "", .recompute = recompute};
    mc_rig_open(cpu, "layer.moe", layer, &options, NULL, NULL);
    options.gpu = "sm_80";
    mc_rig_open(gpu, "layer.moe", layer, &options, NULL, NULL);
    ck_assert_uint_eq(cpu->n_params, gpu->n_params);
    for (size_t i = 0; i < cpu->n_params; i++) ck_assert_str_eq(cpu->params[i].path, gpu->params[i].path);
}

/* ---- results ------------------------------------------------------------------------------------------------------
 */

START_TEST(results_agree)
{
    static const int64_t sizes[] = {1, 7, 40};
    mc_rig cpu, gpu;
    moec_gpu *device;
    open_rigs(&cpu, &gpu, _i);
    OK(moec_gpu_open(0, &device, &error));
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        moec_limit dims[] = {{"T", sizes[k]}};
        mc_rig_step want;
        gpu_step s;
        mc_buf a = {0};
        mc_rig_step_open(&want, &cpu, dims, 1, 0, 3);
        mc_rig_forward(&want);
        mc_rig_backward(&want);
        mc_rig_collect(&want, &a);
        step_open(&s, &cpu, &gpu, device, sizes[k]);
        fake_stats before = stats_now();
        OK(moec_train_forward(gpu.model, &s.call, &error));
        if (k) ck_assert_uint_eq(stats_now().allocations, before.allocations);
        OK(moec_train_backward(gpu.model, &s.call, &error));
        ck_assert_uint_eq(stats_now().synchronizations, before.synchronizations);
        ck_assert_uint_gt(stats_now().launches, before.launches);
        mc_buf b = collect(&s);
        ck_assert_uint_eq(a.len, b.len);
        double distance = 0, norm = 0;
        for (size_t i = 0; i < a.len / sizeof(float); i++) {
            float x, y;
            memcpy(&x, a.data + i * sizeof x, sizeof x);
            memcpy(&y, b.data + i * sizeof y, sizeof y);
            distance += ((double)x - y) * ((double)x - y);
            norm += (double)x * x;
        }
        ck_assert(norm > 0);
        ck_assert_msg(sqrt(distance / norm) < 1e-5, "T = %d: %g", (int)sizes[k], sqrt(distance / norm));
        mc_buf_fini(&a);
        mc_buf_fini(&b);
        mc_rig_step_close(&want);
        step_close(&s);
    }
    moec_gpu_close(device);
    mc_rig_close(&cpu);
    mc_rig_close(&gpu);
    ck_assert_uint_eq(stats_now().device_blocks + stats_now().contexts, 0);
}
END_TEST

/* Gradients that nobody wants, outputs and cotangents left out, a stream of the caller's, nothing saved. */
START_TEST(parts_left_out)
{
    mc_rig cpu, gpu;
    moec_gpu *device;
    gpu_step s;
    CUstream stream;
    mc_fault fault;
    open_rigs(&cpu, &gpu, false);
    OK(moec_gpu_open(0, &device, &error));
    step_open(&s, &cpu, &gpu, device, 7);
    ck_assert_int_eq(mc_gpu_enter(device, &fault), MOEC_OK);
    ck_assert_int_eq(device->cuda->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), 0);
    s.call.stream = stream;
    OK(moec_train_forward(gpu.model, &s.call, &error));
    float *all[MC_RIG_MAX];
    memcpy(all, s.grads, sizeof all);
    memset(s.grads, 0, sizeof s.grads);
    size_t n_grads = s.call.n_input_grads, n_cotangents = s.call.n_cotangents;
    s.call.n_input_grads = 0;
    s.call.n_cotangents = 1;
    OK(moec_train_backward(gpu.model, &s.call, &error));
    s.call.param_grads = NULL;
    OK(moec_train_backward(gpu.model, &s.call, &error));
    memcpy(s.grads, all, sizeof all);
    s.call.param_grads = s.grads;
    s.call.n_input_grads = n_grads;
    s.call.n_cotangents = n_cotangents;
    OK(moec_train_backward(gpu.model, &s.call, &error));
    ck_assert_int_eq(device->cuda->cuStreamSynchronize(stream), 0);
    mc_buf b = collect(&s); /* added once */
    moec_limit dims[] = {{"T", 7}};
    mc_rig_step want;
    mc_buf a = {0};
    mc_rig_step_open(&want, &cpu, dims, 1, 0, 3);
    mc_rig_forward(&want);
    mc_rig_backward(&want);
    mc_rig_collect(&want, &a);
    for (size_t i = 0; i < a.len / sizeof(float); i++) {
        float x, y;
        memcpy(&x, a.data + i * sizeof x, sizeof x);
        memcpy(&y, b.data + i * sizeof y, sizeof y);
        ck_assert(fabsf(x - y) <= 1e-4f * (1 + fabsf(x)));
    }
    ck_assert_int_eq(device->cuda->cuStreamDestroy(stream), 0);
    mc_gpu_leave(device);
    mc_buf_fini(&a);
    mc_buf_fini(&b);
    mc_rig_step_close(&want);
    step_close(&s);
    moec_gpu_close(device);
    mc_rig_close(&cpu);
    mc_rig_close(&gpu);
}
END_TEST

/* ---- refusals -----------------------------------------------------------------------------------------------------
 */

START_TEST(refused)
{
    mc_rig cpu, gpu;
    moec_gpu *device;
    gpu_step s;
    open_rigs(&cpu, &gpu, false);
    OK(moec_gpu_open(0, &device, &error));
    step_open(&s, &cpu, &gpu, device, 7);
    uint64_t launches = stats_now().launches;
    moec_train_call c = s.call;
    c.gpu = NULL;
    REFUSED(moec_train_forward(gpu.model, &c, &error), MOEC_ERR_ARGUMENT, "call.gpu");
    REFUSED(moec_train_forward(cpu.model, &s.call, &error), MOEC_ERR_ARGUMENT, "must be null");
    c = s.call;
    c.check_finite = true;
    REFUSED(moec_train_backward(gpu.model, &c, &error), MOEC_ERR_UNSUPPORTED, "check_finite");
    c = s.call;
    c.workspace_bytes = 64;
    REFUSED(moec_train_backward(gpu.model, &c, &error), MOEC_ERR_ARGUMENT, "moec_train_query");
    c = s.call;
    c.workspace = s.host.call.workspace;
    REFUSED(moec_train_forward(gpu.model, &c, &error), MOEC_ERR_ARGUMENT, "workspace is memory of the processor");
    c = s.call;
    c.saved = (char *)c.saved + 64;
    c.saved_bytes -= 64;
    REFUSED(moec_train_forward(gpu.model, &c, &error), MOEC_ERR_ARGUMENT, "saved has");
    c = s.call;
    c.reserved[0] = 1;
    REFUSED(moec_train_forward(gpu.model, &c, &error), MOEC_ERR_ARGUMENT, "reserved");
    void *first = s.params[0];
    s.params[0] = (char *)first + 4;
    REFUSED(moec_train_forward(gpu.model, &s.call, &error), MOEC_ERR_ARGUMENT, "no multiple of 16");
    s.params[0] = NULL;
    REFUSED(moec_train_forward(gpu.model, &s.call, &error), MOEC_ERR_ARGUMENT, "is null");
    s.params[0] = first;
    void *x = s.inputs[0].data;
    s.inputs[0].data = s.host.inputs[0].data;
    REFUSED(moec_train_forward(gpu.model, &s.call, &error), MOEC_ERR_ARGUMENT, "memory of the processor");
    s.inputs[0].data = x;
    s.inputs[0].dims[1]++;
    REFUSED(moec_train_forward(gpu.model, &s.call, &error), MOEC_ERR_ARGUMENT, "input x");
    s.inputs[0].dims[1]--;
    ck_assert_uint_eq(stats_now().launches, launches);
    OK(moec_train_forward(gpu.model, &s.call, &error));
    step_close(&s);
    moec_gpu_close(device);
    mc_rig_close(&cpu);
    mc_rig_close(&gpu);
}
END_TEST

int
main(void)
{
    setenv("MOEC_NVRTC", FAKE_NVRTC, 1);
    setenv("MOEC_CUDA_DRIVER", FAKE_CUDA, 1);
    Suite *s = suite_create("gpu_train");
    TCase *t = tcase_create("gpu_train");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, results_agree, 0, 2);
    tcase_add_test(t, parts_left_out);
    tcase_add_test(t, refused);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
