/* The interpreter: every file of tests/exec, each op of the table at least once, and what files cannot say: rounding to
 * f32, weights that do not fit, the recorder. */
#include "codegen/ref/interp.h"
#include "ir/op.h"
#include "ir/print.h"
#include "tests/support/exec_case.h"
#include "tests/support/golden.h"
#include "tests/support/messages.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXEC_DIR "tests/exec"

enum { MAX_OUTPUTS = MC_MAX_RANK * 16 };
static mc_arena *files_arena;
static mc_paths files;

/* ---- files ---- */

typedef struct player {
    const char *path;
    mc_arena *arena;
    mc_diags diags;
    mc_exec_case *c;
    mc_ref *ref;
    int n_outputs;
    bool seen[MC_N_OPCODES];
} player;

static void
note_op(void *user, const mc_ref_event *event)
{
    ((player *)user)->seen[event->op->opcode] = true;
}

static void
player_open(player *p, const char *path, mc_ref_precision precision)
{
    *p = (player){.path = path, .arena = mc_arena_create()};
    mc_diags_init(&p->diags, p->arena, NULL);
    p->c = mc_exec_load(path, p->arena, &p->diags);
    ck_assert_msg(p->c != NULL, "%s", mc_messages(&p->diags).data);
    mc_ref_options options = {.precision = precision, .weight = mc_exec_weight, .weight_user = p->c};
    options.record = note_op;
    options.record_user = p;
    p->ref = mc_ref_create(p->c->module, &options, &p->diags);
    ck_assert_msg(p->ref != NULL, "%s: %s", path, mc_messages(&p->diags).data);
    for (size_t i = 0; i < p->c->sets.n; i++)
        ck_assert(mc_ref_set_symbol(p->ref, p->c->sets.items[i].name, p->c->sets.items[i].value));
    p->n_outputs = mc_module_model(p->c->module)->last->n_operands;
    ck_assert_int_le(p->n_outputs, MAX_OUTPUTS);
}

static void
player_close(player *p)
{
    mc_ref_destroy(p->ref);
    mc_exec_close(p->c);
    mc_arena_destroy(p->arena);
}

static void
check_step(const player *p, size_t index, const mc_ref_tensor *outputs)
{
    const mc_exec_step *step = &p->c->steps.items[index];
    for (size_t i = 0; i < step->expects.n; i++) {
        const mc_exec_expect *e = &step->expects.items[i];
        ck_assert_int_lt(e->result, p->n_outputs);
        mc_array got = MC_ARRAY(outputs[e->result]), want = MC_ARRAY(e->want);
        mc_close_report r =
            e->exact ? mc_close_within(got, want, (mc_tolerance){0, 0, 0}) : mc_close(got, want, e->class);
        ck_assert_msg(r.ok, "%s: run %zu, result %d: %s", p->path, index, e->result, r.text);
    }
    for (size_t i = 0; i < step->same.n; i++) {
        mc_exec_same s = step->same.items[i];
        mc_close_report r = mc_close_exact(MC_ARRAY(outputs[s.a]), MC_ARRAY(outputs[s.b]));
        ck_assert_msg(r.ok, "%s: run %zu, results %d and %d differ: %s", p->path, index, s.a, s.b, r.text);
    }
}

static void
check_failure(player *p, size_t index, bool ok)
{
    mc_code want = p->c->steps.items[index].fails;
    ck_assert_msg(!ok, "%s: run %zu succeeds but %s is wanted", p->path, index, mc_code_name(want));
    ck_assert_msg(p->diags.list.n == 1 && p->diags.list.items[0].code == want, "%s: run %zu: wanted %s, got %s",
                  p->path, index, mc_code_name(want), mc_messages(&p->diags).data);
    mc_diags_init(&p->diags, p->arena, &p->c->sources);
}

static void
play(player *p)
{
    mc_ref_state *state = mc_ref_state_create();
    mc_ref_tensor outputs[MAX_OUTPUTS];
    for (size_t i = 0; i < p->c->steps.n; i++) {
        const mc_exec_step *step = &p->c->steps.items[i];
        int64_t past = mc_ref_state_past(state);
        bool ok = mc_ref_run(p->ref, state, step->inputs.items, (int)step->inputs.n, p->arena, outputs, p->n_outputs);
        if (step->fails != MC_N_CODES) {
            check_failure(p, i, ok);
            ck_assert_int_eq(mc_ref_state_past(state), past);
            continue;
        }
        ck_assert_msg(ok, "%s: run %zu: %s", p->path, i, mc_messages(&p->diags).data);
        check_step(p, i, outputs);
    }
    mc_ref_state_destroy(state);
}

