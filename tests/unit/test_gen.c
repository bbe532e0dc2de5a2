/* Generated modules: what must hold for every valid module holds for some hundred random ones. The verifier accepts
 * them, their text reads back, a run cut into steps gives the same bits, f64 agrees with f32 where the same experts are
 * chosen, and no pipeline of passes changes a bit of what the interpreter computes. */
#include "ir/op.h"
#include "ir/print.h"
#include "ir/verify.h"
#include "passes/pass.h"
#include "tests/support/close.h"
#include "tests/support/gen_module.h"
#include "tests/support/messages.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_SEEDS = 120, N_BLOCKS = 7, MAX_OUTPUTS = 2 };

typedef struct rig {
    mc_arena *arena;
    mc_diags diags;
    mc_synthetic synthetic;
    mc_module *module;
    uint64_t seed;
    bool *seen; /* by opcode; may be NULL */
} rig;

static void
rig_open(rig *r, uint64_t seed, bool by_token, bool continuous)
{
    *r = (rig){.arena = mc_arena_create(), .seed = seed};
    mc_diags_init(&r->diags, r->arena, NULL);
    mc_synthetic_init(&r->synthetic, r->arena, seed);
    r->synthetic.bf16_grid = true; /* packing widens vectors: bf16 and f32 must hold the same */
    mc_gen_options options = {.seed = seed, .n_blocks = N_BLOCKS, .by_token = by_token, .continuous = continuous};
    r->module = mc_gen_module(&options, &r->diags);
    ck_assert_msg(r->module != NULL, "seed %d: %s", (int)seed, mc_messages(&r->diags).data);
}

static void
rig_close(rig *r)
{
    mc_module_destroy(r->module);
    mc_arena_destroy(r->arena);
}

/* On failure the text of the module is the best message. */
static void
show(const rig *r)
{
    mc_buf text = {0};
    mc_module_print(r->module, &text);
    fprintf(stderr, "# seed %d\n%s\n", (int)r->seed, text.data);
    mc_buf_fini(&text);
}

static void
note_op(void *user, const mc_ref_event *event)
{
    ((bool *)user)[event->op->opcode] = true;
}

static mc_ref *
interpreter(rig *r, const mc_module *m, mc_ref_precision precision)
{
    mc_ref_options options = {.precision = precision, .weight = mc_ref_synthetic_weight, .weight_user = &r->synthetic};
    options.record = r->seen ? note_op : NULL;
    options.record_user = r->seen;
    mc_ref *ref = mc_ref_create(m, &options, &r->diags);
    if (!ref) show(r);
    ck_assert_msg(ref != NULL, "seed %d: %s", (int)r->seed, mc_messages(&r->diags).data);
    return ref;
}

static int
n_results(const mc_module *m)
{
    return mc_module_model(m)->last->n_operands;
}

/* One run of S positions of the input stream number `part`. */
static void
run(rig *r, mc_ref *ref, const mc_module *m, mc_ref_state *state, int64_t S, uint64_t part, mc_ref_tensor *out)
{
    mc_ref_tensor inputs[MC_GEN_INPUTS];
    mc_gen_inputs(m, r->seed * 100 + part, 2, S, r->arena, inputs);
    bool ok = mc_ref_run(ref, state, inputs, MC_GEN_INPUTS, r->arena, out, n_results(m));
    if (!ok) show(r);
    ck_assert_msg(ok, "seed %d: %s", (int)r->seed, mc_messages(&r->diags).data);
}

START_TEST(text_reads_back)
{
    rig r;
    mc_buf first = {0}, second = {0};
    rig_open(&r, (uint64_t)_i, false, false);
    bool good = mc_module_verify(r.module, &r.diags);
    if (!good) show(&r);
    ck_assert_msg(good, "seed %d: %s", _i, mc_messages(&r.diags).data);
    mc_module_print(r.module, &first);
    mc_sources sources = {.arena = r.arena};
    uint32_t file = mc_sources_add(&sources, MC_STR("generated"), mc_buf_view(&first));
    mc_module *again = mc_module_read(&sources, file, &r.diags);
    ck_assert_msg(again != NULL, "seed %d: %s", _i, mc_messages(&r.diags).data);
    mc_module_print(again, &second);
    ck_assert_str_eq(first.data, second.data);
    mc_module_destroy(again);
    mc_buf_fini(&first);
    mc_buf_fini(&second);
    rig_close(&r);
}
END_TEST

