/* The runtime on artefacts written by hand: pool, plan walking, sessions, stepping with a cache, sampling. Weights and
 * files are in test_weights.c. */
#define _GNU_SOURCE
#include "moec/runtime.h"
#include "runtime/host_cpu.h"
#include "runtime/pool.h"
#include "runtime/sample.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const char *dir;
static moec_error error;

static void
setup(void)
{
    dir = test_directory();
    setenv("MOEC_CACHE", test_path(dir, "cache"), 1);
}

static void
teardown(void)
{
    test_directory_remove(dir);
}

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define REFUSED(expression, status, part)                                                                              \
    do {                                                                                                               \
        ck_assert_int_eq((expression), (status));                                                                      \
        ck_assert_msg(strstr(error.text, (part)) != NULL, "\"%s\" does not say \"%s\"", error.text, (part));           \
    } while (0)

/* ---- pool ------------------------------------------------------------------------------------------------------- */

typedef struct pool_case {
    mc_pool *pool;
    int rounds;
    _Atomic int came[64];
    int plain[64]; /* written without atomics: the barrier must order it */
    _Atomic int wrong;
} pool_case;

static void
meet(void *context, uint32_t thread, uint32_t n)
{
    pool_case *c = context;
    for (int r = 0; r < c->rounds; r++) {
        c->plain[thread] = r;
        mc_pool_barrier(c->pool);
        for (uint32_t t = 0; t < n; t++)
            if (c->plain[t] != r) c->wrong = 1;
        mc_pool_barrier(c->pool);
    }
    c->came[thread]++;
}

START_TEST(pool_barriers)
{
    static const uint32_t sizes[] = {1, 2, 3, 7};
    mc_fault fault;
    pool_case c = {.rounds = 300};
    ck_assert_int_eq(mc_pool_create(sizes[_i], NULL, NULL, &c.pool, &fault), MOEC_OK);
    ck_assert_uint_eq(mc_pool_n_threads(c.pool), sizes[_i]);
    for (int run = 0; run < 20; run++) mc_pool_run(c.pool, meet, &c);
    mc_pool_destroy(c.pool);
    ck_assert_int_eq(c.wrong, 0);
    for (uint32_t t = 0; t < sizes[_i]; t++) ck_assert_int_eq(c.came[t], 20);
}
END_TEST

typedef struct host_job {
    void (*body)(void *, uint32_t);
    void *context;
    uint32_t thread;
} host_job;

static void *
host_thread(void *argument)
{
    host_job *j = argument;
    j->body(j->context, j->thread);
    return NULL;
}

static void
host_parallel(void *context, uint32_t n, void (*body)(void *, uint32_t), void *body_context)
{
    pthread_t threads[8];
    host_job jobs[8];
    ++*(int *)context;
    for (uint32_t t = 0; t < n; t++) {
        jobs[t] = (host_job){body, body_context, t};
        if (t) ck_assert_int_eq(pthread_create(&threads[t], NULL, host_thread, &jobs[t]), 0);
    }
    body(body_context, 0);
    for (uint32_t t = 1; t < n; t++) pthread_join(threads[t], NULL);
}

START_TEST(pool_of_the_host)
{
    mc_fault fault;
    int calls = 0;
    pool_case c = {.rounds = 50};
    ck_assert_int_eq(mc_pool_create(4, host_parallel, &calls, &c.pool, &fault), MOEC_OK);
    for (int run = 0; run < 3; run++) mc_pool_run(c.pool, meet, &c);
    mc_pool_destroy(c.pool);
    ck_assert_int_eq(calls, 3);
    ck_assert_int_eq(c.wrong, 0);
    ck_assert_int_eq(c.came[3], 3);
}
END_TEST

START_TEST(pool_limits)
{
    mc_fault fault;
    mc_pool *pool;
    ck_assert_int_eq(mc_pool_create(100000, NULL, NULL, &pool, &fault), MOEC_ERR_RANGE);
    ck_assert_ptr_null(pool);
    ck_assert_uint_ge(mc_host_cpus(), 1);
}
END_TEST

/* ---- processors -------------------------------------------------------------------------------------------------- */