START_TEST(exec_file)
{
    player p;
    player_open(&p, files.items[_i / 2], _i % 2 ? MC_REF_F64 : MC_REF_F32);
    play(&p);
    player_close(&p);
}
END_TEST

/* The axis that is the symbol S, or -1. */
static int
axis_of_s(const mc_module *m, const mc_type *t)
{
    for (int d = 0; d < t->rank; d++)
        if (t->dims[d].n_syms == 1 && mc_str_is(m->syms[t->dims[d].syms[0]].name, "S")) return d;
    return -1;
}

/* Elements begin..begin+n-1 of an axis. */
static mc_ref_tensor
cut(const mc_ref_tensor *t, int axis, int64_t begin, int64_t n, mc_arena *arena)
{
    if (axis < 0) return *t;
    mc_ref_tensor part;
    int64_t dims[MC_MAX_RANK], inner = 1, all = t->dims[axis];
    memcpy(dims, t->dims, sizeof dims);
    dims[axis] = n;
    for (int d = axis + 1; d < t->rank; d++) inner *= t->dims[d];
    ck_assert(mc_ref_tensor_init(&part, t->dtype, dims, t->rank, arena));
    for (int64_t i = 0; i < part.n; i++) {
        int64_t outer = i / inner / n, at = i / inner % n;
        mc_ref_tensor_set(&part, i, mc_ref_tensor_get(t, (outer * all + begin + at) * inner + i % inner));
    }
    return part;
}

static void
play_pieces(player *p, const mc_exec_step *step)
{
    const mc_func *model = mc_module_model(p->c->module);
    mc_ref_tensor whole[MAX_OUTPUTS], part[MAX_OUTPUTS], inputs[MAX_OUTPUTS];
    int n = (int)step->inputs.n;
    ck_assert(mc_ref_run(p->ref, NULL, step->inputs.items, n, p->arena, whole, p->n_outputs));
    mc_ref_state *state = mc_ref_state_create();
    for (size_t piece = 0; piece < step->pieces.n; piece++) {
        int64_t begin = mc_ref_state_past(state), length = step->pieces.items[piece];
        for (int i = 0; i < n; i++) {
            int axis = axis_of_s(p->c->module, model->formals.items[i]->type);
            inputs[i] = cut(&step->inputs.items[i], axis, begin, length, p->arena);
        }
        bool ok = mc_ref_run(p->ref, state, inputs, n, p->arena, part, p->n_outputs);
        ck_assert_msg(ok, "%s: %s", p->path, mc_messages(&p->diags).data);
        for (int i = 0; i < p->n_outputs; i++) {
            int axis = axis_of_s(p->c->module, model->last->operands[i].value->type);
            mc_ref_tensor want = cut(&whole[i], axis, begin, length, p->arena);
            mc_close_report r = mc_close_exact(MC_ARRAY(part[i]), MC_ARRAY(want));
            ck_assert_msg(r.ok, "%s: from position %lld on, result %d: %s", p->path, (long long)begin, i, r.text);
        }
    }
    mc_ref_state_destroy(state);
}

START_TEST(steps_equal_whole)
{
    player p;
    player_open(&p, files.items[_i / 2], _i % 2 ? MC_REF_F64 : MC_REF_F32);
    if (p.c->steps.items[0].pieces.n) play_pieces(&p, &p.c->steps.items[0]);
    player_close(&p);
}
END_TEST

/* What a training step does beside its results, and what is between ranks: no case of a file can show it,
 * accumulate_tells_the_path, output_is_recorded and a_rank_alone do. */
static bool
is_effect(mc_opcode opcode)
{
    bool between_ranks = opcode >= MC_OP_EP_ROUTE && opcode <= MC_OP_EP_MERGE;
    return opcode == MC_OP_OUTPUT || opcode == MC_OP_ACCUMULATE || between_ranks;
}