/* Part of a result [B, S, ...]. */
static void
check_part(const rig *r, const mc_ref_tensor *whole, const mc_ref_tensor *part, int64_t begin)
{
    int64_t S = part->dims[1], all = whole->dims[1], inner = part->n / part->dims[0] / S;
    for (int64_t i = 0; i < part->n; i++) {
        int64_t b = i / inner / S, s = i / inner % S;
        float want = (float)mc_ref_tensor_get(whole, (b * all + begin + s) * inner + i % inner);
        float got = (float)mc_ref_tensor_get(part, i);
        if (memcmp(&want, &got, sizeof want) != 0) show(r);
        ck_assert_msg(memcmp(&want, &got, sizeof want) == 0, "seed %d, position %d: %.9g, but %.9g in one run",
                      (int)r->seed, (int)(begin + s), (double)got, (double)want);
    }
}

/* Positions begin..begin+n-1 of inputs. */
static void
cut(rig *r, const mc_ref_tensor *whole, int64_t begin, int64_t n, mc_ref_tensor *part)
{
    int64_t dims[3] = {whole->dims[0], n, whole->rank > 2 ? whole->dims[2] : 0}, inner = whole->rank > 2 ? dims[2] : 1;
    ck_assert(mc_ref_tensor_init(part, whole->dtype, dims, whole->rank, r->arena));
    for (int64_t i = 0; i < part->n; i++) {
        int64_t b = i / inner / n, s = i / inner % n;
        mc_ref_tensor_set(part, i, mc_ref_tensor_get(whole, (b * whole->dims[1] + begin + s) * inner + i % inner));
    }
}

START_TEST(steps_equal_whole)
{
    static const int64_t pieces[] = {3, 1, 2};
    rig r;
    rig_open(&r, (uint64_t)_i, true, false);
    mc_ref *ref = interpreter(&r, r.module, MC_REF_F32);
    mc_ref_tensor inputs[MC_GEN_INPUTS], part[MC_GEN_INPUTS], whole[MAX_OUTPUTS], out[MAX_OUTPUTS];
    mc_gen_inputs(r.module, r.seed, 2, 6, r.arena, inputs);
    int n = n_results(r.module);
    ck_assert_msg(mc_ref_run(ref, NULL, inputs, MC_GEN_INPUTS, r.arena, whole, n), "%s", mc_messages(&r.diags).data);
    mc_ref_state *state = mc_ref_state_create();
    for (int p = 0; p < 3; p++) {
        int64_t begin = mc_ref_state_past(state);
        for (int i = 0; i < MC_GEN_INPUTS; i++) cut(&r, &inputs[i], begin, pieces[p], &part[i]);
        ck_assert(mc_ref_run(ref, state, part, MC_GEN_INPUTS, r.arena, out, n));
        for (int i = 0; i < n; i++) check_part(&r, &whole[i], &out[i], begin);
    }
    mc_ref_state_destroy(state);
    mc_ref_destroy(ref);
    rig_close(&r);
}
END_TEST

/* Two runs on one state, before and after. */
static void
check_pipeline(rig *r, const char *pipeline)
{
    mc_ref_tensor before[2][MAX_OUTPUTS], after[2][MAX_OUTPUTS];
    mc_ref_state *state = mc_ref_state_create();
    mc_ref *ref = interpreter(r, r->module, MC_REF_F32);
    for (uint64_t i = 0; i < 2; i++) run(r, ref, r->module, state, i ? 1 : 4, i, before[i]);
    mc_ref_destroy(ref);
    mc_ref_state_destroy(state);
    mc_pass_options options = mc_pass_options_default();
    options.verify_each = options.roundtrip_each = options.check_unchanged = true;
    bool ok = mc_run_pipeline(r->module, mc_str_of(pipeline), &options, &r->diags);
    if (!ok) show(r);
    ck_assert_msg(ok, "seed %d, %s: %s", (int)r->seed, pipeline, mc_messages(&r->diags).data);
    state = mc_ref_state_create();
    ref = interpreter(r, r->module, MC_REF_F32);
    for (uint64_t i = 0; i < 2; i++) {
        run(r, ref, r->module, state, i ? 1 : 4, i, after[i]);
        for (int j = 0; j < n_results(r->module); j++) {
            mc_close_report c = mc_close_exact(MC_ARRAY(after[i][j]), MC_ARRAY(before[i][j]));
            if (!c.ok) show(r);
            ck_assert_msg(c.ok, "seed %d, %s, run %d: %s", (int)r->seed, pipeline, (int)i, c.text);
        }
    }
    mc_ref_destroy(ref);
    mc_ref_state_destroy(state);
}

