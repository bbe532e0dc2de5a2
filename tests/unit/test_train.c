/* moec/train.h end to end: layers and models compiled through moec/compiler.h give the outputs, losses, loads and
 * gradients that the interpreter gives in f64, for every size with one compilation; the same bits for every number of
 * threads, saved or computed again; and outputs with the bits of the same model compiled for inference. */
#include "driver/unit.h"
#include "frontend/import.h"
#include "runtime/train.h"
#include "tests/support/finite_difference.h"
#include "tests/support/plain_weights.h"
#include "tests/support/poisoned.h"
#include "tests/support/train_rig.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double tolerance = 1e-5; /* |got - want| / |want| of each tensor */

/* ---- what is trained --------------------------------------------------------------------------------------------- */

#define LAYER(route, more)                                                                                             \
    "moe 1\ndim T in 0..4096\nmodel layer(x: f32[T, 24]) -> f32[T, 24] {\n  return x + moe@mlp(x) {\n    route " route \
    "\n    experts 6 of swiglu(20)\n" more "  }\n}\n"

static const char softmax_layer[] = LAYER("linear@gate | softmax | top 2 | renorm", "") "train { aux switch; z 1 }\n";
static const char experts_text[] =
    "moir 1 stage=tensor\n"
    "dim T in 0..4096\n"
    "model @experts(%x: f32[T, 24], %ids: i32[T, 2], %gates: f32[T, 2]) -> (f32[T, 24]) {\n"
    "  %offsets, %tokens, %slots, %g = moe.dispatch %gates, %ids {experts = 6} : i32[7], i32[2*T], i32[2*T], f32[2*T]\n"
    "  %rows = moe.permute %x, %tokens, %offsets : f32[2*T, 24]\n"
    "  %0 = weight {path = \"up\", role = \"experts\"} : f32[6, 40, 24]\n"
    "  %1 = grouped_matmul %rows, %0, %offsets : f32[2*T, 40]\n"
    "  %2, %3 = split %1 {sizes = [20, 20]} : f32[2*T, 20], f32[2*T, 20]\n"
    "  %4 = silu %2 : f32[2*T, 20]\n"
    "  %5 = mul %4, %3 : f32[2*T, 20]\n"
    "  %6 = weight {path = \"down\", role = \"experts\"} : f32[6, 24, 20]\n"
    "  %7 = grouped_matmul %5, %6, %offsets : f32[2*T, 24]\n"
    "  %y = moe.unpermute %7, %offsets, %tokens, %g : f32[T, 24]\n"
    "  return %y\n"
    "}\n";

typedef struct subject {
    const char *name, *file, *text; /* text NULL: the model of tests/reference/NAME, with its checkpoint */
} subject;

static const subject subjects[] = {
    {"softmax", "layer.moe", softmax_layer},
    {"softmax of the chosen", "layer.moe", LAYER("linear@gate | top 3 | softmax", "")},
    {"shared expert", "layer.moe",
     LAYER("linear@gate | softmax | top 2",
           "    shared@shared 1 of swiglu(12) gate linear@shared_gate(1) | sigmoid\n")},
    {"sigmoid and bias", "layer.moe",
     LAYER("linear@gate | sigmoid | select_bias@bias | groups(3, keep = 2) | top 2 | renorm(eps = 1e-20) | scale(2.5)",
           "    shared@shared 1 of swiglu(12)\n") "train { aux switch; z 1; bias sign, rate = 1e-3 }\n"},
    {"capacity", "layer.moe", LAYER("linear@gate | softmax | top 2", "    capacity 0.75\n")},
    {"given ids and gates", "experts.moir", experts_text},
    {"mixtral_tiny", "model.moe", NULL},
    {"qwen2moe_tiny", "model.moe", NULL},
    {"qwen3moe_tiny", "model.moe", NULL},
    {"olmoe_tiny", "model.moe", NULL},
    {"deepseekv3_tiny", "model.moe", NULL},
};
enum { N_SUBJECTS = sizeof subjects / sizeof *subjects, GIVEN = 5, FIRST_MODEL = 6 };

/* A subject with both its compiled and its interpreted form. */
typedef struct pair {
    const subject *subject;
    mc_str text;
    mc_arena *arena;
    moec_compile_options options;
    mc_unit unit;
    mc_synthetic synthetic;
    mc_plain_weights *checkpoint;
    mc_rig rig;
    mc_fd fd; /* of the last interpret() */
    bool lowered;
    double worst;
    int64_t flips;
} pair;