/* No op of the table may be without an executed case. */
START_TEST(every_op_runs)
{
    bool seen[MC_N_OPCODES] = {0};
    int missing = 0;
    for (size_t f = 0; f < files.n; f++) {
        player p;
        player_open(&p, files.items[f], MC_REF_F32);
        play(&p);
        for (int i = 0; i < MC_N_OPCODES; i++) seen[i] |= p.seen[i];
        player_close(&p);
    }
    for (int i = 0; i < MC_N_OPCODES; i++) {
        if (seen[i] || is_effect((mc_opcode)i)) continue;
        fprintf(stderr, "no case of tests/exec runs '%s'\n", mc_op_infos[i].text);
        missing++;
    }
    ck_assert_int_eq(missing, 0);
}
END_TEST

/* F32 and F64 agree within the tolerance of whole models, and are not the same computation. */
START_TEST(precisions_agree)
{
    mc_ref_tensor out[2][MAX_OUTPUTS];
    player p[2];
    for (int i = 0; i < 2; i++) {
        player_open(&p[i], EXEC_DIR "/lm_moe.moir", i ? MC_REF_F64 : MC_REF_F32);
        const mc_exec_step *s = &p[i].c->steps.items[0];
        ck_assert(mc_ref_run(p[i].ref, NULL, s->inputs.items, (int)s->inputs.n, p[i].arena, out[i], p[i].n_outputs));
    }
    ck_assert_int_eq(out[0][0].dtype, MOEC_F32);
    ck_assert_int_eq(out[1][0].dtype, MOEC_F64);
    mc_close_report r = mc_close(MC_ARRAY(out[0][0]), MC_ARRAY(out[1][0]), MC_TOL_MODEL);
    ck_assert_msg(r.ok, "%s", r.text);
    ck_assert(r.norm_error > 1e-9);
    for (int i = 0; i < 2; i++) player_close(&p[i]);
}
END_TEST

/* ---- modules written here ---- */

typedef struct bench {
    mc_arena *arena;
    mc_sources sources;
    mc_diags diags;
    mc_module *module;
    mc_synthetic synthetic;
    mc_ref *ref;
} bench;

static void
bench_open(bench *b, const char *text, mc_ref_options options)
{
    *b = (bench){.arena = mc_arena_create()};
    b->sources.arena = b->arena;
    mc_diags_init(&b->diags, b->arena, &b->sources);
    uint32_t file = mc_sources_add(&b->sources, MC_STR("here"), mc_str_of(text));
    b->module = mc_module_read(&b->sources, file, &b->diags);
    ck_assert_msg(b->module != NULL, "%s", mc_messages(&b->diags).data);
    mc_synthetic_init(&b->synthetic, b->arena, 1);
    if (!options.weight) {
        options.weight = mc_ref_synthetic_weight;
        options.weight_user = &b->synthetic;
    }
    b->ref = mc_ref_create(b->module, &options, &b->diags);
    ck_assert_msg(b->ref != NULL, "%s", mc_messages(&b->diags).data);
}

static void
bench_close(bench *b)
{
    mc_ref_destroy(b->ref);
    mc_module_destroy(b->module);
    mc_arena_destroy(b->arena);
}

static mc_ref_tensor
random_tensor(bench *b, uint64_t seed, moec_dtype dtype, int rank, const int64_t *dims)
{
    mc_ref_tensor t;
    ck_assert(mc_ref_tensor_init(&t, dtype, dims, rank, b->arena));
    for (int64_t i = 0; i < t.n; i++) mc_ref_tensor_set(&t, i, mc_noise_normal(seed, i));
    return t;
}

static const char linear_text[] = "moir 1 stage=tensor\n"
                                  "model @m(%x: f32[3, 50], %w: f32[7, 50]) -> (f32[3, 7]) {\n"
                                  "  %y = linear %x, %w : f32[3, 7]\n"
                                  "  return %y\n"
                                  "}\n";

