/* moec train on real models: a fixed loss from a fixed seed, the same bits for any number of threads and wherever a run
 * is cut, memory that is what `moec mem` says, the optimizer's trajectory against plain loops, biases that balance. */
#define _GNU_SOURCE
#include "driver/compiled.h"
#include "driver/train/train_memory.h"
#include "driver/train/trainer.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define TINY "examples/train_tiny.moe"
#define TEXT "examples/kjv/heldout.bin"

typedef struct compiled_model {
    moec_compiled *compiled;
    moec_model *model;
    const moec_abi_model *abi;
} compiled_model;

static void
print_diagnostic(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

/* The tiny model, without the first line of its text that begins with `without`. */
static compiled_model
compile_without(const char *without, moec_compile_options options)
{
    compiled_model c;
    moec_error error = {0};
    mc_fault fault = {0};
    mc_buf text = {0};
    options.train = true;
    options.cache = "";
    options.on_diagnostic = print_diagnostic;
    ck_assert_int_eq(mc_file_read(TINY, 1 << 20, &text, &fault), MOEC_OK);
    char *line = without ? strstr(text.data, without) : NULL;
    ck_assert(line || !without);
    for (; line && *line != '\n'; line++) *line = ' ';
    ck_assert_int_eq(moec_compile_text(TINY, text.data, text.len, &options, &c.compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(c.compiled, &c.model, &error) == MOEC_OK, "%s", error.text);
    ck_assert_msg(mc_compiled_abi(c.compiled, &c.abi, &fault) == MOEC_OK, "%s", fault.text);
    mc_buf_fini(&text);
    return c;
}

static compiled_model
compile(bool recompute, const char *frozen)
{
    return compile_without(NULL, (moec_compile_options){.recompute = recompute, .frozen = frozen});
}

static mc_train_options
small_options(uint64_t n_steps)
{
    return (mc_train_options){
        .data = TEXT, .n_steps = n_steps, .batch = 4, .length = 32, .n_threads = 1, .model_hash = 1};
}

static void
open_run(mc_trainer *t, const compiled_model *c, const mc_train_options *o)
{
    mc_fault fault = {0};
    ck_assert_msg(mc_trainer_open(c->model, c->abi, o, t, &fault) == MOEC_OK, "%s", fault.text);
}

static mc_train_report
steps(mc_trainer *t, uint64_t n)
{
    mc_train_report r = {0};
    mc_fault fault = {0};
    for (uint64_t i = 0; i < n; i++) ck_assert_msg(mc_trainer_step(t, &r, &fault) == MOEC_OK, "%s", fault.text);
    return r;
}

static void
ck_same_state(const mc_trainer *a, const mc_trainer *b)
{
    const mc_train_params *p = &a->state.params, *q = &b->state.params;
    ck_assert_uint_eq(p->values.n_bytes, q->values.n_bytes);
    ck_assert_uint_eq(p->moments.n_bytes, q->moments.n_bytes);
    ck_assert_int_eq(memcmp(p->values.data, q->values.data, p->values.n_bytes), 0);
    ck_assert_int_eq(memcmp(p->moments.data, q->moments.data, p->moments.n_bytes), 0);
}

/* ---- learning ---- */

START_TEST(test_learns)
{
    compiled_model c = compile(false, NULL);
    mc_train_options o = small_options(200);
    mc_trainer t;
    o.batch = 8;
    o.n_threads = 0;
    open_run(&t, &c, &o);
    mc_train_report first = steps(&t, 1), last = {0};
    double mean = 0, most_vio = 0;
    steps(&t, 179);
    for (int i = 0; i < 20; i++) {
        last = steps(&t, 1);
        mean += last.cross_entropy / 20;
    }
    for (size_t i = 0; i < t.state.routes.n_loads; i++) {
        const mc_train_load *l = &t.state.routes.loads[i];
        double sum = 0, most = 0;
        for (size_t e = 0; e < l->n_experts; e++) {
            sum += (double)l->sum[e];
            most = fmax(most, (double)l->sum[e]);
        }
        ck_assert_double_eq(sum, 2 * 8 * 32); /* every token makes two choices */
        most_vio = fmax(most_vio, most * (double)l->n_experts / sum - 1);
    }
    printf("cross entropy: %.4f at step 1, %.4f over steps 181..200, MaxVio %.2f\n", first.cross_entropy, mean,
           most_vio);
    ck_assert_double_eq_tol(first.cross_entropy, log(256), 0.05);
    ck_assert_double_eq_tol(mean, 2.684, 0.03);
    ck_assert_double_le(most_vio, 0.5);
    ck_assert_uint_eq(last.step, 200);
    mc_trainer_close(&t);
    moec_compiled_destroy(c.compiled);
}
END_TEST

/* A real model in ten updates: every loss and norm of PyTorch's own run (tests/reference/make_run.py). PyTorch adds the
 * squares of 7 million gradients in f32. */
START_TEST(test_as_pytorch)
{
    static const char *const settings[] = {"train.optimizer=adamw(lr = 1e-3, betas = [0.9, 0.95], decay = 0.1)",
                                           "train.schedule=cosine(warmup = 3, floor = 0.1)"};
    json_t *want = json_load_file("tests/reference/adamw/run.json", 0, NULL);
    const json_t *all = json_object_get(want, "steps");
    ck_assert_uint_eq(json_array_size(all), 10);
    moec_compile_options options = {
        .settings = settings, .n_settings = 2, .train = true, .cache = "", .on_diagnostic = print_diagnostic};
    compiled_model c;
    moec_error error = {0};
    mc_fault fault = {0};
    ck_assert_int_eq(moec_compile_file("examples/kjv/kjv.moe", &options, &c.compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(c.compiled, &c.model, &error) == MOEC_OK, "%s", error.text);
    ck_assert_int_eq(mc_compiled_abi(c.compiled, &c.abi, &fault), MOEC_OK);
    mc_train_options o = {
        .data = TEXT, .weights = "examples/kjv", .n_steps = 10, .batch = 4, .length = 64, .seed = 11, .has_seed = true};
    mc_trainer t;
    double worst = 0;
    open_run(&t, &c, &o);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *step = json_array_get(all, i);
        mc_train_report r = steps(&t, 1);
        double loss = json_real_value(json_object_get(step, "loss"));
        double norm = json_real_value(json_object_get(step, "grad_norm"));
        worst = fmax(worst, fabs(r.loss - loss));
        ck_assert_msg(fabs(r.loss - loss) <= 5e-6, "step %zu: loss %.8f, PyTorch %.8f", i + 1, r.loss, loss);
        ck_assert_msg(fabs(r.grad_norm / norm - 1) <= 3e-5, "step %zu: norm %.8f, PyTorch %.8f", i + 1, r.grad_norm,
                      norm);
        ck_assert_double_eq_tol(r.lr, json_real_value(json_object_get(step, "lr")), 1e-12);
    }
    printf("ten updates of a Mixtral: losses at most %.1e from PyTorch's\n", worst);
    mc_trainer_close(&t);
    moec_compiled_destroy(c.compiled);
    json_decref(want);
}
END_TEST

/* Threads, the policy of memory, and repetition change no bit. */
START_TEST(test_same_bits)
{
    compiled_model save = compile(false, NULL), again = compile(true, NULL);
    mc_train_options o = small_options(25);
    mc_trainer one, other;
    open_run(&one, &save, &o);
    double loss = steps(&one, 25).loss;
    for (uint32_t n = 1; n <= 3; n++) {
        o.n_threads = n;
        open_run(&other, n == 3 ? &again : &save, &o);
        ck_assert_double_eq(steps(&other, 25).loss, loss);
        ck_same_state(&one, &other);
        mc_trainer_close(&other);
    }
    mc_trainer_close(&one);
    moec_compiled_destroy(save.compiled);
    moec_compiled_destroy(again.compiled);
}
END_TEST

START_TEST(test_resume)
{
    static const char *const ema = "train.bias=ema, rate = 1e-2, decay = 0.9, schedule = warmup";
    const char *directory = test_directory();
    compiled_model c = compile_without(NULL, (moec_compile_options){.settings = &ema, .n_settings = 1});
    mc_train_options o = small_options(30);
    mc_trainer whole, part;
    mc_fault fault = {0};
    open_run(&whole, &c, &o);
    steps(&whole, 30);
    o.out = directory;
    o.accumulate = 1;
    open_run(&part, &c, &o);
    steps(&part, 13);
    ck_assert_msg(mc_train_checkpoint_write(directory, "tiny", &part.state, &fault) == MOEC_OK, "%s", fault.text);
    mc_trainer_close(&part);
    mc_train_options resumed = {.data = TEXT, .out = directory, .resume = true, .n_threads = 2, .model_hash = 1};
    open_run(&part, &c, &resumed);
    ck_assert_uint_eq(part.state.at.step, 13);
    ck_assert_uint_eq(part.state.at.n_steps, 30);
    steps(&part, 17);
    ck_same_state(&whole, &part);
    ck_assert_uint_eq(whole.state.routes.n_biases, 2);
    for (size_t i = 0; i < 2; i++) {
        const mc_train_bias *a = &whole.state.routes.biases[i], *b = &part.state.routes.biases[i];
        ck_assert_int_eq(memcmp(a->ema, b->ema, a->n_experts * sizeof(float)), 0);
        ck_assert(((const float *)a->param->value)[0] != 0);
    }
    mc_trainer_close(&part);
    mc_trainer_close(&whole);
    moec_compiled_destroy(c.compiled);
    test_directory_remove(directory);
}
END_TEST

/* Two batches of 4 make the update of one batch of 8, up to the order of additions. */
START_TEST(test_accumulate)
{
    compiled_model c =
        compile_without("aux ", (moec_compile_options){0}); /* the loads of a batch are not those of its halves */
    mc_train_options o = small_options(3), two = small_options(3);
    mc_trainer a, b;
    o.batch = 8;
    two.accumulate = 2;
    open_run(&a, &c, &o);
    open_run(&b, &c, &two);
    mc_train_report ra = steps(&a, 1), rb = steps(&b, 1);
    ck_assert_double_eq_tol(ra.loss, rb.loss, 1e-6);
    ck_assert_double_eq_tol(ra.grad_norm, rb.grad_norm, 1e-5 * ra.grad_norm);
    for (size_t i = 0; i < a.state.params.n; i++) {
        const mc_train_param *p = &a.state.params.items[i], *q = &b.state.params.items[i];
        double most = 0, apart = 0;
        for (size_t k = 0; p->trained && k < p->n; k++) {
            most = fmax(most, fabs((double)p->grad[k]));
            apart = fmax(apart, fabs((double)p->grad[k] - (double)q->grad[k]));
        }
        ck_assert_msg(apart <= 1e-4 * most, "%s: %g of %g", p->info.path, apart, most);
    }
    mc_trainer_close(&a);
    mc_trainer_close(&b);
    moec_compiled_destroy(c.compiled);
}
END_TEST

/* One step by hand: the gradient that backward gave, clipped, through AdamW with the settings of the text. */
START_TEST(test_update)
{
    compiled_model c = compile(false, NULL);
    mc_train_options o = small_options(100);
    mc_trainer t;
    open_run(&t, &c, &o);
    const mc_train_params *params = &t.state.params;
    float *before = malloc(params->values.n_bytes);
    ck_assert_ptr_nonnull(before);
    memcpy(before, params->values.data, params->values.n_bytes);
    mc_train_report r = steps(&t, 1);
    double squares = 0, lr = 3e-3 / 10; /* the first of ten steps of warmup */
    size_t n_biases = 0, n_undecayed = 0;
    ck_assert_double_eq(r.lr, lr);
    for (size_t i = 0; i < params->n; i++)
        for (size_t k = 0; params->items[i].trained && k < params->items[i].n; k++)
            squares += pow((double)params->items[i].grad[k], 2);
    ck_assert_double_eq_tol(r.grad_norm, sqrt(squares), 1e-9);
    double scale = fmin(1, 1 / (sqrt(squares) + 1e-6));
    for (size_t i = 0; i < params->n; i++) {
        const mc_train_param *p = &params->items[i];
        const float *now = p->value, *old = before + ((const unsigned char *)p->value - params->values.data) / 4;
        bool norm = strstr(p->info.path, "norm"), embed = strstr(p->info.path, "embed");
        ck_assert_int_eq(p->decays, !norm && !embed && !strstr(p->info.path, "bias"));
        n_undecayed += p->trained && !p->decays;
        for (size_t k = 0; k < p->n; k++) {
            if (!p->trained) {
                ck_assert(strstr(p->info.path, "select_bias") && fabs((double)now[k]) <= 1.001e-3);
                n_biases++;
                continue;
            }
            double g = (double)p->grad[k] * scale, m = 0.1 * g, v = 0.05 * g * g;
            double x = (double)old[k] * (1 - (p->decays ? lr * 0.1 : 0));
            x -= lr * (m / 0.1) / (sqrt(v / 0.05) + 1e-8);
            /* Where g is nearly eps its sign is all that counts, and that in f32. */
            ck_assert_msg(fabs((double)now[k] - x) <= 2e-6 * lr + 2e-7 * fabs(x) + (fabs(g) < 1e-6 ? lr : 0),
                          "%s[%zu]: %.9g, not %.9g", p->info.path, k, (double)now[k], x);
        }
    }
    ck_assert_uint_eq(n_biases, 8);
    ck_assert_uint_eq(n_undecayed, 6);
    free(before);
    mc_trainer_close(&t);
    moec_compiled_destroy(c.compiled);
}
END_TEST

START_TEST(test_frozen)
{
    compiled_model c = compile(false, "embed_tokens.**,**.experts.**");
    mc_train_options o = small_options(5);
    mc_trainer fresh, t;
    open_run(&fresh, &c, &o);
    open_run(&t, &c, &o);
    steps(&t, 5);
    size_t n_frozen = 0;
    for (size_t i = 0; i < t.state.params.n; i++) {
        const mc_train_param *p = &t.state.params.items[i], *q = &fresh.state.params.items[i];
        bool frozen = strstr(p->info.path, "embed_tokens") || strstr(p->info.path, "experts");
        bool same = memcmp(p->value, q->value, p->n * sizeof(float)) == 0;
        n_frozen += frozen;
        if (frozen) ck_assert_msg(same && !p->trained, "%s", p->info.path);
        if (!frozen) ck_assert_msg(!same, "%s", p->info.path);
    }
    ck_assert_uint_eq(n_frozen, 7);
    mc_trainer_close(&t);
    mc_trainer_close(&fresh);
    moec_compiled_destroy(c.compiled);
}
END_TEST

/* ---- faults ---- */

START_TEST(test_not_finite)
{
    compiled_model c = compile(false, NULL);
    mc_train_options o = small_options(5);
    mc_trainer t, fresh;
    mc_train_report r;
    mc_fault fault = {0};
    open_run(&t, &c, &o);
    open_run(&fresh, &c, &o);
    mc_train_param *gate = mc_train_params_find(&t.state.params, "layers.1.mlp.gate.weight");
    ck_assert_ptr_nonnull(gate);
    float *x = gate->value, old = x[5];
    x[5] = NAN;
    ck_assert_int_eq(mc_trainer_step(&t, &r, &fault), MOEC_ERR_RANGE);
    ck_assert_msg(strstr(fault.text, "step 1: ") && strstr(fault.text, "the parameter layers.1.mlp.gate.weight"), "%s",
                  fault.text);
    x[5] = old;
    ck_same_state(&t, &fresh);
    /* A gradient: the logits are huge, but finite, and so is the parameter. */
    mc_train_param *norm = mc_train_params_find(&t.state.params, "norm.weight");
    for (size_t i = 0; i < norm->n; i++) ((float *)norm->value)[i] = 3e38f;
    ck_assert_int_eq(mc_trainer_step(&t, &r, &fault), MOEC_ERR_RANGE);
    ck_assert_msg(strstr(fault.text, "step 1: a value is not finite"), "%s", fault.text);
    mc_trainer_close(&t);
    mc_trainer_close(&fresh);
    moec_compiled_destroy(c.compiled);
}
END_TEST

static void
refused(const compiled_model *c, const mc_train_options *o, const char *want)
{
    mc_trainer t;
    mc_fault fault = {0};
    ck_assert_int_ne(mc_trainer_open(c->model, c->abi, o, &t, &fault), MOEC_OK);
    ck_assert_msg(strstr(fault.text, want), "%s, not %s", fault.text, want);
}

START_TEST(test_refused)
{
    const char *directory = test_directory();
    compiled_model c = compile(false, NULL);
    mc_train_options o = small_options(5);
    mc_trainer t;
    mc_fault fault = {0};
    o.length = 129;
    refused(&c, &o, "129");
    o = small_options(5);
    o.batch = 1 << 24;
    o.length = 128;
    refused(&c, &o, "and this machine has");
    o = small_options(5);
    o.length = 1 << 25;
    refused(&c, &o, "at most");
    o = small_options(5);
    o.resume = true;
    o.out = directory;
    refused(&c, &o, "no checkpoint");
    o.resume = false;
    open_run(&t, &c, &o);
    steps(&t, 2);
    ck_assert_int_eq(mc_train_checkpoint_write(directory, "tiny", &t.state, &fault), MOEC_OK);
    mc_trainer_close(&t);
    refused(&c, &o, "holds a run already (step-000002)");
    o.resume = true;
    o.batch = 5;
    refused(&c, &o, "begun with --batch 4, not 5");
    o.batch = 0;
    o.has_seed = true;
    o.seed = 0;
    refused(&c, &o, "begun with --seed 7");
    o.has_seed = false;
    o.n_steps = 1;
    refused(&c, &o, "at step 2 already");
    o.n_steps = 5;
    o.model_hash = 2;
    refused(&c, &o, "has changed since the run began");
    o.model_hash = 1;
    o.data = TINY;
    refused(&c, &o, "not the text that the run was begun with");
    moec_compiled_destroy(c.compiled);
    test_directory_remove(directory);
}
END_TEST

/* ---- memory ---- */

static json_t *
mem(const char *arguments)
{
    char command[1024];
    const char *binary = getenv("MOEC_TEST_BINARY");
    snprintf(command, sizeof command, "%s mem --json --threads 2 %s", binary ? binary : "build/moec", arguments);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    json_t *root = json_loadf(pipe, 0, NULL);
    ck_assert_int_eq(pclose(pipe), 0);
    ck_assert_msg(json_is_object(root), "%s", command);
    return root;
}

static uint64_t
number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    ck_assert_msg(json_is_integer(value), "no %s", key);
    return (uint64_t)json_integer_value(value);
}

/* What `moec mem` says is what a run reserves. */
START_TEST(test_mem_is_what_runs)
{
    bool recompute = _i;
    json_t *root = mem(TINY " --batch 4 --length 32");
    const json_t *says = json_object_get(json_object_get(root, "policies"), recompute ? "recompute" : "save");
    compiled_model c = compile(recompute, NULL);
    mc_train_options o = small_options(1);
    mc_trainer t;
    o.n_threads = 2;
    open_run(&t, &c, &o);
    ck_assert_uint_eq(number(says, "saved"), t.saved.n_bytes);
    ck_assert_uint_eq(number(says, "workspace"), t.workspace.n_bytes);
    ck_assert_uint_eq(number(says, "batch"), t.buffers.n_bytes);
    ck_assert_uint_eq(number(says, "parameters"), t.state.params.values.n_bytes);
    ck_assert_uint_eq(number(says, "gradients"), t.state.params.grads.n_bytes);
    ck_assert_uint_eq(number(says, "moments"), t.state.params.moments.n_bytes);
    ck_assert_uint_eq(number(says, "total"), mc_trainer_bytes(&t));
    uint64_t kept = 64; /* the header of the saved buffer */
    size_t i;
    const json_t *line;
    json_array_foreach(json_object_get(root, "kept"), i, line) kept +=
        number(json_object_get(line, recompute ? "recompute" : "save"), "bytes");
    ck_assert_uint_eq(kept, t.saved.n_bytes);
    mc_trainer_close(&t);
    moec_compiled_destroy(c.compiled);
    json_decref(root);
}
END_TEST

/* n_bytes that end where no page is: a byte more would end the test. */
static unsigned char *
guarded(mc_pages *pages, size_t n_bytes)
{
    size_t body = (n_bytes + 4095) / 4096 * 4096;
    mc_fault fault = {0};
    ck_assert_int_eq(mc_pages_alloc(body + 4096, "a guarded buffer", pages, &fault), MOEC_OK);
    ck_assert_int_eq(mprotect(pages->data + body, 4096, PROT_NONE), 0);
    memset(pages->data, 0xA5, body);
    return pages->data + body - n_bytes;
}

/* A step writes all of what it says that it keeps, nothing behind it, and needs nothing from before. */
START_TEST(test_mem_is_what_is_touched)
{
    compiled_model c = compile(_i, NULL);
    mc_train_options o = small_options(3);
    mc_trainer t, plain;
    mc_pages saved, workspace;
    open_run(&plain, &c, &o);
    open_run(&t, &c, &o);
    mc_pages own_saved = t.saved, own_workspace = t.workspace;
    t.saved.data = guarded(&saved, t.saved.n_bytes);
    t.workspace.data = guarded(&workspace, t.workspace.n_bytes);
    steps(&t, 2);
    steps(&plain, 2);
    ck_same_state(&t, &plain);
    size_t longest = 0, run = 0; /* of bytes that nobody wrote: at most the padding of a tensor */
    for (size_t i = 64; i < t.saved.n_bytes; i++) {
        run = t.saved.data[i] == 0xA5 ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    ck_assert_uint_lt(longest, 64);
    t.saved = own_saved;
    t.workspace = own_workspace;
    mc_pages_free(&saved);
    mc_pages_free(&workspace);
    mc_trainer_close(&t);
    mc_trainer_close(&plain);
    moec_compiled_destroy(c.compiled);
}
END_TEST

/* The formula of experts: x and [G, U], 16 bytes a choice, 4 a token; x is the caller's here. */
START_TEST(test_mem_formula)
{
    json_t *root = mem("examples/layer.moe --tokens 2048");
    const json_t *experts = json_array_get(json_object_get(root, "experts"), 0);
    ck_assert_uint_eq(number(experts, "k"), 2);
    ck_assert_uint_eq(number(experts, "d"), 1024);
    ck_assert_uint_eq(number(experts, "f"), 3584);
    ck_assert_uint_eq(number(experts, "formula_bytes_per_token"), 4 * (1024 + 2 * 2 * 3584) + 8 * 2);
    const json_t *save = json_object_get(json_object_get(root, "policies"), "save");
    ck_assert_uint_le(number(save, "saved"), number(experts, "formula_bytes_per_token") * 2048);
    json_decref(root);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("trainer on models");
    TCase *tests = tcase_create("runs");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, test_learns);
    tcase_add_test(tests, test_as_pytorch);
    tcase_add_test(tests, test_same_bits);
    tcase_add_test(tests, test_resume);
    tcase_add_test(tests, test_accumulate);
    tcase_add_test(tests, test_update);
    tcase_add_test(tests, test_frozen);
    tcase_add_test(tests, test_not_finite);
    tcase_add_test(tests, test_refused);
    tcase_add_loop_test(tests, test_mem_is_what_runs, 0, 2);
    tcase_add_loop_test(tests, test_mem_is_what_is_touched, 0, 2);
    tcase_add_test(tests, test_mem_formula);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