static mc_str
import_text(pair *p)
{
    mc_buf config = {0}, text = {0};
    mc_fault fault = {0};
    mc_sources sources = {.arena = p->arena};
    mc_diags diags;
    mc_diags_init(&diags, p->arena, &sources);
    mc_str path = mc_strf(p->arena, "tests/reference/%s/config.json", p->subject->name);
    ck_assert_msg(mc_file_read(path.data, (size_t)1 << 20, &config, &fault) == MOEC_OK, "%s", fault.text);
    mc_import_options options = {.config = mc_str_dup(p->arena, mc_buf_view(&config))};
    ck_assert(mc_import(p->arena, &sources, &options, &diags, &text));
    ck_assert_ptr_null(strstr(text.data, "\ntrain {"));
    mc_buf_puts(&text, "train { aux switch; z 1 }\n");
    mc_str out = mc_str_dup(p->arena, mc_buf_view(&text));
    mc_buf_fini(&config);
    mc_buf_fini(&text);
    return out;
}

static void
open_unit(pair *p)
{
    mc_unit_init(&p->unit, &p->options);
    mc_unit_text(&p->unit, p->subject->file, p->text.data, p->text.len);
    bool ok = mc_unit_elaborate(&p->unit);
    mc_unit_deliver(&p->unit);
    ck_assert(ok);
}