START_TEST(processor_features)
{
    mc_fault fault = {{0}};
    ck_assert_int_eq(mc_host_has("", "any", "m", &fault), MOEC_OK);
#if defined(__x86_64__)
    ck_assert_int_eq(mc_host_has("sse3", "x86-64-v2", "m", &fault), MOEC_OK);
#endif
    ck_assert_int_eq(mc_host_has("avx1024,warp-drive", "future", "m", &fault), MOEC_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(fault.text, "warp-drive"));
    ck_assert_ptr_nonnull(strstr(fault.text, "compile it again"));
}
END_TEST

START_TEST(processor_refuses_a_session)
{
    moec_abi_model abi = *fake_counter();
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
    st_file f;
    int64_t dims[] = {256};
    abi.features = "sse3,no-such-feature";
    st_begin(&f);
    st_add(&f, "model.bias", MOEC_F32, 1, dims, NULL);
    st_write(&f, test_path(dir, "model.safetensors"));
    OK(moec_model_from_abi(&abi, &model, &error));
    REFUSED(moec_model_check_cpu(model, &error), MOEC_ERR_UNSUPPORTED, "no-such-feature");
    OK(moec_weights_open(model, dir, NULL, &weights, &error));
    REFUSED(moec_session_create(model, weights, NULL, &session, &error), MOEC_ERR_UNSUPPORTED, "no-such-feature");
    ck_assert_ptr_null(session);
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

/* ---- descriptors ----------------------------------------------------------------------------------------------- */

START_TEST(descriptor_versions)
{
    moec_model *model;
    moec_abi_model abi = *fake_layers();
    REFUSED(moec_model_from_abi(NULL, &model, &error), MOEC_ERR_MISMATCH, "version");
    abi.version = 99;
    REFUSED(moec_model_from_abi(&abi, &model, &error), MOEC_ERR_MISMATCH, "version 99");
    abi = *fake_layers();
    abi.magic = 7;
    REFUSED(moec_model_from_abi(&abi, &model, &error), MOEC_ERR_MISMATCH, "compile it again");
    ck_assert_ptr_null(model);
}
END_TEST

/* Each case damages one number of a copy of the tables. */
START_TEST(descriptor_tables)
{
    moec_model *model;
    moec_abi_model abi = *fake_layers();
    moec_abi_launch launches[5];
    moec_abi_ref refs[11];
    moec_abi_func funcs[2];
    memcpy(launches, abi.launches, sizeof launches);
    memcpy(refs, abi.refs, sizeof refs);
    memcpy(funcs, abi.funcs, sizeof funcs);
    abi.launches = launches;
    abi.refs = refs;
    abi.funcs = funcs;
    switch (_i) {
    case 0: launches[1].target = 2; break;
    case 1: launches[0].target = 0; break; /* calls itself */
    case 2: launches[3].n_refs = 17; break;
    case 3: launches[3].first_ref = 9; break;
    case 4: refs[7].index = 2; break; /* weight a.w + 2 */
    case 5: refs[3].index = 1; break; /* slot */
    case 6: refs[6].index = 2; break; /* argument */
    case 7: refs[0].place = 9; break;
    case 8: funcs[1].n_launches = 9; break;
    case 9: launches[2].weight_base = 5; break;
    case 10: abi.entry = 2; break;
    case 11: launches[0].n_refs = 1; break;
    case 12: launches[4].first_float = 2; break;
    case 13: abi.rules = NULL; break;
    case 14: refs[0].offset.syms[0] = 1; break;
    }
    REFUSED(moec_model_from_abi(&abi, &model, &error), MOEC_ERR_INTERNAL, "");
    ck_assert_ptr_null(model);
}
END_TEST

START_TEST(descriptor_questions)
{
    moec_model *model;
    moec_tensor_info info;
    OK(moec_model_from_abi(fake_counter(), &model, &error));
    ck_assert_str_eq(moec_model_name(model), "counter");
    ck_assert_int_eq(moec_model_vocab(model), 256);
    ck_assert(moec_model_has_state(model));
    ck_assert_uint_eq(moec_model_n_inputs(model), 1);
    ck_assert_int_eq(moec_model_input(model, 0, &info), MOEC_OK);
    ck_assert_str_eq(info.shape, "[B, S]");
    ck_assert_int_eq(info.limit, 256);
    ck_assert_int_eq(moec_model_output(model, 0, &info), MOEC_OK);
    ck_assert_str_eq(info.shape, "[B, S, 256]");
    ck_assert_int_eq(info.dims[0], -1);
    ck_assert_int_eq(info.dims[2], 256);
    ck_assert_int_eq(moec_model_output(model, 1, &info), MOEC_ERR_ARGUMENT);
    ck_assert_uint_eq(moec_model_weights_bytes(model), 1024);
    moec_model_destroy(model);
    OK(moec_model_from_abi(fake_layers(), &model, &error));
    ck_assert_int_eq(moec_model_vocab(model), 0);
    moec_model_destroy(model);
}
END_TEST

/* ---- plain tensors --------------------------------------------------------------------------------------------- */

typedef struct opened {
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
} opened;

static float w0[16], w1[16];

static opened
open_layers(const moec_session_options *options)
{
    st_file f;
    int64_t dims[] = {4, 4};
    opened o;
    for (int i = 0; i < 16; i++) {
        w0[i] = (float)(i % 5) - 2;
        w1[i] = (float)(i % 7) - 3;
    }
    st_begin(&f);
    st_add(&f, "b.w", MOEC_F32, 2, dims, w1);
    st_add(&f, "a.w", MOEC_F32, 2, dims, w0);
    st_write(&f, test_path(dir, "model.safetensors"));
    OK(moec_model_from_abi(fake_layers(), &o.model, &error));
    OK(moec_weights_open(o.model, dir, NULL, &o.weights, &error));
    OK(moec_session_create(o.model, o.weights, options, &o.session, &error));
    return o;
}

static void
close_all(opened *o)
{
    moec_session_destroy(o->session);
    moec_weights_close(o->weights);
    moec_model_destroy(o->model);
}

static void
expected_layers(const float *x, int rows, float *y)
{
    for (int r = 0; r < rows; r++) {
        float h[4];
        for (int o = 0; o < 4; o++) {
            h[o] = 0;
            for (int k = 0; k < 4; k++) h[o] += x[r * 4 + k] * w0[o * 4 + k];
            if (h[o] < 0) h[o] = 0;
        }
        for (int o = 0; o < 4; o++) {
            y[r * 4 + o] = 0;
            for (int k = 0; k < 4; k++) y[r * 4 + o] += h[k] * w1[o * 4 + k];
        }
    }
}

static float xs[4000], ys[4000], want[4000];

static void
fill_x(void)
{
    for (int i = 0; i < 4000; i++) xs[i] = (float)(i * 37 % 101) / 10 - 5;
}

START_TEST(run_layers)
{
    static const uint32_t threads[] = {1, 2, 3, 8};
    static const int rows[] = {1, 5, 1000, 2};
    moec_session_options options = {.n_threads = threads[_i], .profile = true};
    opened o = open_layers(&options);
    fill_x();
    ck_assert_uint_eq(moec_session_n_threads(o.session), threads[_i]);
    for (int i = 0; i < 4; i++) {
        moec_tensor in = {"x", MOEC_F32, 2, {rows[i], 4}, xs, sizeof xs},
                    out = {.name = "y", .data = ys, .n_bytes = sizeof ys};
        memset(ys, 0xAA, sizeof ys);
        OK(moec_session_run(o.session, &in, 1, &out, 1, &error));
        ck_assert_int_eq(out.dtype, MOEC_F32);
        ck_assert_int_eq(out.rank, 2);
        ck_assert_int_eq(out.dims[0], rows[i]);
        expected_layers(xs, rows[i], want);
        ck_assert_mem_eq(ys, want, (size_t)rows[i] * 16);
    }
    OK(moec_session_run(o.session, &(moec_tensor){NULL, MOEC_F32, 2, {3, 4}, xs, sizeof xs}, 1, NULL, 0, &error));
    ck_assert_int_eq(moec_session_past(o.session), 0);
    moec_profile_entry e, last = {0};
    size_t n = 0;
    for (; moec_session_profile(o.session, n, &e); n++) {
        if (n) ck_assert(e.seconds <= last.seconds);
        last = e;
        ck_assert_uint_eq(e.n_launches, strcmp(e.label, "relu") == 0 ? 15 : 10);
    }
    ck_assert_uint_eq(n, 2);
    moec_session_profile_clear(o.session);
    ck_assert(!moec_session_profile(o.session, 0, &e));
    close_all(&o);
}
END_TEST

START_TEST(run_with_host_threads)
{
    int calls = 0;
    moec_session_options options = {.n_threads = 3, .parallel = host_parallel, .parallel_context = &calls};
    opened o = open_layers(&options);
    fill_x();
    moec_tensor in = {"x", MOEC_F32, 2, {50, 4}, xs, sizeof xs}, out = {.name = "y", .data = ys, .n_bytes = sizeof ys};
    OK(moec_session_run(o.session, &in, 1, &out, 1, &error));
    expected_layers(xs, 50, want);
    ck_assert_mem_eq(ys, want, 50 * 16);
    ck_assert_int_eq(calls, 1);
    close_all(&o);
}
END_TEST

START_TEST(run_refuses)
{
    opened o = open_layers(NULL);
    moec_session *other;
    moec_tensor good = {"x", MOEC_F32, 2, {2, 4}, xs, sizeof xs}, in = good,
                out = {.name = "y", .data = ys, .n_bytes = 16};
    REFUSED(moec_session_run(o.session, NULL, 0, NULL, 0, &error), MOEC_ERR_ARGUMENT, "input x is missing");
    in.name = "z";
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "no input named z");
    in = good;
    in.dtype = MOEC_BF16;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "is f32, not bf16");
    in = good;
    in.rank = 3;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "2 dimensions");
    in = good;
    in.n_bytes = 31;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "31 bytes");
    in = good;
    in.dims[1] = 3;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_MISMATCH, "dimension 1 is 3");
    in = good;
    in.dims[0] = 0;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_RANGE, "T = 0");
    in.dims[0] = 1001;
    in.n_bytes = SIZE_MAX;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_RANGE, "1..1000");
    in.dims[0] = INT64_MAX;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "");
    in = good;
    in.dims[0] = -1;
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "");
    REFUSED(moec_session_run(o.session, &good, 1, &out, 1, &error), MOEC_ERR_ARGUMENT, "output y needs 32 bytes");
    int32_t id = 0;
    REFUSED(moec_session_feed(o.session, &id, 1, 1, NULL, &error), MOEC_ERR_ARGUMENT, "not a language model");
    moec_limit limit = {"T", 10}, unknown = {"Q", 10}, large = {"T", 2000};
    moec_session_options options = {.limits = &unknown, .n_limits = 1};
    REFUSED(moec_session_create(o.model, o.weights, &options, &other, &error), MOEC_ERR_ARGUMENT, "named Q");
    options.limits = &large;
    REFUSED(moec_session_create(o.model, o.weights, &options, &other, &error), MOEC_ERR_RANGE, "1..1000");
    options.limits = &limit;
    OK(moec_session_create(o.model, o.weights, &options, &other, &error));
    in = good;
    in.dims[0] = 11;
    REFUSED(moec_session_run(other, &in, 1, NULL, 0, &error), MOEC_ERR_RANGE, "at most 10");
    moec_session_destroy(other);
    close_all(&o);
}
END_TEST

