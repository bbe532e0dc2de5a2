/* The pieces of moec train without a model: AdamW against PyTorch, the loss against f64, schedules, the reader of the
 * train block, first values, batches, checkpoints whole or not at all, bars. test_train_cmd.c trains models. */
#define _GNU_SOURCE
#include "driver/train/cross_entropy.h"
#include "driver/train/train_bar.h"
#include "driver/train/train_checkpoint.h"
#include "driver/train/train_data.h"
#include "driver/train/train_init.h"
#include "driver/train/train_random.h"
#include "driver/train/train_settings.h"
#include "runtime/safetensors.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the optimizer ---- */

enum { MAX_SIZE = 64 };

static size_t
read_numbers(const json_t *list, float *out)
{
    size_t n = json_array_size(list);
    ck_assert_uint_le(n, MAX_SIZE);
    for (size_t i = 0; i < n; i++) out[i] = (float)json_number_value(json_array_get(list, i));
    return n;
}

static double
field(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    ck_assert_msg(json_is_number(value), "no %s", key);
    return json_number_value(value);
}

/* f32 rounding in another order than PyTorch's, over the steps so far. */
static void
check_near(const float *got, const float *want, size_t n, size_t step)
{
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(fabs((double)got[i] - (double)want[i]) <= 2e-7 * (double)(step + 1) * (1 + fabs((double)want[i])),
                      "step %zu, element %zu: %.9g, PyTorch %.9g", step, i, (double)got[i], (double)want[i]);
}

START_TEST(test_adamw)
{
    json_t *cases = json_load_file("tests/reference/adamw/adamw.json", 0, NULL);
    ck_assert_uint_ge(json_array_size(cases), 3);
    const json_t *c = json_array_get(cases, (size_t)_i), *steps = json_object_get(c, "steps");
    const json_t *betas = json_object_get(c, "betas");
    mc_adamw a = {.beta1 = json_number_value(json_array_get(betas, 0)),
                  .beta2 = json_number_value(json_array_get(betas, 1)),
                  .eps = field(c, "eps"),
                  .clip = field(c, "clip")};
    float p[MAX_SIZE], g[MAX_SIZE], want[MAX_SIZE], m[MAX_SIZE] = {0}, v[MAX_SIZE] = {0};
    size_t n = read_numbers(json_object_get(c, "before"), p);
    ck_assert_uint_ge(json_array_size(steps), 10);
    for (size_t t = 0; t < json_array_size(steps); t++) {
        const json_t *step = json_array_get(steps, t);
        ck_assert_uint_eq(read_numbers(json_object_get(step, "gradient"), g), n);
        ck_assert_uint_eq(read_numbers(json_object_get(step, "after"), want), n);
        double norm = sqrt(mc_sum_of_squares(g, n));
        ck_assert_double_eq_tol(norm, field(step, "norm"), 1e-12 * (1 + norm));
        mc_adamw_update(&a, field(step, "lr"), field(c, "decay"), t + 1, mc_clip_scale(&a, norm), n, p, g, m, v);
        check_near(p, want, n, t);
    }
    json_decref(cases);
}
END_TEST

/* However an array is cut, the elements come out the same. */
START_TEST(test_adamw_pieces)
{
    mc_adamw a = mc_adamw_default();
    float p[2][37], g[37], m[2][37] = {{0}}, v[2][37] = {{0}};
    for (int i = 0; i < 37; i++) {
        p[0][i] = p[1][i] = (float)mc_train_normal(1, 2, (uint64_t)i);
        g[i] = (float)mc_train_normal(1, 3, (uint64_t)i);
    }
    mc_adamw_update(&a, 0.1, 0.1, 3, 0.7, 37, p[0], g, m[0], v[0]);
    for (size_t i = 0, n = 1; i < 37; i += n, n = n % 5 + 1) {
        if (n > 37 - i) n = 37 - i;
        mc_adamw_update(&a, 0.1, 0.1, 3, 0.7, n, p[1] + i, g + i, m[1] + i, v[1] + i);
    }
    ck_assert_mem_eq(p[0], p[1], sizeof p[0]);
    ck_assert_mem_eq(m[0], m[1], sizeof m[0]);
    ck_assert_mem_eq(v[0], v[1], sizeof v[0]);
}
END_TEST

/* ---- the loss ---- */

enum { ROWS = 13, VOCAB = 29 };