/* The definition that backends reproduce bit for bit. */
START_TEST(linear_is_one_fma_chain)
{
    bench b;
    bench_open(&b, linear_text, (mc_ref_options){.precision = MC_REF_F32});
    mc_ref_tensor in[2] = {random_tensor(&b, 1, MOEC_F32, 2, (int64_t[]){3, 50}),
                           random_tensor(&b, 2, MOEC_F32, 2, (int64_t[]){7, 50})};
    mc_ref_tensor out;
    ck_assert(mc_ref_run(b.ref, NULL, in, 2, b.arena, &out, 1));
    const float *x = in[0].data, *w = in[1].data, *y = out.data;
    for (int t = 0; t < 3; t++)
        for (int o = 0; o < 7; o++) {
            float sum = 0;
            for (int i = 0; i < 50; i++) sum = fmaf(x[t * 50 + i], w[o * 50 + i], sum);
            ck_assert(memcmp(&sum, &y[t * 7 + o], sizeof sum) == 0);
        }
    bench_close(&b);
}
END_TEST

/* With scales: a chain for each run of 128, then fma(run, scale, total). */
START_TEST(fp8_linear_is_chains_of_128)
{
    static const char text[] = "moir 1 stage=tensor\n"
                               "model @m(%x: f32[1, 300]) -> (f32[1, 130]) {\n"
                               "  %w = weight {path = \"w\", role = \"dense\"} : f8e4m3[130, 300]\n"
                               "  %s = weight {path = \"w_scale_inv\", role = \"dense\"} : f32[2, 3]\n"
                               "  %y = linear %x, %w, _, %s : f32[1, 130]\n"
                               "  return %y\n"
                               "}\n";
    bench b;
    bench_open(&b, text, (mc_ref_options){.precision = MC_REF_F32});
    mc_ref_tensor in = random_tensor(&b, 1, MOEC_F32, 2, (int64_t[]){1, 300}), out, w, s;
    mc_ref_weight_request want_w = {MC_STR("w"), MC_STR("dense"), MOEC_F8E4M3, 2, {130, 300}};
    mc_ref_weight_request want_s = {MC_STR("w_scale_inv"), MC_STR("dense"), MOEC_F32, 2, {2, 3}};
    ck_assert(mc_ref_synthetic_weight(&b.synthetic, &want_w, &w) && mc_ref_synthetic_weight(&b.synthetic, &want_s, &s));
    ck_assert(mc_ref_run(b.ref, NULL, &in, 1, b.arena, &out, 1));
    const float *x = in.data, *y = out.data;
    for (int o = 0; o < 130; o++) {
        float total = 0;
        for (int begin = 0; begin < 300; begin += 128) {
            float run = 0;
            for (int i = begin; i < 300 && i < begin + 128; i++)
                run = fmaf(x[i], (float)mc_ref_tensor_get(&w, o * 300 + i), run);
            total = fmaf(run, (float)mc_ref_tensor_get(&s, o / 128 * 3 + begin / 128), total);
        }
        ck_assert(memcmp(&total, &y[o], sizeof total) == 0);
    }
    bench_close(&b);
}
END_TEST

START_TEST(inputs_are_checked)
{
    bench b;
    bench_open(&b, linear_text, (mc_ref_options){.precision = MC_REF_F32});
    mc_ref_tensor in[2] = {random_tensor(&b, 1, MOEC_F32, 2, (int64_t[]){3, 50}),
                           random_tensor(&b, 2, MOEC_F32, 2, (int64_t[]){7, 50})};
    mc_ref_tensor out[2], bad[2];
    ck_assert(!mc_ref_run(b.ref, NULL, in, 1, b.arena, out, 1));
    ck_assert(!mc_ref_run(b.ref, NULL, in, 2, b.arena, out, 2));
    memcpy(bad, in, sizeof bad);
    bad[1].dims[0] = 8; /* more rows than there is data for */
    ck_assert(!mc_ref_run(b.ref, NULL, bad, 2, b.arena, out, 1));
    memcpy(bad, in, sizeof bad);
    bad[0].dims[0] = -3;
    ck_assert(!mc_ref_run(b.ref, NULL, bad, 2, b.arena, out, 1));
    memcpy(bad, in, sizeof bad);
    bad[0].rank = 1;
    ck_assert(!mc_ref_run(b.ref, NULL, bad, 2, b.arena, out, 1));
    ck_assert_int_eq(b.diags.n_errors, 5);
    ck_assert(mc_ref_run(b.ref, NULL, in, 2, b.arena, out, 1));
    bench_close(&b);
}
END_TEST