/* ---- stepping -------------------------------------------------------------------------------------------------- */

static float bias[256];

static opened
open_counter(const moec_session_options *options)
{
    st_file f;
    int64_t dims[] = {256};
    opened o;
    for (int i = 0; i < 256; i++) bias[i] = (float)(i % 10) / 100;
    st_begin(&f);
    st_add(&f, "model.bias", MOEC_F32, 1, dims, bias);
    st_write(&f, test_path(dir, "model.safetensors"));
    OK(moec_model_from_abi(fake_counter(), &o.model, &error));
    OK(moec_weights_open(o.model, dir, NULL, &o.weights, &error));
    OK(moec_session_create(o.model, o.weights, options, &o.session, &error));
    return o;
}

static float
expected_logit(const int32_t *ids, size_t position, int v)
{
    float sum = bias[v];
    for (size_t p = 0; p <= position; p++) sum += ids[p] == v ? 2.0f : 0.0f;
    return sum + (v == (ids[position] + 1) % 256 ? 0.5f : 0.0f);
}

static float logits_a[2 * 40 * 256], logits_b[2 * 40 * 256];

/* 40 positions of two sequences, cut in several ways, must give the same logits. */
START_TEST(feed_in_pieces)
{
    static const size_t cuts[] = {40, 1, 7, 13};
    static int32_t ids[80], piece[80];
    moec_session_options options = {.n_threads = (uint32_t)_i + 1, .max_batch = 2, .max_new = _i == 3 ? 5 : 0};
    opened o = open_counter(&options);
    for (int i = 0; i < 80; i++) ids[i] = i * i % 256;
    for (size_t at = 0; at < 40;) {
        size_t n = 40 - at < cuts[_i] ? 40 - at : cuts[_i];
        for (size_t b = 0; b < 2; b++) memcpy(piece + b * n, ids + b * 40 + at, n * 4);
        OK(moec_session_feed(o.session, piece, 2, n, logits_a, &error));
        for (size_t b = 0; b < 2; b++) memcpy(logits_b + (b * 40 + at) * 256, logits_a + b * n * 256, n * 1024);
        at += n;
        ck_assert_int_eq(moec_session_past(o.session), (int64_t)at);
    }
    for (size_t b = 0; b < 2; b++) {
        for (size_t p = 0; p < 40; p++)
            for (int v = 0; v < 256; v++)
                ck_assert_msg(logits_b[(b * 40 + p) * 256 + v] == expected_logit(ids + b * 40, p, v), "%zu %zu %d", b,
                              p, v);
        ck_assert_mem_eq(moec_session_logits(o.session, b), logits_b + (b * 40 + 39) * 256, 1024);
    }
    ck_assert_ptr_null(moec_session_logits(o.session, 2));
    close_all(&o);
}
END_TEST

