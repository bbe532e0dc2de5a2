/* truth_rig: the reference checkpoints of tests/reference, imported, compiled, bound and run. */
#ifndef MC_TESTS_TRUTH_RIG_H
#define MC_TESTS_TRUTH_RIG_H

#include "moec/gpu.h"
#include "moec/moec.h"
#include "runtime/npy.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const cases[] = {"mixtral_tiny",    "mixtral_bf16_tiny",       "mixtral_fused_tiny",
                                    "qwen2moe_tiny",   "qwen3moe_tiny",           "olmoe_tiny",
                                    "deepseekv3_tiny", "deepseekv3_noqlora_tiny", "deepseekv3_fp8_tiny"};
enum { N_CASES = sizeof cases / sizeof cases[0], PATH_BYTES = 512 };
static const char *const lengths[] = {"1", "7", "64", "2x7"};
enum { N_LENGTHS = 4 };

/* ---- small tools ---- */

static inline const char *
moec_binary(void)
{
    const char *path = getenv("MOEC_TEST_BINARY");
    return path ? path : "build/moec";
}

static inline void
run_command(const char *format, ...)
{
    char command[4 * PATH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    int status = system(command);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "failed: %s", command);
}

static inline mc_npy
read_npy(const char *name, const char *what, const char *suffix)
{
    char path[PATH_BYTES];
    mc_fault fault = {0};
    mc_npy npy;
    snprintf(path, sizeof path, "tests/reference/%s/expected/%s%s%s.npy", name, what, *suffix ? "_" : "", suffix);
    ck_assert_msg(mc_npy_read(path, &npy, &fault) == MOEC_OK, "%s", fault.text);
    return npy;
}

static inline int64_t
count(const mc_npy *npy)
{
    int64_t n = 1;
    for (uint32_t i = 0; i < npy->rank; i++) n *= npy->dims[i];
    return n;
}

static inline const int32_t *
as_ids(const mc_npy *npy)
{
    ck_assert_int_eq(npy->dtype, MOEC_I32);
    return (const int32_t *)(const void *)npy->data.data;
}

static inline const float *
as_floats(const mc_npy *npy)
{
    ck_assert_int_eq(npy->dtype, MOEC_F32);
    return (const float *)(const void *)npy->data.data;
}

/* Greatest difference over greatest value. */
static inline double
relative_error(const float *a, const float *b, int64_t n)
{
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d;
        if (fabs((double)b[i]) > scale) scale = fabs((double)b[i]);
    }
    return worst / scale;
}

static inline void
print_diagnostic(void *user, const moec_diagnostic *d)
{
    (void)user;
    if (d->severity == MOEC_SEVERITY_ERROR) fputs(d->rendered, stderr);
}

/* ---- a case, imported and compiled ---- */

typedef struct subject {
    const char *name;
    char directory[PATH_BYTES], work[PATH_BYTES], text[PATH_BYTES];
    moec_compiled *compiled;
    moec_model *model;
    moec_weights *weights;
    moec_gpu *gpu; /* NULL: on this processor */
    moec_error error;
} subject;

static inline void
subject_open_with(subject *s, const char *name, moec_compile_options options)
{
    *s = (subject){.name = name};
    snprintf(s->directory, sizeof s->directory, "tests/reference/%s", name);
    snprintf(s->work, sizeof s->work, "/tmp/moec-truth-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(s->work));
    snprintf(s->text, sizeof s->text, "%.400s/model.moe", s->work);
    run_command("%s import %s -o %s", moec_binary(), s->directory, s->text);
    options.on_diagnostic = print_diagnostic;
    ck_assert_int_eq(moec_compile_file(s->text, &options, &s->compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(s->compiled, &s->model, &s->error) == MOEC_OK, "%s", s->error.text);
    moec_weights_options in_memory = {.in_memory = true};
    ck_assert_msg(moec_weights_open(s->model, s->directory, &in_memory, &s->weights, &s->error) == MOEC_OK, "%s",
                  s->error.text);
}

static inline void
subject_open(subject *s, const char *name)
{
    subject_open_with(s, name, (moec_compile_options){.cache = ""});
}

static inline void
subject_close(subject *s)
{
    moec_weights_close(s->weights);
    moec_gpu_close(s->gpu);
    moec_compiled_destroy(s->compiled);
    run_command("rm -r %s", s->work);
}

static inline moec_session *
open_session(subject *s, uint32_t n_threads)
{
    moec_session *session;
    moec_session_options options = {
        .n_threads = n_threads, .max_batch = 2, .max_positions = 128, .max_new = 64, .gpu = s->gpu};
    moec_status status = moec_session_create(s->model, s->weights, &options, &session, &s->error);
    ck_assert_msg(status == MOEC_OK, "%s", s->error.text);
    return session;
}

/* Caller frees. */
static inline float *
logits_of(subject *s, const mc_npy *ids, uint32_t n_threads, int64_t step)
{
    int64_t batch = ids->dims[0], n = ids->dims[1], vocab = moec_model_vocab(s->model);
    const int32_t *all = as_ids(ids);
    float *out = calloc((size_t)(batch * n * vocab), sizeof *out),
          *part = calloc((size_t)(batch * step * vocab), sizeof *out);
    int32_t *chunk = calloc((size_t)(batch * step), sizeof *chunk);
    moec_session *session = open_session(s, n_threads);
    for (int64_t at = 0; at < n; at += step) {
        int64_t now = n - at < step ? n - at : step;
        for (int64_t b = 0; b < batch; b++) memcpy(chunk + b * now, all + b * n + at, (size_t)now * sizeof *chunk);
        moec_status status = moec_session_feed(session, chunk, (size_t)batch, (size_t)now, part, &s->error);
        ck_assert_msg(status == MOEC_OK, "%s", s->error.text);
        for (int64_t b = 0; b < batch; b++)
            memcpy(out + (b * n + at) * vocab, part + b * now * vocab, (size_t)(now * vocab) * sizeof *out);
    }
    moec_session_destroy(session);
    free(part);
    free(chunk);
    return out;
}

#endif
