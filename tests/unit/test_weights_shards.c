/* Weights of models for several ranks: each rank opens its own experts, and all of them together are what one rank has.
 */
#define _GNU_SOURCE
#include "moec/comm.h"
#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/pack.h"
#include "runtime/ranks.h"
#include "runtime/session.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { E = 8, F = 5, D = 7, MAX_RANKS = 4, N_WEIGHTS = 9 };
#define DIMS(...) ((const int64_t[]){__VA_ARGS__})
#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define SAYS(text, part) ck_assert_msg(strstr((text), (part)) != NULL, "\"%s\" does not say \"%s\"", (text), (part))
#define REFUSED(expression, status, part)                                                                              \
    do {                                                                                                               \
        ck_assert_int_eq((expression), (status));                                                                      \
        SAYS(error.text, part);                                                                                        \
    } while (0)

static const char *dir;
static st_file file;
static moec_error error;
static float values[40000];
static moec_comm *comms[MAX_RANKS];
static uint32_t n_comms;

static void
close_comms(void)
{
    for (uint32_t i = 0; i < n_comms; i++) moec_comm_close(comms[i]);
    n_comms = 0;
}

static void
open_comms(uint32_t n)
{
    close_comms();
    OK(moec_comm_threads(n, NULL, comms, &error));
    n_comms = n;
}

static void
setup(void)
{
    dir = test_directory();
    setenv("MOEC_CACHE", test_path(dir, "cache"), 1);
    st_begin(&file);
    uint32_t state = 12345;
    for (int i = 0; i < 40000; i++) { /* multiples of 1/8 in -4 .. 4: exact in bf16 and f8e4m3 */
        state = state * 1664525 + 1013904223;
        values[i] = (float)((int)(state >> 26) - 32) / 8;
    }
}

static void
teardown(void)
{
    close_comms();
    test_directory_remove(dir);
}

/* ---- the model: all kinds of weights that have experts, and one that has none ---------------------------------------
 */

typedef struct plan {
    moec_abi_weight weights[N_WEIGHTS];
    moec_abi_ep ep;
    moec_abi_model abi;
} plan;

static void
set(plan *p, int i, const char *path, moec_dtype dtype, uint32_t layout, uint32_t nr, int64_t a, int64_t b, int64_t c)
{
    p->weights[i] = (moec_abi_weight){.path = path,
                                      .role = "expert",
                                      .dtype = dtype,
                                      .layout = layout,
                                      .nr = nr,
                                      .rank = 1 + (b > 0) + (c > 0),
                                      .dims = {a, b, c}};
}

static void
set_scales(plan *p, int i, const char *path, const char *of, int64_t n, int64_t k)
{
    set(p, i, path, MOEC_F32, MOEC_ABI_ROWS, 0, E, n, k);
    p->weights[i].scale_of = of;
    p->weights[i].block[0] = p->weights[i].block[1] = 2;
}