START_TEST(feed_bounds)
{
    moec_session_options options = {.max_positions = 10};
    opened o = open_counter(&options);
    moec_session *other;
    int32_t ids[11] = {0, 1, 2, 300, 4, 5, 6, 7, 8, 9, 10};
    REFUSED(moec_session_feed(o.session, ids, 1, 4, NULL, &error), MOEC_ERR_RANGE,
            "id 300 at position 3 of sequence 0");
    ids[3] = -1;
    REFUSED(moec_session_feed(o.session, ids, 1, 4, NULL, &error), MOEC_ERR_RANGE, "id -1 at position 3");
    moec_tensor in = {"tokens", MOEC_I32, 2, {1, 4}, ids, sizeof ids};
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_RANGE, "id -1 at position 3");
    ids[3] = 3;
    REFUSED(moec_session_feed(o.session, ids, 1, 11, NULL, &error), MOEC_ERR_RANGE, "holds 10");
    REFUSED(moec_session_feed(o.session, ids, 2, 2, NULL, &error), MOEC_ERR_RANGE, "at most 1");
    REFUSED(moec_session_feed(o.session, ids, 1, 0, NULL, &error), MOEC_ERR_ARGUMENT, "no ids");
    ck_assert_int_eq(moec_session_past(o.session), 0);
    OK(moec_session_feed(o.session, ids, 1, 10, NULL, &error));
    REFUSED(moec_session_feed(o.session, ids, 1, 1, NULL, &error), MOEC_ERR_RANGE, "10 cached and 1 new");
    ck_assert_int_eq(moec_session_past(o.session), 10);
    options.max_positions = 65;
    REFUSED(moec_session_create(o.model, o.weights, &options, &other, &error), MOEC_ERR_RANGE, "at most 64");
    close_all(&o);
}
END_TEST