static void
print_diagnostic(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

static void
open_pair(pair *p, const subject *of, const char *frozen, bool recompute)
{
    moec_error error = {{0}};
    *p = (pair){.subject = of, .arena = mc_arena_create()};
    p->options = (moec_compile_options){
        .cache = "", .train = true, .frozen = frozen, .recompute = recompute, .on_diagnostic = print_diagnostic};
    p->text = of->text ? mc_str_of(of->text) : import_text(p);
    open_unit(p);
    mc_synthetic_init(&p->synthetic, p->arena, 11);
    if (!of->text) {
        mc_str directory = mc_strf(p->arena, "tests/reference/%s", of->name);
        p->checkpoint = mc_plain_weights_open(&p->unit.elab, directory.data, &error);
        ck_assert_msg(p->checkpoint != NULL, "%s", error.text);
        mc_rig_open(&p->rig, of->file, p->text.data, &p->options, mc_plain_weights_get, p->checkpoint);
    } else {
        mc_rig_open(&p->rig, of->file, p->text.data, &p->options, mc_ref_synthetic_weight, &p->synthetic);
    }
}

static void
close_pair(pair *p)
{
    mc_rig_close(&p->rig);
    mc_plain_weights_close(p->checkpoint);
    mc_unit_fini(&p->unit);
    mc_arena_destroy(p->arena);
}

/* B and S, or T. */
static void
open_step(mc_rig_step *s, const pair *p, int64_t batch, int64_t length, uint32_t n_threads)
{
    bool model = p->subject->text == NULL;
    const moec_limit rows[] = {{"T", batch * length}}, sequences[] = {{"B", batch}, {"S", length}};
    mc_rig_step_open(s, &p->rig, model ? sequences : rows, model ? 2 : 1, n_threads, 3);
    if (p->subject == &subjects[GIVEN])
        for (size_t i = 0; i < s->inputs[1].n_bytes / sizeof(int32_t); i++)
            ((int32_t *)s->inputs[1].data)[i] = (int32_t)(i * i * 7 / 3 % 7); /* 6: no expert */
}

/* ---- against the interpreter ------------------------------------------------------------------------------------- */

static mc_ref_tensor
as_ref(const moec_tensor *t)
{
    mc_ref_tensor r = {.dtype = t->dtype, .rank = (int)t->rank, .data = t->data, .n = 1};
    for (uint32_t d = 0; d < t->rank; d++) {
        r.dims[d] = t->dims[d];
        r.n *= t->dims[d];
    }
    return r;
}

static void
interpret(pair *p, const mc_rig_step *s)
{
    mc_ref_tensor inputs[MC_RIG_MAX], cotangents[MC_RIG_MAX];
    size_t n_cotangents = 0;
    if (!p->lowered) ck_assert(mc_unit_passes(&p->unit, NULL));
    p->lowered = true;
    for (size_t i = 0; i < s->call.n_inputs; i++) inputs[i] = as_ref(&s->inputs[i]);
    for (size_t i = 0; i < s->call.n_cotangents; i++)
        if (s->cotangents[i].data) cotangents[n_cotangents++] = as_ref(&s->cotangents[i]);
    mc_fd_options options = {.module = p->unit.module,
                             .arena = p->arena,
                             .diags = &p->unit.diags,
                             .weight = p->checkpoint ? mc_plain_weights_get : mc_ref_synthetic_weight,
                             .weight_user = p->checkpoint ? (void *)p->checkpoint : &p->synthetic,
                             .cotangents = cotangents};
    bool ok = mc_fd_open(&p->fd, &options, inputs, (int)s->call.n_inputs);
    mc_unit_deliver(&p->unit);
    ck_assert(ok);
    ck_assert_uint_eq(p->fd.cotangents.n, n_cotangents);
    ck_assert_uint_eq((size_t)p->fd.n_outputs, s->call.n_outputs);
}

static void
compare(pair *p, const char *what, const void *got, const mc_ref_tensor *want)
{
    double error = mc_rig_error(got, want);
    ck_assert_msg(error <= tolerance, "%s: %s: relative error %.3g", p->subject->name, what, error);
    if (error > p->worst) p->worst = error;
}

/* What is saved lies in the order of the plan's results; integers among it are choices, and counts of choices. */
static void
count_flips(pair *p, const mc_rig_step *s)
{
    const unsigned char *at = (const unsigned char *)s->call.saved + sizeof(mc_saved_header);
    ck_assert_uint_eq(moec_train_n_saved(p->rig.model), (size_t)(p->fd.n_forward - p->fd.n_outputs));
    for (size_t i = 0; i < moec_train_n_saved(p->rig.model); i++) {
        const mc_ref_tensor *want = &p->fd.outputs[p->fd.n_outputs + (int)i];
        moec_saved_info info;
        ck_assert_int_eq(moec_train_saved(p->rig.model, i, &info), MOEC_OK);
        for (int64_t k = 0; info.dtype == MOEC_I32 && k < want->n; k++)
            p->flips += ((const int32_t *)(const void *)at)[k] != (int32_t)mc_ref_tensor_get(want, k);
        at += mc_train_round((size_t)want->n * moec_dtype_bytes(info.dtype));
    }
    ck_assert_ptr_eq(at, (const unsigned char *)s->call.saved + s->call.saved_bytes);
}

static void
compare_all(pair *p, const mc_rig_step *s)
{
    moec_tensor_info info;
    count_flips(p, s);
    for (size_t i = 0; i < s->call.n_outputs; i++) {
        ck_assert_int_eq(moec_model_output(p->rig.model, i, &info), MOEC_OK);
        compare(p, info.name, s->outputs[i].data, &p->fd.outputs[i]);
    }
    for (size_t i = 0; i < p->fd.input_grads.n; i++) {
        size_t input = (size_t)p->fd.input_grads.items[i];
        ck_assert_ptr_nonnull(s->input_grads[input].data);
        compare(p, "gradient of an input", s->input_grads[input].data, &p->fd.inputs.items[input].grad);
    }
    for (size_t i = 0; i < p->rig.n_params; i++) {
        const mc_fd_tensor *want = mc_fd_param(&p->fd, p->rig.params[i].path);
        ck_assert_msg(want != NULL, "%s: the interpreter has no %s", p->subject->name, p->rig.params[i].path);
        if (p->rig.params[i].has_gradient) compare(p, p->rig.params[i].path, s->grads[i], &want->grad);
    }
}

static const int64_t sizes[][2] = {{1, 7}, {1, 1}, {1, 64}, {2, 7}, {1, 0}};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

START_TEST(test_interpreter)
{
    pair p;
    mc_rig_step s;
    open_pair(&p, &subjects[_i], NULL, false);
    for (int k = 0; k < N_SIZES; k++) {
        if (_i >= FIRST_MODEL && sizes[k][1] == 0) continue; /* their S is at least 1 */
        open_step(&s, &p, sizes[k][0], sizes[k][1], 2);
        mc_rig_forward(&s);
        interpret(&p, &s);
        mc_rig_backward(&s);
        compare_all(&p, &s);
        mc_fd_close(&p.fd);
        mc_rig_step_close(&s);
    }
    printf("%-24s gradients within %.2g, %lld choices differ\n", subjects[_i].name, p.worst, (long long)p.flips);
    ck_assert_int_eq(p.flips, 0);
    close_pair(&p);
}
END_TEST

/* ---- the same bits --------------------------------------------------------------------------------------------- */

static void
run_both(mc_rig_step *s, mc_buf *out)
{
    mc_rig_zero(s);
    mc_rig_forward(s);
    mc_rig_backward(s);
    mc_buf_clear(out);
    mc_rig_collect(s, out);
}

static bool
same(const mc_buf *a, const mc_buf *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

/* 0 (the calling thread), 1, 2, 3 threads; again; and with everything computed again in backward. */
START_TEST(test_bits)
{
    pair p, again;
    mc_buf first = {0}, other = {0};
    mc_rig_step s;
    open_pair(&p, &subjects[_i], NULL, false);
    open_pair(&again, &subjects[_i], NULL, true);
    for (uint32_t threads = 0; threads <= 3; threads++) {
        open_step(&s, &p, 2, 9, threads);
        run_both(&s, threads ? &other : &first);
        ck_assert_msg(!threads || same(&first, &other), "%s: %u threads give other bits", p.subject->name, threads);
        run_both(&s, &other);
        ck_assert_msg(same(&first, &other), "%s: a second run gives other bits", p.subject->name);
        mc_rig_step_close(&s);
    }
    size_t kept = s.sizes.saved_bytes;
    open_step(&s, &again, 2, 9, 2);
    run_both(&s, &other);
    ck_assert_msg(same(&first, &other), "%s: recompute gives other bits", p.subject->name);
    if (_i != GIVEN) ck_assert_uint_lt(s.sizes.saved_bytes, kept);
    mc_rig_step_close(&s);
    mc_buf_fini(&first);
    mc_buf_fini(&other);
    close_pair(&p);
    close_pair(&again);
}
END_TEST

/* ---- gradients that are wanted, and those that are not --------------------------------------------------------- */

/* A second backward of the same forward adds the same again; adding x to x is exact. */
START_TEST(test_accumulates)
{
    pair p;
    mc_rig_step s;
    mc_buf inputs = {0}, outputs = {0};
    open_pair(&p, &subjects[_i], NULL, false);
    open_step(&s, &p, 2, 9, 2);
    run_both(&s, &inputs);
    float **once = MC_NEW_N(p.arena, float *, p.rig.n_params);
    for (size_t i = 0; i < p.rig.n_params; i++)
        if (s.grads[i]) once[i] = mc_arena_copy(p.arena, s.grads[i], mc_rig_param_bytes(&p.rig, i));
    mc_rig_backward(&s);
    for (size_t i = 0; i < p.rig.n_params; i++) {
        double difference = 0, norm = 0;
        for (size_t k = 0; s.grads[i] && k < mc_rig_param_bytes(&p.rig, i) / sizeof(float); k++) {
            double twice = 2 * (double)once[i][k], d = (double)s.grads[i][k] - twice;
            difference += d * d;
            norm += twice * twice;
        }
        ck_assert_msg(difference <= 1e-12 * norm, "%s: %s is not twice what it was", p.subject->name,
                      p.rig.params[i].path);
    }
    for (size_t i = 0; i < s.call.n_inputs; i++) /* gradients of inputs are written, not added to */
        if (s.input_grads[i].data) mc_buf_write(&outputs, s.input_grads[i].data, s.input_grads[i].n_bytes);
    if (outputs.len) {
        size_t before = 0;
        for (size_t i = 0; i < s.call.n_outputs; i++) before += s.outputs[i].n_bytes;
        ck_assert(memcmp(inputs.data + before, outputs.data, outputs.len) == 0);
    }
    mc_buf_fini(&inputs);
    mc_buf_fini(&outputs);
    mc_rig_step_close(&s);
    close_pair(&p);
}
END_TEST

/* Each parameter's gradient alone, the rest NULL: no other bit changes. */
START_TEST(test_null_gradients)
{
    pair p;
    mc_rig_step s;
    mc_buf all = {0};
    open_pair(&p, &subjects[_i], NULL, false);
    open_step(&s, &p, 1, 9, 2);
    run_both(&s, &all);
    float **wanted = MC_NEW_N(p.arena, float *, p.rig.n_params + 1);
    for (size_t i = 0; i < p.rig.n_params; i++) {
        size_t n_bytes = mc_rig_param_bytes(&p.rig, i);
        if (!s.grads[i]) continue;
        void *full = mc_arena_copy(p.arena, s.grads[i], n_bytes);
        memset(wanted, 0, p.rig.n_params * sizeof *wanted);
        wanted[i] = s.grads[i];
        s.call.param_grads = wanted;
        memset(s.grads[i], 0, n_bytes);
        mc_rig_backward(&s);
        ck_assert_msg(memcmp(s.grads[i], full, n_bytes) == 0, "%s: %s alone has other bits", p.subject->name,
                      p.rig.params[i].path);
    }
    s.call.param_grads = NULL;
    mc_rig_backward(&s);
    mc_buf again = {0};
    mc_rig_collect(&s, &again);
    ck_assert_msg(same(&all, &again), "%s: gradients of inputs change with those of parameters", p.subject->name);
    mc_buf_fini(&again);
    mc_buf_fini(&all);
    mc_rig_step_close(&s);
    close_pair(&p);
}
END_TEST

/* Frozen when compiled: no gradient, no more memory; the other gradients keep their bits. */
START_TEST(test_frozen)
{
    pair all, some;
    mc_rig_step a, b;
    mc_buf unused = {0};
    const char *globs = "**.experts.*.weight,embed_tokens.weight";
    open_pair(&all, &subjects[FIRST_MODEL], NULL, false);
    open_pair(&some, &subjects[FIRST_MODEL], globs, false);
    open_step(&a, &all, 2, 9, 2);
    open_step(&b, &some, 2, 9, 2);
    run_both(&a, &unused);
    run_both(&b, &unused);
    size_t n_frozen = 0;
    ck_assert_uint_eq(all.rig.n_params, some.rig.n_params);
    for (size_t i = 0; i < all.rig.n_params; i++) {
        const char *path = all.rig.params[i].path;
        size_t k = mc_rig_param(&some.rig, path);
        bool frozen = strstr(path, ".experts.") || strcmp(path, "embed_tokens.weight") == 0;
        ck_assert_msg(some.rig.params[k].has_gradient == !frozen, "%s", path);
        n_frozen += frozen;
        if (!frozen) ck_assert_msg(memcmp(a.grads[i], b.grads[k], mc_rig_param_bytes(&all.rig, i)) == 0, "%s", path);
    }
    ck_assert_uint_gt(n_frozen, 1);
    ck_assert_uint_le(b.sizes.saved_bytes, a.sizes.saved_bytes);
    mc_buf_fini(&unused);
    mc_rig_step_close(&a);
    mc_rig_step_close(&b);
    close_pair(&all);
    close_pair(&some);
}
END_TEST

/* Layers share their code; one of them may be frozen alone. */
START_TEST(test_frozen_layer)
{
    pair all, some;
    mc_rig_step a, b;
    mc_buf unused = {0};
    open_pair(&all, &subjects[FIRST_MODEL], NULL, false);
    open_pair(&some, &subjects[FIRST_MODEL], "layers.0.**", false);
    open_step(&a, &all, 1, 9, 2);
    open_step(&b, &some, 1, 9, 2);
    run_both(&a, &unused);
    run_both(&b, &unused);
    for (size_t i = 0; i < all.rig.n_params; i++) {
        const char *path = all.rig.params[i].path;
        size_t k = mc_rig_param(&some.rig, path);
        bool frozen = strncmp(path, "layers.0.", 9) == 0;
        ck_assert_msg(some.rig.params[k].has_gradient == !frozen, "%s", path);
        if (!frozen) ck_assert_msg(memcmp(a.grads[i], b.grads[k], mc_rig_param_bytes(&all.rig, i)) == 0, "%s", path);
    }
    mc_buf_fini(&unused);
    mc_rig_step_close(&a);
    mc_rig_step_close(&b);
    close_pair(&all);
    close_pair(&some);
}
END_TEST

/* ---- evaluation, and the other way to run a model -------------------------------------------------------------- */

/* Without a saved buffer the workspace has room for what is not kept; the outputs are the same bits. */
START_TEST(test_evaluation)
{
    pair p;
    mc_rig_step s;
    mc_buf kept = {0}, dropped = {0};
    open_pair(&p, &subjects[_i], NULL, false);
    open_step(&s, &p, 2, 9, 2);
    mc_rig_forward(&s);
    for (size_t i = 0; i < s.call.n_outputs; i++) mc_buf_write(&kept, s.outputs[i].data, s.outputs[i].n_bytes);
    void *saved = s.call.saved, *workspace = s.call.workspace;
    s.call.saved = NULL;
    s.call.workspace_bytes += s.sizes.saved_bytes;
    s.call.workspace = mc_poisoned((int64_t)s.call.workspace_bytes);
    mc_rig_forward(&s);
    for (size_t i = 0; i < s.call.n_outputs; i++) mc_buf_write(&dropped, s.outputs[i].data, s.outputs[i].n_bytes);
    ck_assert(same(&kept, &dropped));
    mc_poisoned_free(s.call.workspace);
    s.call.saved = saved;
    s.call.workspace = workspace;
    mc_buf_fini(&kept);
    mc_buf_fini(&dropped);
    mc_rig_step_close(&s);
    close_pair(&p);
}
END_TEST

static void
run_inference(const pair *p, const mc_rig_step *s, moec_tensor *out)
{
    moec_error error = {{0}};
    moec_model *model;
    moec_compiled *compiled;
    moec_weights *weights;
    moec_session *session;
    const char *f32 = "precision.storage=f32";
    moec_compile_options options = {
        .cache = "",
        .settings = &f32,
        .n_settings = 1,
        .on_diagnostic = print_diagnostic,
        .pipeline = "expand-moe,canonicalize,cse,dce,fuse-moe,carve-fp8,dce,lower-to-plan,plan-memory"};
    mc_str directory = mc_strf(p->arena, "tests/reference/%s", p->subject->name);
    ck_assert_int_eq(moec_compile_text(p->subject->file, p->text.data, p->text.len, &options, &compiled), MOEC_OK);
    ck_assert_msg(moec_compiled_load(compiled, &model, &error) == MOEC_OK, "%s", error.text);
    ck_assert(!moec_model_is_trainable(model));
    moec_weights_options in_memory = {.in_memory = true};
    ck_assert_msg(moec_weights_open(model, directory.data, &in_memory, &weights, &error) == MOEC_OK, "%s", error.text);
    moec_session_options how = {.n_threads = 2, .max_batch = 2, .max_positions = 64, .max_new = 64};
    ck_assert_msg(moec_session_create(model, weights, &how, &session, &error) == MOEC_OK, "%s", error.text);
    ck_assert_msg(moec_session_run(session, s->inputs, s->call.n_inputs, out, 1, &error) == MOEC_OK, "%s", error.text);
    moec_session_destroy(session);
    moec_weights_close(weights);
    moec_compiled_destroy(compiled);
}

/* Logits of training and of a session, from the same checkpoint in f32, are the same bits; without absorb-mla, which
 * multiplies in another order and has no place in training. */
START_TEST(test_as_inference)
{
    pair p;
    mc_rig_step s;
    open_pair(&p, &subjects[_i], NULL, false);
    open_step(&s, &p, 2, 9, 2);
    mc_rig_forward(&s);
    moec_tensor out = {.data = mc_poisoned((int64_t)s.outputs[0].n_bytes), .n_bytes = s.outputs[0].n_bytes};
    run_inference(&p, &s, &out);
    ck_assert_msg(memcmp(out.data, s.outputs[0].data, out.n_bytes) == 0, "%s: other bits than inference",
                  p.subject->name);
    mc_poisoned_free(out.data);
    mc_rig_step_close(&s);
    close_pair(&p);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("train");
    TCase *t = tcase_create("train");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, test_interpreter, 0, N_SUBJECTS);
    tcase_add_loop_test(t, test_bits, 0, N_SUBJECTS);
    tcase_add_loop_test(t, test_accumulates, 0, N_SUBJECTS);
    tcase_add_loop_test(t, test_null_gradients, 0, N_SUBJECTS);
    tcase_add_test(t, test_frozen);
    tcase_add_test(t, test_frozen_layer);
    tcase_add_loop_test(t, test_evaluation, 0, N_SUBJECTS);
    tcase_add_loop_test(t, test_as_inference, FIRST_MODEL, N_SUBJECTS);
    suite_add_tcase(suite, t);
    SRunner *r = srunner_create(suite);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