static const char *const pipelines[] = {"@simplify", "expand-moe", "expand-moe,canonicalize,cse,dce,fuse-moe",
                                        "@unfused", "@default"};
enum { N_PIPELINES = sizeof pipelines / sizeof pipelines[0] };

START_TEST(passes_keep_every_bit)
{
    rig r;
    rig_open(&r, (uint64_t)(_i / N_PIPELINES), false, false);
    check_pipeline(&r, pipelines[_i % N_PIPELINES]);
    rig_close(&r);
}
END_TEST

/* Rounding moves results a little, and no choice with a margin flips. */
START_TEST(precisions_agree)
{
    rig r;
    rig_open(&r, (uint64_t)_i, false, true);
    mc_ref_tensor f32[MAX_OUTPUTS], f64[MAX_OUTPUTS];
    for (int p = 0; p < 2; p++) {
        mc_ref *ref = interpreter(&r, r.module, p ? MC_REF_F64 : MC_REF_F32);
        run(&r, ref, r.module, NULL, 5, 0, p ? f64 : f32);
        mc_ref_destroy(ref);
    }
    for (int j = 0; j < n_results(r.module); j++) {
        mc_close_report c = mc_close(MC_ARRAY(f32[j]), MC_ARRAY(f64[j]), MC_TOL_MODEL);
        if (!c.ok) show(&r);
        ck_assert_msg(c.ok, "seed %d: %s", _i, c.text);
    }
    rig_close(&r);
}
END_TEST

static void
note_ops(const mc_module *m, bool *seen)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f) seen[op->opcode] = true;
    }
}

/* What passes make of a program that is trained. Not every route has scores to balance: such programs are refused. */
static void
note_training_ops(uint64_t seed, bool *seen)
{
    static const char pipeline[] = "expand-moe,canonicalize,cse,dce,routing-losses,fuse-moe{train=1},dce,autodiff,"
                                   "canonicalize,cse,dce,fuse-grad";
    rig r = {.arena = mc_arena_create(), .seed = seed};
    mc_diags_init(&r.diags, r.arena, NULL);
    mc_gen_options options = {.seed = seed, .n_blocks = N_BLOCKS, .trainable = true};
    r.module = mc_gen_module(&options, &r.diags);
    ck_assert_msg(r.module != NULL, "seed %d: %s", (int)seed, mc_messages(&r.diags).data);
    note_ops(r.module, seen);
    if (seed % 2) mc_module_set_meta(r.module, MC_STR("train"), MC_STR("aux switch"));
    mc_pass_options how = mc_pass_options_default();
    bool ok = mc_run_pipeline(r.module, MC_STR(pipeline), &how, &r.diags);
    ck_assert_msg(ok || (seed % 2 && r.diags.list.items[0].code == MC_E0509), "%s", mc_messages(&r.diags).data);
    if (ok) note_ops(r.module, seen);
    rig_close(&r);
}

/* The generator leaves out no op that may stand in stage tensor, nor what training makes. */
START_TEST(every_op_occurs)
{
    static bool seen[MC_N_OPCODES];
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        mc_ref_tensor out[MAX_OUTPUTS];
        rig r;
        rig_open(&r, seed, false, false);
        r.seen = seen;
        mc_ref *ref = interpreter(&r, r.module, MC_REF_F32);
        run(&r, ref, r.module, NULL, 3, 0, out);
        mc_ref_destroy(ref);
        rig_close(&r);
        note_training_ops(seed, seen);
    }
    int missing = 0;
    for (int i = 0; i < MC_N_OPCODES; i++) {
        if (seen[i] || !(mc_op_infos[i].stages & MC_IN_TENSOR)) continue;
        fprintf(stderr, "%d generated modules have no '%s'\n", N_SEEDS, mc_op_infos[i].text);
        missing++;
    }
    ck_assert_int_eq(missing, 0);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("gen");
    TCase *t = tcase_create("gen");
    tcase_set_timeout(t, 120);
    tcase_add_loop_test(t, text_reads_back, 0, N_SEEDS);
    tcase_add_loop_test(t, steps_equal_whole, 0, N_SEEDS);
    tcase_add_loop_test(t, passes_keep_every_bit, 0, N_SEEDS * N_PIPELINES);
    tcase_add_loop_test(t, precisions_agree, 0, N_SEEDS);
    tcase_add_test(t, every_op_occurs);
    suite_add_tcase(suite, t);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