START_TEST(truncate_and_reset)
{
    opened o = open_counter(NULL);
    int32_t ids[] = {5, 6, 7, 8, 9}, other[] = {5, 6, 1, 2};
    OK(moec_session_feed(o.session, ids, 1, 5, NULL, &error));
    REFUSED(moec_session_truncate(o.session, 6, &error), MOEC_ERR_RANGE, "cannot keep 6");
    OK(moec_session_truncate(o.session, 2, &error));
    ck_assert_int_eq(moec_session_past(o.session), 2);
    ck_assert_ptr_null(moec_session_logits(o.session, 0));
    OK(moec_session_feed(o.session, other + 2, 1, 2, NULL, &error));
    for (int v = 0; v < 256; v++) ck_assert(moec_session_logits(o.session, 0)[v] == expected_logit(other, 3, v));
    moec_session_reset(o.session);
    ck_assert_int_eq(moec_session_past(o.session), 0);
    OK(moec_session_feed(o.session, ids, 1, 1, NULL, &error));
    for (int v = 0; v < 256; v++) ck_assert(moec_session_logits(o.session, 0)[v] == expected_logit(ids, 0, v));
    close_all(&o);
}
END_TEST

START_TEST(batch_must_stay)
{
    moec_session_options options = {.max_batch = 3};
    opened o = open_counter(&options);
    int32_t ids[] = {1, 2, 3};
    OK(moec_session_feed(o.session, ids, 3, 1, NULL, &error));
    REFUSED(moec_session_feed(o.session, ids, 2, 1, NULL, &error), MOEC_ERR_ARGUMENT, "reset first");
    moec_tensor in = {"tokens", MOEC_I32, 2, {2, 1}, ids, sizeof ids};
    REFUSED(moec_session_run(o.session, &in, 1, NULL, 0, &error), MOEC_ERR_ARGUMENT, "reset first");
    moec_session_reset(o.session);
    OK(moec_session_feed(o.session, ids, 2, 1, NULL, &error));
    close_all(&o);
}
END_TEST