static const char weight_text[] = "moir 1 stage=tensor\n"
                                  "func @inner() -> (f32[2, 3]) {\n"
                                  "  %w = weight {path = \"w\", role = \"dense\"} : f32[2, 3]\n"
                                  "  return %w\n"
                                  "}\n"
                                  "model @m() -> (f32[2, 3]) {\n"
                                  "  %y = call {callee = @inner, scope = \"layers.3\"} : f32[2, 3]\n"
                                  "  return %y\n"
                                  "}\n";

typedef enum weight_kind { WEIGHT_GOOD, WEIGHT_ABSENT, WEIGHT_SHAPE, WEIGHT_DTYPE, N_WEIGHT_KINDS } weight_kind;

static bool
one_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    static float zeros[6];
    weight_kind kind = *(const weight_kind *)user;
    if (!mc_str_is(request->path, "layers.3.w") || !mc_str_is(request->role, "dense") || kind == WEIGHT_ABSENT)
        return false;
    *out = (mc_ref_tensor){.dtype = MOEC_F32, .rank = 2, .dims = {2, 3}, .data = zeros};
    if (kind == WEIGHT_SHAPE) out->dims[0] = 3, out->dims[1] = 2;
    if (kind == WEIGHT_DTYPE) out->dtype = MOEC_BF16;
    return true;
}

START_TEST(weights_are_checked)
{
    static const mc_code codes[N_WEIGHT_KINDS] = {MC_N_CODES, MC_E0901, MC_E0903, MC_E0903};
    weight_kind kind = (weight_kind)_i;
    bench b;
    mc_ref_tensor out;
    bench_open(&b, weight_text, (mc_ref_options){.weight = one_weight, .weight_user = &kind});
    bool ok = mc_ref_run(b.ref, NULL, NULL, 0, b.arena, &out, 1);
    ck_assert_int_eq(ok, kind == WEIGHT_GOOD);
    if (!ok) ck_assert_int_eq(b.diags.list.items[0].code, codes[kind]);
    bench_close(&b);
}
END_TEST

static void
print_choices(void *user, const mc_ref_event *event)
{
    if (event->op->opcode != MC_OP_ROUTE_TOP) return;
    const mc_ref_tensor *ids = &event->results[1];
    mc_buf_printf(user, "%.*s:", MC_FMT(event->scope));
    for (int64_t i = 0; i < ids->n; i++) mc_buf_printf(user, " %g", mc_ref_tensor_get(ids, i));
    mc_buf_putc(user, '\n');
}

START_TEST(recorder_sees_scope_and_results)
{
    static const char text[] = "moir 1 stage=tensor\n"
                               "func @pick(%z: f32[2, 3]) -> (f32[2, 2], i32[2, 2]) {\n"
                               "  %w, %i = route.top %z, %z {k = 2} : f32[2, 2], i32[2, 2]\n"
                               "  return %w, %i\n"
                               "}\n"
                               "model @m(%z: f32[2, 3]) -> (f32[2, 2]) {\n"
                               "  %w, %i = call %z {callee = @pick, scope = \"layers.0\"} : f32[2, 2], i32[2, 2]\n"
                               "  %v, %j = call %z {callee = @pick, scope = \"layers.1\"} : f32[2, 2], i32[2, 2]\n"
                               "  return %w\n"
                               "}\n";
    bench b;
    mc_buf seen = {0};
    bench_open(&b, text, (mc_ref_options){.record = print_choices, .record_user = &seen});
    float z[6] = {1, 3, 2, 5, 5, 5};
    mc_ref_tensor in = {MOEC_F32, 2, {2, 3}, 6, z}, out;
    ck_assert(mc_ref_run(b.ref, NULL, &in, 1, b.arena, &out, 1));
    ck_assert_str_eq(seen.data, "layers.0: 1 2 0 1\nlayers.1: 1 2 0 1\n");
    mc_buf_fini(&seen);
    bench_close(&b);
}
END_TEST

/* ---- support ---- */