static double
loss_of(uint32_t n_threads, double scale, float *logits, double *row_losses, int32_t *targets)
{
    mc_pool *pool;
    mc_fault fault = {0};
    ck_assert_int_eq(mc_pool_create(n_threads, NULL, NULL, &pool, &fault), MOEC_OK);
    for (int i = 0; i < ROWS * VOCAB; i++) logits[i] = (float)(30 * mc_train_normal(5, 1, (uint64_t)i));
    for (int r = 0; r < ROWS; r++) targets[r] = (int32_t)mc_train_below(5, 2, (uint64_t)r, VOCAB);
    double sum = mc_cross_entropy(pool, logits, targets, ROWS, VOCAB, scale, row_losses);
    mc_pool_destroy(pool);
    return sum;
}

START_TEST(test_cross_entropy)
{
    float logits[ROWS * VOCAB], before[ROWS * VOCAB];
    double losses[ROWS], want = 0, scale = 0.125;
    int32_t targets[ROWS];
    loss_of(1, 0, before, losses, targets);
    double got = loss_of(1, scale, logits, losses, targets);
    for (int r = 0; r < ROWS; r++) {
        const float *x = before + r * VOCAB;
        double most = -1e30, sum = 0;
        for (int i = 0; i < VOCAB; i++) most = fmax(most, (double)x[i]);
        for (int i = 0; i < VOCAB; i++) sum += exp((double)x[i] - most);
        want += most + log(sum) - (double)x[targets[r]];
        for (int i = 0; i < VOCAB; i++) {
            double p = exp((double)x[i] - most) / sum - (i == targets[r]);
            ck_assert_double_eq_tol((double)logits[r * VOCAB + i], scale * p, 1e-7);
        }
    }
    ck_assert_double_eq_tol(got, want, 1e-6 * want);
}
END_TEST

START_TEST(test_cross_entropy_threads)
{
    float one[ROWS * VOCAB], many[ROWS * VOCAB];
    double losses[ROWS];
    int32_t targets[ROWS];
    double a = loss_of(1, 0.5, one, losses, targets);
    for (uint32_t n = 2; n < 5; n++) {
        double b = loss_of(n, 0.5, many, losses, targets);
        ck_assert_mem_eq(&a, &b, sizeof a);
        ck_assert_mem_eq(one, many, sizeof one);
    }
}
END_TEST

START_TEST(test_cross_entropy_not_finite)
{
    mc_pool *pool;
    mc_fault fault = {0};
    const int32_t target = 0;
    double losses[1];
    ck_assert_int_eq(mc_pool_create(1, NULL, NULL, &pool, &fault), MOEC_OK);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float x[3] = {1, 2, 3};
        x[0] = bad[i];
        ck_assert(!isfinite(mc_cross_entropy(pool, x, &target, 1, 3, 1, losses)));
    }
    mc_pool_destroy(pool);
}
END_TEST

/* ---- schedules and settings ---- */

START_TEST(test_schedule)
{
    mc_schedule s = {.kind = MC_SCHEDULE_COSINE, .warmup = 10, .floor = 0.1};
    ck_assert_double_eq(mc_schedule_at(&s, 1, 110), 0.1);
    ck_assert_double_eq(mc_schedule_at(&s, 10, 110), 1);
    ck_assert_double_eq_tol(mc_schedule_at(&s, 60, 110), 0.55, 1e-15);
    ck_assert_double_eq_tol(mc_schedule_at(&s, 110, 110), 0.1, 1e-15);
    ck_assert_double_eq_tol(mc_schedule_at(&s, 500, 110), 0.1, 1e-15);
    s.kind = MC_SCHEDULE_LINEAR;
    s.steps = 210;
    ck_assert_double_eq_tol(mc_schedule_at(&s, 110, 110), 0.55, 1e-15);
    s.kind = MC_SCHEDULE_CONSTANT;
    ck_assert_double_eq(mc_schedule_at(&s, 5, 110), 0.5);
    ck_assert_double_eq(mc_schedule_at(&s, 1000, 110), 1);
    ck_assert_double_eq(mc_bias_schedule_at(MC_BIAS_CONSTANT, HUGE_VAL, 9, 9), 1);
    ck_assert_double_eq_tol(mc_bias_schedule_at(MC_BIAS_COSINE, HUGE_VAL, 5, 100), 0.993844170297569, 1e-12);
    ck_assert_double_eq(mc_bias_schedule_at(MC_BIAS_WARMUP, HUGE_VAL, 5, 100), 0.5);
    ck_assert_double_eq(mc_bias_schedule_at(MC_BIAS_WARMUP, 0.97, 96, 100), 1);
    ck_assert_double_eq(mc_bias_schedule_at(MC_BIAS_WARMUP, 0.97, 97, 100), 0);
}
END_TEST