static const moec_abi_model *
make_plan(plan *p, uint32_t n_ranks, uint32_t n_replicas, uint32_t round_robin, const char *rules)
{
    set(p, 0, "x.gate", MOEC_BF16, MOEC_ABI_PAIR_PANELS, 8, E, F, D);
    p->weights[0].path2 = "x.up";
    set(p, 1, "x.down", MOEC_F8E4M3, MOEC_ABI_PANELS, 4, E, 6, 5);
    set_scales(p, 2, "x.down_scales", "x.down", 3, 3);
    set(p, 3, "x.bias", MOEC_F32, MOEC_ABI_ROWS, 0, E, 3, 0);
    set(p, 4, "x.gain", MOEC_F32, MOEC_ABI_ROWS, 0, E, 0, 0);
    set(p, 5, "x.table", MOEC_I32, MOEC_ABI_ROWS, 0, E, 2, 0);
    set(p, 6, "x.narrow", MOEC_F8E4M3, MOEC_ABI_PANELS, 4, E, 3, 4);
    set_scales(p, 7, "x.narrow_scales", "x.narrow", 2, 2);
    set(p, 8, "router", MOEC_F32, MOEC_ABI_ROWS, 0, E, D, 0);
    for (int i = 0; i < 8 && n_ranks * n_replicas > 1; i++) {
        p->weights[i].dims[0] = E / n_ranks;
        p->weights[i].experts = E;
    }
    p->ep = (moec_abi_ep){
        .n_ranks = n_ranks, .n_replicas = n_replicas, .per_node = n_ranks, .round_robin = round_robin, .plan = ""};
    memcpy(&p->abi, fake_weights(p->weights, N_WEIGHTS, rules), sizeof p->abi);
    static const moec_abi_sym tokens[] = {{"T", 1, 64, 0, 0}};
    p->abi.syms = tokens;
    p->abi.n_syms = 1;
    if (n_ranks * n_replicas > 1) p->abi.ep = &p->ep;
    return &p->abi;
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------- */

static void
add_numbered(const char *name, int e, moec_dtype dtype, int rank, const int64_t *dims, const float *v)
{
    char full[48];
    snprintf(full, sizeof full, "e.%d.%s", e, name);
    st_add_f32(&file, full, dtype, rank, dims, v);
}

/* Every expert a tensor of its own. transposed: matrices the other way round. */
static void
write_experts(bool transposed, int n)
{
    int64_t gate[] = {F, D}, down[] = {6, 5}, narrow[] = {3, 4}, turn = transposed ? 1 : 0;
    for (int e = 0; e < n; e++) {
        const float *v = values + 500 * e;
        add_numbered("w1", e, MOEC_BF16, 2, DIMS(gate[turn], gate[1 - turn]), v);
        add_numbered("w3", e, MOEC_BF16, 2, DIMS(gate[turn], gate[1 - turn]), v + 50);
        add_numbered("w2", e, MOEC_F8E4M3, 2, down, v + 100);
        add_numbered("w2_scale_inv", e, MOEC_F32, 2, DIMS(3, 3), v + 150);
        add_numbered("b", e, MOEC_F32, 1, DIMS(3), v + 200);
        add_numbered("g", e, MOEC_F32, 0, NULL, v + 210);
        add_numbered("t", e, MOEC_I64, 1, DIMS(2), v + 220);
        add_numbered("n", e, MOEC_F32, 2, narrow, v + 250);
    }
    st_add_f32(&file, "router", MOEC_F32, 2, DIMS(E, D), values + 9000);
    st_write(&file, test_path(dir, "model.safetensors"));
}

static void
write_stacked(bool transposed)
{
    int64_t turn = transposed ? 1 : 0, fused[] = {2 * F, D}, down[] = {6, 5}, narrow[] = {3, 4};
    st_add_f32(&file, "w13", MOEC_BF16, 3, DIMS(E, fused[turn], fused[1 - turn]), values);
    st_add_f32(&file, "w2", MOEC_F8E4M3, 3, DIMS(E, down[turn], down[1 - turn]), values + 1000);
    st_add_f32(&file, "w2_scale_inv", MOEC_F32, 3, DIMS(E, 3, 3), values + 2000);
    st_add_f32(&file, "b", MOEC_F32, 2, DIMS(E, 3), values + 3000);
    st_add_f32(&file, "g", MOEC_BF16, 1, DIMS(E), values + 4000);
    st_add_f32(&file, "t", MOEC_I64, 2, DIMS(E, 2), values + 5000);
    st_add_f32(&file, "n", MOEC_F32, 3, DIMS(E, narrow[turn], narrow[1 - turn]), values + 6000);
    st_add_f32(&file, "router", MOEC_F32, 2, DIMS(E, D), values + 9000);
    st_write(&file, test_path(dir, "model.safetensors"));
}

#define SMALL_OF_EXPERTS "\"x.bias\" <- \"e.{e}.b\"; \"x.gain\" <- \"e.{e}.g\"; \"x.table\" <- \"e.{e}.t\"; "
#define SMALL_STACKED "\"x.bias\" <- \"b\"; \"x.gain\" <- \"g\"; \"x.table\" <- \"t\"; \"router\" <- \"router\""
static const char *const rules[] = {
    SMALL_OF_EXPERTS "\"x.gate\" <- \"e.{e}.w1\"; \"x.up\" <- \"e.{e}.w3\"; \"x.down\" <- \"e.{e}.w2\" | fp8(2, 2); "
                     "\"x.narrow\" <- \"e.{e}.n\" | cast | stack; \"router\" <- \"router\"",
    SMALL_OF_EXPERTS
    "\"x.gate\" <- \"e.{e}.w1\" | transpose(0, 1); \"x.up\" <- \"e.{e}.w3\" | stack | transpose(1, 2); "
    "\"x.down\" <- \"e.{e}.w2\" | fp8(2, 2); "
    "\"x.narrow\" <- \"e.{e}.n\" | cast | reshape(1, 3, 4) | concat; \"router\" <- \"router\"",
    SMALL_STACKED "; \"x.gate\", \"x.up\" <- \"w13\" | split(axis = 1); \"x.down\" <- \"w2\" | fp8(2, 2); "
                  "\"x.narrow\" <- \"n\" | cast",
    SMALL_STACKED "; \"x.gate\", \"x.up\" <- \"w13\" | transpose(1, 2) | unzip(axis = 1); "
                  "\"x.down\" <- \"w2\" | fp8(2, 2) | transpose(1, 2); \"x.narrow\" <- \"n\" | cast | transpose(1, 2)",
};
enum { N_RULES = sizeof rules / sizeof *rules };

static void
write_for(int rule)
{
    if (rule < 2)
        write_experts(rule == 1, E);
    else
        write_stacked(rule == 3);
}

/* ---- what each rank holds ---------------------------------------------------------------------------------------- */

typedef struct opened {
    moec_model *model;
    moec_weights *weights;
} opened;

static void
close_opened(opened *o)
{
    moec_weights_close(o->weights);
    moec_model_destroy(o->model);
}

static opened
open_rank(const moec_abi_model *abi, moec_comm *comm, bool synthetic)
{
    opened o;
    moec_weights_options options = {.in_memory = true, .comm = comm};
    OK(moec_model_from_abi(abi, &o.model, &error));
    if (synthetic)
        OK(moec_weights_synthetic(o.model, comm, &o.weights, &error));
    else
        OK(moec_weights_open(o.model, dir, &options, &o.weights, &error));
    return o;
}

static uint64_t
bytes_each(const moec_abi_weight *w)
{
    uint64_t n_bytes;
    ck_assert(mc_packed_bytes(w, &n_bytes));
    return n_bytes / (uint64_t)w->dims[0];
}

/* Expert by expert the bytes of one rank's; every expert is somewhere in each replica. */
static void
compare(const plan *p, const opened *whole, uint32_t rank, const opened *part)
{
    uint32_t n = p->ep.n_ranks, number = rank % n;
    for (int i = 0; i < N_WEIGHTS; i++) {
        const moec_abi_weight *w = &p->weights[i];
        const unsigned char *all = mc_weights_addresses(whole->weights)[i];
        const unsigned char *own = mc_weights_addresses(part->weights)[i];
        uint64_t each = bytes_each(w);
        int64_t slots = w->dims[0];
        ck_assert_int_eq(slots, i == 8 ? E : E / n);
        for (int64_t s = 0; s < slots; s++) {
            int64_t e = i == 8 ? s : p->ep.round_robin ? s * n + number : number * slots + s;
            if (w->experts) ck_assert_int_eq(mc_weights_expert(&p->abi, w, number, s), e);
            ck_assert_msg(memcmp(own + (uint64_t)s * each, all + (uint64_t)e * each, each) == 0,
                          "weight %d, expert %d on rank %u of %u", i, (int)e, rank, n);
        }
    }
}

static void
check_shares(int rule, bool synthetic)
{
    static const uint32_t meshes[][2] = {{2, 1}, {4, 1}, {2, 2}, {1, 2}, {1, 4}};
    plan one, p;
    opened whole = open_rank(make_plan(&one, 1, 1, 0, rules[rule]), NULL, synthetic);
    for (size_t m = 0; m < sizeof meshes / sizeof *meshes; m++)
        for (uint32_t round_robin = 0; round_robin < 2; round_robin++) {
            const moec_abi_model *abi = make_plan(&p, meshes[m][0], meshes[m][1], round_robin, rules[rule]);
            open_comms(meshes[m][0] * meshes[m][1]);
            for (uint32_t r = 0; r < n_comms; r++) {
                opened part = open_rank(abi, comms[r], synthetic);
                compare(&p, &whole, r, &part);
                close_opened(&part);
            }
        }
    close_opened(&whole);
}

START_TEST(ranks_hold_their_experts)
{
    write_for(_i);
    check_shares(_i, false);
}
END_TEST

START_TEST(made_up_numbers_belong_to_experts)
{
    check_shares(0, true);
}
END_TEST

/* ---- what is read, and what must be there ------------------------------------------------------------------------ */

/* A number that does not fit its type is noticed where it is read. */
START_TEST(others_experts_are_not_read)
{
    int64_t tables[E][2] = {{0}};
    plan p;
    moec_weights_options options = {.in_memory = true};
    moec_model *model;
    moec_weights *weights;
    tables[3][1] = INT64_MAX;
    write_stacked(false);
    size_t at = 0;
    while (memcmp(file.data + at, &(int64_t){(int64_t)values[5000]}, 8) != 0 ||
           memcmp(file.data + at + 8, &(int64_t){(int64_t)values[5001]}, 8) != 0)
        at++;
    memcpy(file.data + at, tables, sizeof tables);
    st_write(&file, test_path(dir, "model.safetensors"));
    for (uint32_t round_robin = 0; round_robin < 2; round_robin++) {
        OK(moec_model_from_abi(make_plan(&p, 4, 1, round_robin, rules[2]), &model, &error));
        open_comms(4);
        for (uint32_t r = 0; r < 4; r++) {
            options.comm = comms[r];
            moec_status s = moec_weights_open(model, dir, &options, &weights, &error);
            ck_assert_int_eq(s, r == (round_robin ? 3 : 1) ? MOEC_ERR_MISMATCH : MOEC_OK);
            moec_weights_close(weights);
        }
        moec_model_destroy(model);
    }
}
END_TEST

/* Binding is strict about all experts, on every rank. */
START_TEST(binding_knows_all_experts)
{
    static const struct {
        int n_experts;
        const char *says;
    } cases[] = {{7, "E0904: x.gate needs e = 0..7 of e.{e}.w1: found 0..6; 7 is missing"},
                 {9, "E0904: x.gate has 8 along axis 0, but the checkpoint has e.8.w1 too"}};
    plan p;
    moec_model *model;
    moec_weights *weights;
    moec_weights_options options = {.in_memory = true};
    write_experts(false, cases[_i].n_experts);
    OK(moec_model_from_abi(make_plan(&p, 4, 1, 0, rules[0]), &model, &error));
    open_comms(4);
    for (uint32_t r = 0; r < 4; r++) {
        options.comm = comms[r];
        REFUSED(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_MISMATCH, cases[_i].says);
    }
    moec_model_destroy(model);
}
END_TEST

START_TEST(shapes_are_said_of_all_experts)
{
    plan p;
    moec_model *model;
    moec_weights *weights;
    moec_weights_options options = {.in_memory = true};
    write_experts(true, E);
    OK(moec_model_from_abi(make_plan(&p, 2, 1, 0, rules[0]), &model, &error));
    open_comms(2);
    options.comm = comms[1];
    REFUSED(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_MISMATCH,
            "E0903: x.gate is [8, 5, 7]; tensor e.0.w1 is [7, 5]; a transpose would fit: | transpose(0, 1)");
    moec_model_destroy(model);
}
END_TEST

/* ---- groups that do not fit -------------------------------------------------------------------------------------- */

START_TEST(groups_must_fit)
{
    plan p;
    moec_model *model;
    moec_weights *weights;
    moec_weights_options options = {.in_memory = true};
    write_for(0);
    OK(moec_model_from_abi(make_plan(&p, 2, 2, 0, rules[0]), &model, &error));
    REFUSED(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_MISMATCH,
            "weights_only is planned for 4 ranks (ep = 2, dp = 2): start it with mpirun -np 4, or compile it with "
            "--mesh ep=1,dp=1");
    open_comms(2);
    options.comm = comms[1];
    REFUSED(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_MISMATCH,
            "is planned for 4 ranks (ep = 2, dp = 2), the group has 2: start it with mpirun -np 4, or compile it for a "
            "mesh of 2");
    REFUSED(moec_weights_synthetic(model, comms[0], &weights, &error), MOEC_ERR_MISMATCH, "the group has 2");
    moec_model_destroy(model);
    OK(moec_model_from_abi(make_plan(&p, 1, 1, 0, rules[0]), &model, &error));
    REFUSED(moec_weights_open(model, dir, &options, &weights, &error), MOEC_ERR_MISMATCH,
            "weights_only is planned for one rank, the group has 2: compile it with --mesh ep=2");
    open_comms(1);
    options.comm = comms[0];
    OK(moec_weights_open(model, dir, &options, &weights, &error));
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

START_TEST(tables_must_agree)
{
    static const int64_t experts[] = {-1, 9, INT64_MAX};
    plan p;
    moec_model *model;
    moec_weights *weights;
    open_comms(2);
    make_plan(&p, 2, 1, 0, rules[0]);
    p.weights[3].experts = experts[_i];
    OK(moec_model_from_abi(&p.abi, &model, &error));
    REFUSED(moec_weights_synthetic(model, comms[0], &weights, &error), MOEC_ERR_INTERNAL,
            "the experts of weights_only do not fit its ranks");
    moec_model_destroy(model);
}
END_TEST

/* ---- packed files ------------------------------------------------------------------------------------------------ */

START_TEST(packed_files_have_owners)
{
    plan p;
    moec_model *model;
    moec_weights *weights;
    char files[4][256], named[2][256];
    write_for(0);
    OK(moec_model_from_abi(make_plan(&p, 2, 2, 0, rules[0]), &model, &error));
    open_comms(4);
    for (uint32_t r = 0; r < 4; r++) {
        moec_weights_options options = {.comm = comms[r]};
        OK(moec_weights_open(model, dir, &options, &weights, &error));
        snprintf(files[r], sizeof files[r], "%s", moec_weights_file(weights));
        moec_weights_close(weights);
    }
    ck_assert_str_ne(files[0], files[1]);
    ck_assert_str_eq(files[0], files[2]); /* replicas share */
    ck_assert_str_eq(files[1], files[3]);
    for (uint32_t r = 0; r < 4; r++) { /* a packed file as a path of its own: only the right one */
        moec_weights_options options = {.comm = comms[r]};
        OK(moec_weights_open(model, files[r], &options, &weights, &error));
        moec_weights_close(weights);
        char says[64];
        snprintf(says, sizeof says, "holds the experts of number %u of 2, this rank is number %u", 1 - r % 2, r % 2);
        REFUSED(moec_weights_open(model, files[1 - r % 2], &options, &weights, &error), MOEC_ERR_MISMATCH, says);
    }
    for (uint32_t r = 0; r < 2; r++) { /* files that the caller names have the number behind */
        moec_weights_options options = {.comm = comms[r], .packed_path = test_path(dir, "named")};
        OK(moec_weights_open(model, dir, &options, &weights, &error));
        snprintf(named[r], sizeof named[r], "%s.%u-of-2", test_path(dir, "named"), r);
        ck_assert_str_eq(moec_weights_file(weights), named[r]);
        moec_weights_close(weights);
        OK(moec_weights_open(model, test_path(dir, "named"), &options, &weights, &error));
        ck_assert_str_eq(moec_weights_file(weights), named[r]);
        moec_weights_close(weights);
    }
    moec_model_destroy(model);
    OK(moec_model_from_abi(make_plan(&p, 2, 2, 1, rules[0]), &model, &error)); /* the same experts in another order */
    moec_weights_options options = {.comm = comms[0]};
    REFUSED(moec_weights_open(model, files[0], &options, &weights, &error), MOEC_ERR_MISMATCH,
            "shared out in another way");
    OK(moec_weights_open(model, dir, &options, &weights, &error));
    ck_assert_str_ne(moec_weights_file(weights), files[0]);
    moec_weights_close(weights);
    moec_model_destroy(model);
}
END_TEST

typedef struct opener {
    const moec_model *model;
    moec_comm *comm;
    char file[256];
    moec_error error;
} opener;

static void *
open_in_thread(void *argument)
{
    opener *o = argument;
    moec_weights *weights;
    moec_weights_options options = {.comm = o->comm, .n_threads = 1};
    if (moec_weights_open(o->model, dir, &options, &weights, &o->error) != MOEC_OK) return argument;
    snprintf(o->file, sizeof o->file, "%s", moec_weights_file(weights));
    moec_weights_close(weights);
    return NULL;
}

/* All at once, into an empty cache: whole files, one for each number, and nothing else. */
START_TEST(ranks_open_together)
{
    plan p;
    moec_model *model;
    pthread_t threads[MAX_RANKS];
    opener openers[MAX_RANKS] = {0};
    write_for(2);
    OK(moec_model_from_abi(make_plan(&p, 2, 2, 0, rules[2]), &model, &error));
    open_comms(4);
    for (int i = 0; i < 4; i++) {
        openers[i].model = model;
        openers[i].comm = comms[i];
        ck_assert_int_eq(pthread_create(&threads[i], NULL, open_in_thread, &openers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed;
        ck_assert_int_eq(pthread_join(threads[i], &failed), 0);
        ck_assert_msg(!failed, "%s", openers[i].error.text);
        ck_assert_str_ne(openers[i].file, "");
    }
    ck_assert_str_eq(openers[0].file, openers[2].file);
    char command[600];
    snprintf(command, sizeof command, "test $(ls %s/weights | wc -l) = 2", test_path(dir, "cache"));
    ck_assert_int_eq(system(command), 0);
    moec_model_destroy(model);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("weights_shards");
    TCase *t = tcase_create("weights_shards");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, ranks_hold_their_experts, 0, N_RULES);
    tcase_add_test(t, made_up_numbers_belong_to_experts);
    tcase_add_test(t, others_experts_are_not_read);
    tcase_add_loop_test(t, binding_knows_all_experts, 0, 2);
    tcase_add_test(t, shapes_are_said_of_all_experts);
    tcase_add_test(t, groups_must_fit);
    tcase_add_loop_test(t, tables_must_agree, 0, 3);
    tcase_add_test(t, packed_files_have_owners);
    tcase_add_test(t, ranks_open_together);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