static const char effects_text[] = "moir 1 stage=plan\n"
                                   "func @layer(%x: f32[3]) -> (f32[3]) {\n"
                                   "  %buffer = packed {path = \"w\", role = \"norm\", layout = \"grad\"} : f32[3]\n"
                                   "  accumulate %x, %buffer {path = \"w\"}\n"
                                   "  accumulate %x {path = \"top.w\", root = true}\n"
                                   "  return %x\n"
                                   "}\n"
                                   "model @m(%x: f32[3]) -> (f32[3]) {\n"
                                   "  %y = call %x {callee = @layer, scope = \"layers.0\"} : f32[3]\n"
                                   "  %z = call %y {callee = @layer, scope = \"layers.1\"} : f32[3]\n"
                                   "  return %z\n"
                                   "}\n";

static void
note_gradient(void *user, mc_str path, const mc_ref_tensor *d)
{
    mc_buf_printf(user, "%.*s %g %g %g\n", MC_FMT(path), mc_ref_tensor_get(d, 0), mc_ref_tensor_get(d, 1),
                  mc_ref_tensor_get(d, 2));
}

static bool
no_weight(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out)
{
    (void)user;
    (void)request;
    (void)out;
    return false;
}

/* Gradients are told by the parameter's full path; the buffers of stage plan are nobody's weights. */
START_TEST(accumulate_tells_the_path)
{
    bench b;
    mc_buf seen = {0};
    for (int deaf = 0; deaf < 2; deaf++) {
        mc_ref_options options = {.weight = no_weight, .accumulate_user = &seen};
        if (!deaf) options.accumulate = note_gradient;
        bench_open(&b, effects_text, options);
        mc_ref_tensor in = {.dtype = MOEC_F32, .rank = 1, .dims = {3}, .n = 3, .data = (float[]){1, 2, 3}}, out;
        ck_assert_msg(mc_ref_run(b.ref, NULL, &in, 1, b.arena, &out, 1), "%s", mc_messages(&b.diags).data);
        bench_close(&b);
    }
    ck_assert_str_eq(seen.data, "layers.0.w 1 2 3\ntop.w 1 2 3\nlayers.1.w 1 2 3\ntop.w 1 2 3\n");
    mc_buf_fini(&seen);
}
END_TEST

/* A rank that is alone sends rows to itself: what comes back is what went, in the order of the experts. Tokens 0, 2 and
 * 3 chose experts 2 1, 0 2 and 1 1; token 1 chose none. */
START_TEST(a_rank_alone)
{
    static const char text[] =
        "moir 1 stage=dist\ndim T\ndim epT\ndim epY0\ndim epX0\ndim epM0\n"
        "model @m(%x: f32[T, 1], %w: f32[T, 2], %ids: i32[T, 2]) -> (f32[2*T, 1], f32[T, 1], f32[T, 1], f32[epM0, 1]) "
        "{\n"
        "  %offsets, %tokens, %slots, %gates = moe.dispatch %w, %ids {experts = 3} : i32[4], i32[2*T], i32[2*T], "
        "f32[2*T]\n"
        "  %o, %r, %order, %sent, %st, %c = ep.route %offsets, %tokens, %ids {experts = 3, share = 3, ranks = 1, way = "
        "\"rank\", "
        "received = \"epX0\"} : i32[4], i32[epY0], i32[epY0], i32[2*T], i32[2*T], i32[6, 1]\n"
        "  %f = ep.send %x, %o, %r, %order, %sent, %st, %c {way = \"rank\"} : f32[epX0, 1]\n"
        "  %xr = ep.wait %f : f32[epX0, 1]\n"
        "  %rows = moe.permute %xr, %r, %o : f32[epY0, 1]\n"
        "  %b = ep.return %rows, %o, %r, %order, %sent, %st, %c : f32[2*T, 1]\n"
        "  %g = ep.send_rows %gates, %o, %r, %order, %sent, %st, %c : f32[epY0]\n"
        "  %part = moe.unpermute %rows, %o, %r, %g : f32[epX0, 1]\n"
        "  %sum = ep.reduce %part, %o, %r, %order, %sent, %st, %c {way = \"rank\"} : f32[T, 1]\n"
        "  %all, %begin = ep.gather %x {ranks = 1, all = \"epT\"} : f32[epT, 1], i32[1]\n"
        "  %own = ep.own %all, %begin : f32[T, 1]\n"
        "  %merged, %mo = ep.merge %rows, %o {replicas = 1, merged = \"epM0\"} : f32[epM0, 1], i32[4]\n"
        "  return %b, %sum, %own, %merged\n"
        "}\n";
    float x[] = {1, 2, 3, 4}, w[] = {10, 20, 1, 1, 30, 40, 50, 60};
    int32_t ids[] = {2, 1, -1, -1, 0, 2, 1, 1};
    static const double rows[] = {3, 1, 4, 4, 1, 3}, sums[] = {30, 0, 210, 440};
    mc_ref_tensor in[] = {{MOEC_F32, 2, {4, 1}, 4, x}, {MOEC_F32, 2, {4, 2}, 8, w}, {MOEC_I32, 2, {4, 2}, 8, ids}},
                  out[4];
    bench b;
    bench_open(&b, text, (mc_ref_options){0});
    ck_assert_msg(mc_ref_run(b.ref, NULL, in, 3, b.arena, out, 4), "%s", mc_messages(&b.diags).data);
    ck_assert_int_eq(out[0].n, 8);
    ck_assert_int_eq(out[3].n, 6);
    for (int i = 0; i < 8; i++) {
        double got = mc_ref_tensor_get(&out[0], i);
        ck_assert_msg(i < 6 ? got == rows[i] : isnan(got), "row %d came back as %g", i, got);
        if (i < 6) ck_assert_double_eq(mc_ref_tensor_get(&out[3], i), rows[i]);
        if (i < 4) ck_assert_double_eq(mc_ref_tensor_get(&out[1], i), sums[i]);
        if (i < 4) ck_assert_double_eq(mc_ref_tensor_get(&out[2], i), x[i]);
    }
    bench_close(&b);
}
END_TEST