START_TEST(test_settings)
{
    mc_fault fault = {0};
    mc_train_settings s;
    ck_assert_int_eq(mc_train_settings_parse("", &s, &fault), MOEC_OK);
    ck_assert_double_eq(s.optimizer.lr, 1e-3);
    ck_assert(!s.has_bias);
    const char *text = "loss cross_entropy; aux switch, weight = 0.01; z 0.001; bias ema, rate = 0.002, decay = 0.9, "
                       "schedule = warmup, until = 0.5; seed 18446744073709551615; dropout 0; "
                       "optimizer adamw(lr = 3e-4, betas = [0.8, 0.95], eps = 1e-6, decay = 0.1, clip = 2); "
                       "schedule cosine(warmup = 200, floor = 0.1)";
    ck_assert_msg(mc_train_settings_parse(text, &s, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_double_eq(s.aux_weight, 0.01);
    ck_assert_double_eq(s.z_weight, 0.001);
    ck_assert(s.has_bias && s.bias_rule == MOEC_BIAS_EMA && s.bias_schedule == MC_BIAS_WARMUP);
    ck_assert_double_eq(s.bias_rate + s.bias_decay + s.bias_until, 0.002 + 0.9 + 0.5);
    ck_assert_uint_eq(s.seed, UINT64_MAX);
    ck_assert_double_eq(s.optimizer.lr, 3e-4);
    ck_assert_double_eq(s.optimizer.beta1, 0.8);
    ck_assert_double_eq(s.optimizer.beta2, 0.95);
    ck_assert_double_eq(s.optimizer.eps + s.optimizer.decay + s.optimizer.clip, 1e-6 + 0.1 + 2);
    ck_assert(s.schedule.kind == MC_SCHEDULE_COSINE && s.schedule.warmup == 200 && s.schedule.floor == 0.1);
}
END_TEST

START_TEST(test_settings_refused)
{
    static const char *const texts[] = {"loss mse",
                                        "loss",
                                        "dropout 0.1",
                                        "expert_dropout 0.5",
                                        "load_scale forward",
                                        "optimizer adamw(betas = [0.9])",
                                        "optimizer adamw(betas = [0.9, 1])",
                                        "optimizer adamw(lr = -1)",
                                        "optimizer adamw(lr = 1",
                                        "schedule cosine(floor = 2)",
                                        "bias ema, decay = 1",
                                        "z 1; ; z 2",
                                        "z [1, 2, 3, 4, 5]",
                                        "z inf",
                                        "aux switch, weight = 1; aux sequence, weight = 2",
                                        "\xff"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mc_fault fault = {0};
        mc_train_settings s;
        ck_assert_msg(mc_train_settings_parse(texts[i], &s, &fault) != MOEC_OK, "%s", texts[i]);
        ck_assert_msg(strncmp(fault.text, "train: ", 7) == 0, "%s: %s", texts[i], fault.text);
    }
}
END_TEST

/* ---- random numbers and first values ---- */

START_TEST(test_random)
{
    /* Computed from the formula in another program. */
    ck_assert_uint_eq(mc_train_stream("layers.0.mlp.gate.weight"), UINT64_C(0xb63f38708846bc21));
    ck_assert_uint_eq(mc_train_bits(7, 11, 13), UINT64_C(0xfd5c75c63e6b49cc));
    ck_assert_double_eq_tol(mc_train_normal(7, 11, 13), 0.4063796042931819, 1e-14);
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double x = mc_train_normal(1, 1, i);
        sum += x;
        squares += x * x;
        ck_assert_uint_lt(mc_train_below(1, 2, i, 7), 7);
    }
    ck_assert_double_le(fabs(sum / 1e5), 0.01);
    ck_assert_double_eq_tol(squares / 1e5, 1, 0.02);
    ck_assert_uint_gt(mc_train_below(1, 3, 0, UINT64_MAX), UINT32_MAX);
}
END_TEST

static moec_status
init_of(const char *path, const char *role, const char *init, uint32_t rank, moec_dtype dtype, float out[8])
{
    moec_param_info info = {.path = path, .role = role, .init = init, .dtype = dtype, .rank = rank, .dims = {8, 1}};
    mc_fault fault = {0};
    return mc_train_init(&info, 3, 0, out, 8, &fault);
}

START_TEST(test_init)
{
    float x[8], y[8];
    ck_assert_int_eq(init_of("norm.weight", "norm", "", 1, MOEC_F32, x), MOEC_OK);
    ck_assert(x[0] == 1 && x[7] == 1);
    ck_assert_int_eq(init_of("norm.bias", "norm", "", 1, MOEC_F32, x), MOEC_OK);
    ck_assert(x[0] == 0 && x[7] == 0);
    ck_assert_int_eq(init_of("mlp.select_bias", "router", "", 1, MOEC_F32, x), MOEC_OK);
    ck_assert(x[0] == 0 && x[7] == 0);
    ck_assert_int_eq(init_of("skip", "dense", "ones", 1, MOEC_F32, x), MOEC_OK);
    ck_assert(x[0] == 1 && x[7] == 1);
    ck_assert_int_eq(init_of("a.weight", "dense", "", 2, MOEC_F32, x), MOEC_OK);
    for (uint64_t i = 0; i < 8; i++)
        ck_assert(x[i] == (float)(0.02 * mc_train_normal(3, mc_train_stream("a.weight"), i)));
    ck_assert_int_eq(init_of("b.weight", "dense", "", 2, MOEC_F32, y), MOEC_OK);
    ck_assert_mem_ne(x, y, sizeof x);
    ck_assert_int_eq(init_of("a.weight", "dense", "uniform(-0.5, -0.25)", 2, MOEC_F32, x), MOEC_OK);
    for (int i = 0; i < 8; i++) ck_assert(x[i] >= -0.5f && x[i] <= -0.25f);
    ck_assert_int_eq(init_of("a.weight", "dense", "normal(2.0)", 2, MOEC_F32, x), MOEC_OK);
    ck_assert_int_eq(init_of("a.weight", "dense", "cauchy(1)", 2, MOEC_F32, x), MOEC_ERR_INTERNAL);
    ck_assert_int_eq(init_of("table", "router", "", 2, MOEC_I32, x), MOEC_ERR_UNSUPPORTED);
}
END_TEST

/* ---- data ---- */

static void
write_bytes(const char *path, const void *data, size_t n)
{
    mc_fault fault = {0};
    ck_assert_msg(mc_file_write(path, data, n, 0644, &fault) == MOEC_OK, "%s", fault.text);
}

START_TEST(test_data)
{
    const char *directory = test_directory(), *text = test_path(directory, "a.txt"),
               *ids = test_path(directory, "a.npy");
    mc_train_data d, e;
    mc_fault fault = {0};
    const char words[] = "in the beginning";
    int64_t wide[16];
    for (int i = 0; i < 16; i++) wide[i] = words[i];
    write_bytes(text, words, 16);
    ck_assert_int_eq(mc_npy_write(ids, MOEC_I64, 1, (const int64_t[]){16}, wide, &fault), MOEC_OK);
    ck_assert_int_eq(mc_train_data_open(text, 256, &d, &fault), MOEC_OK);
    ck_assert_int_eq(mc_train_data_open(ids, 256, &e, &fault), MOEC_OK);
    ck_assert_uint_eq(d.n_tokens, 16);
    ck_assert_uint_eq(e.n_tokens, 16);
    int32_t in[2][4 * 5], out[2][4 * 5], part[5], next[5];
    mc_train_data_batch(&d, 9, 100, 4, 5, in[0], out[0]);
    mc_train_data_batch(&e, 9, 100, 4, 5, in[1], out[1]);
    ck_assert_mem_eq(in[0], in[1], sizeof in[0]);
    ck_assert_mem_eq(out[0], out[1], sizeof out[0]);
    for (int k = 0; k < 4; k++) {
        mc_train_data_batch(&d, 9, 100 + (uint64_t)k, 1, 5, part, next);
        ck_assert_mem_eq(in[0] + 5 * k, part, sizeof part);
        ck_assert_mem_eq(out[0] + 5 * k, next, sizeof next);
        ck_assert_mem_eq(part + 1, next, 4 * sizeof *part);
    }
    /* All windows are drawn, the first and the last among them. */
    bool seen[11] = {false};
    for (uint64_t k = 0; k < 1000; k++) seen[mc_train_below(9, mc_train_stream("batches"), k, 11)] = true;
    for (int i = 0; i < 11; i++) ck_assert(seen[i]);
    mc_train_data_close(&d);
    mc_train_data_close(&e);
    test_directory_remove(directory);
}
END_TEST

static void
refused(const char *path, int64_t vocab, const char *want)
{
    mc_train_data d;
    mc_fault fault = {0};
    ck_assert_int_ne(mc_train_data_open(path, vocab, &d, &fault), MOEC_OK);
    ck_assert_msg(strstr(fault.text, want), "%s, not %s", fault.text, want);
}

START_TEST(test_data_refused)
{
    const char *directory = test_directory(), *path = test_path(directory, "a.npy"), *text = test_path(directory, "a");
    mc_fault fault = {0};
    const int32_t ids[6] = {1, 2, 3, -4, 5, 300};
    const float reals[2] = {0, 1};
    write_bytes(text, "abc\xff", 4);
    refused(text, 255, "byte 255 at position 3 is outside the vocabulary 0..254");
    refused(test_path(directory, "none"), 256, "No such file");
    refused(directory, 256, "not a regular file");
    ck_assert_int_eq(mc_npy_write(path, MOEC_I32, 2, (const int64_t[]){2, 3}, ids, &fault), MOEC_OK);
    refused(path, 400, "id -4 at position 3 is outside the vocabulary 0..399");
    ck_assert_int_eq(mc_npy_write(path, MOEC_F32, 1, (const int64_t[]){2}, reals, &fault), MOEC_OK);
    refused(path, 400, "ids are i32 or i64");
    write_bytes(path, "no numpy", 8);
    refused(path, 400, "not a valid .npy file");
    test_directory_remove(directory);
}
END_TEST

/* ---- checkpoints ---- */

typedef struct small_run {
    mc_train_state state;
    mc_train_param items[2];
    mc_train_bias bias;
    float w[6], m[6], v[6], b[3], ema[3];
} small_run;

static void
make_run(small_run *r, float begin)
{
    memset(r, 0, sizeof *r);
    for (int i = 0; i < 6; i++) {
        r->w[i] = begin + (float)i;
        r->m[i] = begin * 2 + (float)i;
        r->v[i] = begin * 3 + (float)i;
    }
    for (int i = 0; i < 3; i++) r->b[i] = r->ema[i] = begin * 4 + (float)i;
    r->items[0] =
        (mc_train_param){.info = {.path = "a.\"quoted\".weight", .dtype = MOEC_F32, .rank = 2, .dims = {2, 3}},
                         .n = 6,
                         .trained = true,
                         .value = r->w,
                         .m = r->m,
                         .v = r->v};
    r->items[1] = (mc_train_param){
        .info = {.path = "mlp.select_bias", .dtype = MOEC_F32, .rank = 1, .dims = {3}}, .n = 3, .value = r->b};
    r->bias = (mc_train_bias){.param = &r->items[1], .n_experts = 3, .ema = r->ema};
    r->state = (mc_train_state){.at = {200, 1000, 8, 256, 1, UINT64_MAX, 11, 12},
                                .routes = {.biases = &r->bias, .n_biases = 1}};
    r->state.params.items = r->items;
    r->state.params.n = 2;
}

START_TEST(test_checkpoint)
{
    const char *directory = test_directory(), *out = test_path(directory, "a/b");
    static small_run run, back;
    mc_fault fault = {0};
    mc_train_position at;
    make_run(&run, 1);
    make_run(&back, 0);
    ck_assert_uint_eq(mc_train_latest(out), 0);
    ck_assert_msg(mc_train_checkpoint_write(out, "tiny", &run.state, &fault) == MOEC_OK, "%s", fault.text);
    run.state.at.step = 9;
    ck_assert_msg(mc_train_checkpoint_write(out, "tiny", &run.state, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_uint_eq(mc_train_latest(out), 200);
    ck_assert_msg(mc_train_checkpoint_peek(out, 200, &at, &fault) == MOEC_OK, "%s", fault.text);
    run.state.at.step = 200;
    ck_assert_mem_eq(&at, &run.state.at, sizeof at);
    ck_assert_msg(mc_train_checkpoint_read(out, 200, &back.state, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_mem_eq(back.w, run.w, sizeof run.w);
    ck_assert_mem_eq(back.m, run.m, sizeof run.m);
    ck_assert_mem_eq(back.v, run.v, sizeof run.v);
    ck_assert_mem_eq(back.b, run.b, sizeof run.b);
    ck_assert_mem_eq(back.ema, run.ema, sizeof run.ema);
    /* A checkpoint that is there stays as it is. */
    ck_assert_int_eq(mc_train_checkpoint_write(out, "tiny", &run.state, &fault), MOEC_ERR_IO);
    ck_assert(strstr(fault.text, "step-000200"));
    /* Other models. */
    back.items[0].info.dims[0] = 3;
    back.items[0].info.dims[1] = 2;
    ck_assert_int_eq(mc_train_checkpoint_read(out, 200, &back.state, &fault), MOEC_ERR_MISMATCH);
    ck_assert(strstr(fault.text, "another shape"));
    back.items[0].info.path = "b.weight";
    ck_assert_int_eq(mc_train_checkpoint_read(out, 200, &back.state, &fault), MOEC_ERR_MISMATCH);
    ck_assert(strstr(fault.text, "lacks b.weight"));
    back.state.params.items = back.items + 1;
    back.state.params.n = 1;
    ck_assert_int_eq(mc_train_checkpoint_read(out, 200, &back.state, &fault), MOEC_ERR_MISMATCH);
    ck_assert(strstr(fault.text, "tensors that this model lacks"));
    ck_assert_int_eq(mc_train_checkpoint_peek(out, 7, &at, &fault), MOEC_ERR_NOT_FOUND);
    test_directory_remove(directory);
}
END_TEST

/* How many entries a directory has. */
static int
entries(const char *directory)
{
    char command[600];
    int n = -1;
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", directory);
    FILE *pipe = popen(command, "r");
    ck_assert(pipe && fscanf(pipe, "%d", &n) == 1);
    pclose(pipe);
    return n;
}

START_TEST(test_checkpoint_disk_full)
{
    const char *directory = test_directory();
    static small_run run;
    mc_fault fault = {0};
    struct rlimit old, small = {1000, 1000};
    make_run(&run, 1);
    ck_assert_int_eq(mc_train_checkpoint_write(directory, "tiny", &run.state, &fault), MOEC_OK);
    run.state.at.step = 201;
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    for (small.rlim_cur = 0; small.rlim_cur < 600; small.rlim_cur += 37) {
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
        moec_status s = mc_train_checkpoint_write(directory, "tiny", &run.state, &fault);
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
        if (s == MOEC_OK) break;
        ck_assert_int_eq(s, MOEC_ERR_IO);
        ck_assert_msg(strstr(fault.text, ".safetensors: File too large"), "%s", fault.text);
        ck_assert_int_eq(entries(directory), 1);
        ck_assert_uint_eq(mc_train_latest(directory), 200);
    }
    ck_assert_uint_gt(small.rlim_cur, 0);
    test_directory_remove(directory);
}
END_TEST

/* Every cut of a checkpoint's files is an error. */
START_TEST(test_checkpoint_cut)
{
    const char *directory = test_directory();
    static small_run run, back;
    mc_fault fault = {0};
    mc_buf bytes = {0};
    make_run(&run, 1);
    make_run(&back, 0);
    ck_assert_int_eq(mc_train_checkpoint_write(directory, "tiny", &run.state, &fault), MOEC_OK);
    const char *path = test_path(directory, _i ? "step-000200/model.safetensors" : "step-000200/optimizer.safetensors");
    ck_assert_int_eq(mc_file_read(path, 1 << 20, &bytes, &fault), MOEC_OK);
    for (size_t n = 0; n < bytes.len; n++) {
        write_bytes(path, bytes.data, n);
        ck_assert_int_ne(mc_train_checkpoint_read(directory, 200, &back.state, &fault), MOEC_OK);
    }
    write_bytes(path, bytes.data, bytes.len);
    ck_assert_int_eq(mc_train_checkpoint_read(directory, 200, &back.state, &fault), MOEC_OK);
    mc_buf_fini(&bytes);
    test_directory_remove(directory);
}
END_TEST

START_TEST(test_latest)
{
    const char *directory = test_directory();
    static const char *const names[] = {"step-000003", "step-12", "step-000007.tmp-abc", "step-", "step-x", "other-99"};
    for (int i = 0; i < 6; i++) ck_assert_int_eq(mkdir(test_path(directory, names[i]), 0755), 0);
    ck_assert_uint_eq(mc_train_latest(directory), 12);
    test_directory_remove(directory);
}
END_TEST

START_TEST(test_write_safetensors)
{
    const char *directory = test_directory(), *path = test_path(directory, "x.safetensors");
    mc_fault fault = {0};
    const float a[2] = {1, 2};
    const int64_t b[1] = {-3};
    const mc_st_tensor tensors[] = {
        {.name = MC_STR("b\\ \"\xc3\xa4"), .dtype = MOEC_I64, .rank = 0, .data = (const void *)b},
        {.name = MC_STR("a"), .dtype = MOEC_F32, .rank = 2, .dims = {1, 2}, .data = (const void *)a},
        {.name = MC_STR("none"), .dtype = MOEC_BF16, .rank = 1, .dims = {0}, .data = (const void *)a}};
    const mc_st_note notes[] = {{MC_STR("format"), MC_STR("moec")}, {MC_STR("said"), MC_STR("\"so\"\n")}};
    mc_mapping m;
    mc_st_file f;
    ck_assert_msg(mc_st_write(path, tensors, 3, notes, 2, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_int_eq(mc_file_map(path, &m, &fault), MOEC_OK);
    ck_assert_msg(mc_st_parse(m.data, m.n_bytes, path, &f, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_uint_eq(f.n_tensors, 3);
    ck_assert(mc_str_eq(f.tensors[0].name, tensors[0].name) && f.tensors[0].rank == 0);
    ck_assert_int_eq(memcmp(f.tensors[0].data, b, sizeof b), 0);
    ck_assert_uint_eq((size_t)(f.tensors[0].data - m.data) % 64, 0);
    ck_assert(mc_str_is(mc_st_note_of(&f, "said"), "\"so\"\n") && mc_st_note_of(&f, "unsaid").len == 0);
    mc_st_fini(&f);
    mc_file_unmap(&m);
    test_directory_remove(directory);
}
END_TEST

/* ---- reports ---- */

START_TEST(test_bar)
{
    char bar[MC_TRAIN_BAR_BYTES];
    const float even[4] = {5, 5, 5, 5}, odd[4] = {0, 1, 2, 7}, none[4] = {0};
    ck_assert_double_eq(mc_train_bar(even, 4, false, bar), 0);
    ck_assert_str_eq(bar, "@@@@");
    ck_assert_double_eq_tol(mc_train_bar(odd, 4, false, bar), 1.8, 1e-12);
    ck_assert_str_eq(bar, ".:-@");
    mc_train_bar(odd, 4, true, bar);
    ck_assert_str_eq(bar, "▁▂▃█");
    ck_assert_double_eq(mc_train_bar(none, 4, false, bar), 0);
    static float many[1000];
    for (int i = 0; i < 1000; i++) many[i] = i == 999 ? 8 : 1;
    mc_train_bar(many, 1000, true, bar);
    ck_assert_uint_eq(strlen(bar), 64 * 3);
    mc_train_bar(many, 1000, false, bar);
    ck_assert_uint_eq(strlen(bar), 64);
    ck_assert(bar[63] == '@' && bar[62] == ':');
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("trainer");
    TCase *tests = tcase_create("pieces");
    tcase_add_loop_test(tests, test_adamw, 0, 3);
    tcase_add_test(tests, test_adamw_pieces);
    tcase_add_test(tests, test_cross_entropy);
    tcase_add_test(tests, test_cross_entropy_threads);
    tcase_add_test(tests, test_cross_entropy_not_finite);
    tcase_add_test(tests, test_schedule);
    tcase_add_test(tests, test_settings);
    tcase_add_test(tests, test_settings_refused);
    tcase_add_test(tests, test_random);
    tcase_add_test(tests, test_init);
    tcase_add_test(tests, test_data);
    tcase_add_test(tests, test_data_refused);
    tcase_add_test(tests, test_checkpoint);
    tcase_add_test(tests, test_checkpoint_disk_full);
    tcase_add_loop_test(tests, test_checkpoint_cut, 0, 2);
    tcase_add_test(tests, test_latest);
    tcase_add_test(tests, test_write_safetensors);
    tcase_add_test(tests, test_bar);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