typedef struct stream {
    opened *o;
    int32_t first;
    bool good;
} stream;

static void *
run_stream(void *argument)
{
    stream *s = argument;
    moec_error e;
    moec_session *session;
    moec_session_options options = {.n_threads = 2};
    int32_t ids[20];
    s->good = moec_session_create(s->o->model, s->o->weights, &options, &session, &e) == MOEC_OK;
    for (int i = 0; i < 20 && s->good; i++) {
        ids[i] = (s->first + 3 * i) % 256;
        s->good = moec_session_feed(session, &ids[i], 1, 1, NULL, &e) == MOEC_OK;
        for (int v = 0; v < 256 && s->good; v++)
            s->good = moec_session_logits(session, 0)[v] == expected_logit(ids, (size_t)i, v);
    }
    moec_session_destroy(session);
    return NULL;
}

START_TEST(sessions_share_weights)
{
    opened o = open_counter(NULL);
    pthread_t threads[4];
    stream streams[4];
    for (int i = 0; i < 4; i++) {
        streams[i] = (stream){&o, i * 50, false};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, run_stream, &streams[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        ck_assert(streams[i].good);
    }
    close_all(&o);
}
END_TEST

START_TEST(memory_is_a_status)
{
    moec_abi_model abi = *fake_counter();
    moec_abi_state huge = {"cache0", 0, 0, INT64_MAX / 2};
    opened o = open_counter(NULL);
    moec_model *model;
    moec_weights *weights;
    moec_session *session;
    abi.states = &huge;
    OK(moec_model_from_abi(&abi, &model, &error));
    OK(moec_weights_open(model, dir, NULL, &weights, &error));
    REFUSED(moec_session_create(model, weights, NULL, &session, &error), MOEC_ERR_MEMORY, "caches");
    ck_assert_ptr_null(session);
    abi.states = fake_counter()->states;
    abi.scratch_bytes = UINT64_C(1) << 55;
    REFUSED(moec_session_create(model, weights, NULL, &session, &error), MOEC_ERR_MEMORY, "scratch");
    REFUSED(moec_session_create(o.model, weights, NULL, &session, &error), MOEC_ERR_ARGUMENT, "another model");
    moec_weights_close(weights);
    moec_model_destroy(model);
    close_all(&o);
}
END_TEST

/* ---- sampling -------------------------------------------------------------------------------------------------- */

START_TEST(sampling_is_reproducible)
{
    /* These numbers are part of the interface: the documented generator gives them on every machine. */
    ck_assert(mc_sample_uniform(0, 0, 0) == (double)(UINT64_C(0xE220A8397B1DCDAF) >> 11) * 0x1p-53);
    ck_assert(mc_sample_uniform(0, 1, 0) == (double)(UINT64_C(0x6E789E6AA1B965F4) >> 11) * 0x1p-53);
    for (int i = 0; i < 2000; i++) {
        double x = -i * 0.05;
        ck_assert_double_le(fabs(mc_sample_exp(x) - exp(x)), 1e-13 * exp(x));
    }
    ck_assert(mc_sample_exp(-1e300) == 0);
    ck_assert(mc_sample_exp(-INFINITY) == 0);
}
END_TEST

START_TEST(sampling_follows_the_logits)
{
    enum { N = 5, DRAWS = 20000 };
    const float logits[N] = {1.0f, 3.0f, -2.0f, 3.0f, 0.0f};
    double scratch[2 * N], p[N], total = 0;
    int counts[N] = {0};
    int32_t id;
    mc_fault fault;
    moec_sampling greedy = {0}, warm = {.temperature = 1.5}, nucleus = {.temperature = 1, .top_p = 0.9};
    ck_assert_int_eq(mc_sample(logits, N, NULL, 0.9, scratch, &id, &fault), MOEC_OK);
    ck_assert_int_eq(id, 1); /* ties: the lower id */
    ck_assert_int_eq(mc_sample(logits, N, &greedy, 0.9, scratch, &id, &fault), MOEC_OK);
    ck_assert_int_eq(id, 1);
    for (int i = 0; i < N; i++) total += p[i] = exp(logits[i] / 1.5);
    for (int d = 0; d < DRAWS; d++) {
        ck_assert_int_eq(mc_sample(logits, N, &warm, mc_sample_uniform(7, (uint64_t)d, 0), scratch, &id, &fault),
                         MOEC_OK);
        counts[id]++;
    }
    for (int i = 0; i < N; i++) ck_assert_double_le(fabs((double)counts[i] / DRAWS - p[i] / total), 0.015);
    for (int d = 0; d < 2000; d++) { /* 1 and 3 have 0.457 each, 0 has 0.062: the fewest that reach 0.9 are 1 and 3 */
        ck_assert_int_eq(mc_sample(logits, N, &nucleus, mc_sample_uniform(7, (uint64_t)d, 0), scratch, &id, &fault),
                         MOEC_OK);
        ck_assert(id == 1 || id == 3);
    }
}
END_TEST

START_TEST(sampling_refuses_nan)
{
    float logits[3] = {1, NAN, 2};
    double scratch[6];
    int32_t id;
    mc_fault fault;
    ck_assert_int_eq(mc_sample(logits, 3, NULL, 0, scratch, &id, &fault), MOEC_ERR_RANGE);
    ck_assert_ptr_nonnull(strstr(fault.text, "id 1 is not a number"));
    logits[1] = INFINITY;
    ck_assert_int_eq(mc_sample(logits, 3, NULL, 0, scratch, &id, &fault), MOEC_ERR_RANGE);
    logits[0] = logits[1] = logits[2] = -INFINITY;
    ck_assert_int_eq(mc_sample(logits, 3, NULL, 0, scratch, &id, &fault), MOEC_ERR_RANGE);
    opened o = open_counter(NULL);
    REFUSED(moec_sample(o.session, 0, NULL, 0, &id, &error), MOEC_ERR_ARGUMENT, "nothing was fed");
    id = 41;
    OK(moec_session_feed(o.session, &id, 1, 1, NULL, &error));
    OK(moec_sample(o.session, 0, NULL, 0, &id, &error));
    ck_assert_int_eq(id, 41);
    close_all(&o);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("runtime");
    TCase *t = tcase_create("runtime");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, pool_barriers, 0, 4);
    tcase_add_test(t, pool_of_the_host);
    tcase_add_test(t, pool_limits);
    tcase_add_test(t, processor_features);
    tcase_add_test(t, processor_refuses_a_session);
    tcase_add_test(t, descriptor_versions);
    tcase_add_loop_test(t, descriptor_tables, 0, 15);
    tcase_add_test(t, descriptor_questions);
    tcase_add_loop_test(t, run_layers, 0, 4);
    tcase_add_test(t, run_with_host_threads);
    tcase_add_test(t, run_refuses);
    tcase_add_loop_test(t, feed_in_pieces, 0, 4);
    tcase_add_test(t, feed_bounds);
    tcase_add_test(t, truncate_and_reset);
    tcase_add_test(t, batch_must_stay);
    tcase_add_test(t, sessions_share_weights);
    tcase_add_test(t, memory_is_a_status);
    tcase_add_test(t, sampling_is_reproducible);
    tcase_add_test(t, sampling_follows_the_logits);
    tcase_add_test(t, sampling_refuses_nan);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
