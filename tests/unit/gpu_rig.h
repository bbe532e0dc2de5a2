/* gpu_rig: what tests of the runtime on a GPU share: models written by hand, the fake driver's figures, and a process
 * that has not loaded a driver yet for every test. */
#ifndef MC_TESTS_GPU_RIG_H
#define MC_TESTS_GPU_RIG_H

#include "moec/gpu.h"
#include "runtime/image.h"
#include "tests/gpu/fake.h"
#include "tests/support/fake_gpu.h"

#include <check.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static mc_buf counter_image, scale_image; /* made once, before the tests */
static moec_error error;

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define REFUSED(expression, status, part)                                                                              \
    do {                                                                                                               \
        ck_assert_int_eq((expression), (status));                                                                      \
        ck_assert_msg(strstr(error.text, (part)) != NULL, "\"%s\" does not say \"%s\"", error.text, (part));           \
    } while (0)

static inline void
fake_env(const char *name, const char *value)
{
    ck_assert_int_eq(setenv(name, value, 1), 0);
}

static inline fake_stats
stats_now(void)
{
    fake_stats s;
    void *library = dlopen(FAKE_CUDA, RTLD_NOW);
    fake_stats_fn *get = NULL;
    ck_assert_ptr_nonnull(library);
    void *address = dlsym(library, "fake_cuda_stats");
    memcpy(&get, &address, sizeof get);
    get(&s);
    return s;
}

static inline void
nothing_left(void)
{
    fake_stats s = stats_now();
    ck_assert_uint_eq(s.device_blocks, 0);
    ck_assert_uint_eq(s.streams + s.events + s.modules + s.graphs + s.graph_execs + s.host_blocks, 0);
    ck_assert_uint_eq(s.contexts, 0);
}

/* A model, weights and a GPU. */
typedef struct rig {
    moec_gpu *gpu;
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
} rig;

static inline void
rig_open(rig *r, const mc_buf *image)
{
    *r = (rig){0};
    OK(moec_gpu_open(0, &r->gpu, &error));
    OK(moec_model_from_image(image->data, image->len, &r->model, &error));
    OK(moec_weights_synthetic(r->model, NULL, &r->weights, &error));
}

static inline void
rig_session(rig *r, moec_session_options options)
{
    options.gpu = r->gpu;
    OK(moec_session_create(r->model, r->weights, &options, &r->session, &error));
}

static inline void
rig_close(rig *r)
{
    moec_session_destroy(r->session);
    moec_weights_close(r->weights);
    moec_model_destroy(r->model);
    moec_gpu_close(r->gpu);
}

/* Runs the tests that `add` adds. */
static inline int
rig_main(const char *name, void (*add)(TCase *))
{
    setenv("MOEC_NVRTC", FAKE_NVRTC, 1);
    setenv("MOEC_CUDA_DRIVER", FAKE_CUDA, 1);
    mc_arena *arena = mc_arena_create();
    const moec_abi_model *counter = fake_gpu_counter(arena), *scale = fake_gpu_scale(arena);
    if (!counter || !scale) return EXIT_FAILURE;
    mc_image_write(counter, &counter_image);
    mc_image_write(scale, &scale_image);
    Suite *s = suite_create(name);
    TCase *t = tcase_create(name);
    tcase_set_timeout(t, 60);
    add(t);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    mc_buf_fini(&counter_image);
    mc_buf_fini(&scale_image);
    mc_arena_destroy(arena);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