static void
note_output(void *user, const mc_ref_event *event)
{
    if (event->op->opcode != MC_OP_OUTPUT) return;
    mc_buf_printf(user, "%.*s/%.*s\n", MC_FMT(event->scope), MC_FMT(mc_attr_str(event->op, "name")));
}

START_TEST(output_is_recorded)
{
    static const char text[] = "moir 1 stage=tensor\n"
                               "func @layer(%x: f32[]) -> (f32[]) {\n"
                               "  output %x {name = \"balance\", sum = true}\n"
                               "  return %x\n"
                               "}\n"
                               "model @m(%x: f32[]) -> (f32[]) {\n"
                               "  %y = call %x {callee = @layer, scope = \"mlp\"} : f32[]\n"
                               "  return %y\n"
                               "}\n";
    bench b;
    mc_buf seen = {0};
    bench_open(&b, text, (mc_ref_options){.record = note_output, .record_user = &seen});
    mc_ref_tensor in = {.dtype = MOEC_F32, .n = 1, .data = (float[]){2}}, out;
    ck_assert(mc_ref_run(b.ref, NULL, &in, 1, b.arena, &out, 1));
    ck_assert_str_eq(seen.data, "mlp/balance\n");
    mc_buf_fini(&seen);
    bench_close(&b);
}
END_TEST

int
main(void)
{
    files_arena = mc_arena_create();
    files = mc_golden_find(files_arena, EXEC_DIR, ".moir");
    Suite *suite = suite_create("ref");
    TCase *exec = tcase_create("exec"), *own = tcase_create("own");
    tcase_set_timeout(exec, 120);
    tcase_add_loop_test(exec, exec_file, 0, 2 * (int)files.n);
    tcase_add_loop_test(exec, steps_equal_whole, 0, 2 * (int)files.n);
    tcase_add_test(exec, every_op_runs);
    tcase_add_test(exec, precisions_agree);
    suite_add_tcase(suite, exec);
    tcase_add_test(own, linear_is_one_fma_chain);
    tcase_add_test(own, fp8_linear_is_chains_of_128);
    tcase_add_test(own, inputs_are_checked);
    tcase_add_loop_test(own, weights_are_checked, 0, N_WEIGHT_KINDS);
    tcase_add_test(own, recorder_sees_scope_and_results);
    tcase_add_test(own, accumulate_tells_the_path);
    tcase_add_test(own, output_is_recorded);
    tcase_add_test(own, a_rank_alone);
    suite_add_tcase(suite, own);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    mc_arena_destroy(files_arena);
    return failed || !files.n;
}
