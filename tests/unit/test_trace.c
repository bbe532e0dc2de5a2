/* Traces of routers: what is written is read, lines of JSON are read, and no damaged, cut or foreign file is believed.
 */
#define _GNU_SOURCE
#include "runtime/placement.h"
#include "runtime/trace.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static mc_fault error;
static char path[64];

#define OK(expression) ck_assert_msg((expression) == MOEC_OK, "%s", error.text)
#define SAYS(part) ck_assert_msg(strstr(error.text, (part)) != NULL, "\"%s\" does not say \"%s\"", error.text, (part))

static const mc_trace_layer layers[] = {{"layers.1.mlp", 8, 2, false}, {"layers.2.mlp", 5, 3, false}};
static const mc_trace_info info = {"small", 77, layers, 2};

static void
setup(void)
{
    snprintf(path, sizeof path, "/tmp/moec-trace-XXXXXX");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

static void
teardown(void)
{
    unlink(path);
}

static void
write_small(const mc_trace_info *about)
{
    mc_trace_writer *w;
    OK(mc_trace_create(path, about, &w, &error));
    OK(mc_trace_add(w, &(mc_trace_record){3, 0, 0, 2, (int32_t[]){7, 0, -1, 2}}, &error));
    OK(mc_trace_add(w, &(mc_trace_record){3, 1, 1, 1, (int32_t[]){4, 1, 0}}, &error));
    OK(mc_trace_add(w, &(mc_trace_record){4, 0, 0, 0, NULL}, &error));
    OK(mc_trace_commit(w, &error));
}

static void
expect_record(mc_trace *t, uint64_t step, uint32_t layer, uint32_t rank, uint32_t n, uint32_t top_k, const int32_t *ids)
{
    mc_trace_record r;
    ck_assert(mc_trace_next(t, &r));
    ck_assert_uint_eq(r.step, step);
    ck_assert_uint_eq(r.layer, layer);
    ck_assert_uint_eq(r.rank, rank);
    ck_assert_uint_eq(r.n_tokens, n);
    if (n) ck_assert_mem_eq(r.ids, ids, sizeof *ids * n * top_k);
}

START_TEST(round_trip)
{
    write_small(&info);
    mc_trace *t;
    OK(mc_trace_open(path, &t, &error));
    OK(mc_trace_check(t, &info, &error));
    ck_assert_str_eq(mc_trace_about(t)->model, "small");
    ck_assert_str_eq(mc_trace_about(t)->layers[1].name, "layers.2.mlp");
    ck_assert_uint_eq(mc_trace_about(t)->hash, 77);
    ck_assert_uint_eq(mc_trace_n_records(t), 3);
    ck_assert_uint_eq(mc_trace_n_tokens(t, 0), 2);
    for (int pass = 0; pass < 2; pass++, mc_trace_rewind(t)) {
        expect_record(t, 3, 0, 0, 2, 2, (int32_t[]){7, 0, -1, 2});
        expect_record(t, 3, 1, 1, 1, 3, (int32_t[]){4, 1, 0});
        expect_record(t, 4, 0, 0, 0, 2, NULL);
        mc_trace_record r;
        ck_assert(!mc_trace_next(t, &r));
    }
    float loads[8] = {0};
    mc_trace_loads(t, 0, loads);
    ck_assert_mem_eq(loads, ((float[]){1, 0, 1, 0, 0, 0, 0, 1}), sizeof loads);
    mc_trace_close(t);
}
END_TEST

START_TEST(many_experts)
{
    mc_trace_layer wide = {"w", 70000, 1, false};
    mc_trace_info about = {"wide", 0, &wide, 1};
    mc_trace_writer *w;
    OK(mc_trace_create(path, &about, &w, &error));
    OK(mc_trace_add(w, &(mc_trace_record){0, 0, 0, 3, (int32_t[]){69999, -1, 65535}}, &error));
    OK(mc_trace_commit(w, &error));
    mc_trace *t;
    OK(mc_trace_open(path, &t, &error));
    expect_record(t, 0, 0, 0, 3, 1, (int32_t[]){69999, -1, 65535});
    mc_trace_close(t);
}
END_TEST

START_TEST(writer_refuses)
{
    mc_trace_writer *w;
    mc_trace_layer bad = {"x", 0, 1, false};
    ck_assert_int_eq(mc_trace_create(path, &(mc_trace_info){"m", 0, &bad, 1}, &w, &error), MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(mc_trace_create(path, &(mc_trace_info){"m", 0, &bad, 0}, &w, &error), MOEC_ERR_ARGUMENT);
    OK(mc_trace_create(path, &info, &w, &error));
    ck_assert_int_eq(mc_trace_add(w, &(mc_trace_record){.layer = 2}, &error), MOEC_ERR_ARGUMENT);
    ck_assert_int_eq(mc_trace_add(w, &(mc_trace_record){0, 0, 0, 1, (int32_t[]){8, 0}}, &error), MOEC_ERR_RANGE);
    ck_assert_int_eq(mc_trace_add(w, &(mc_trace_record){0, 0, 0, 1, (int32_t[]){0, -2}}, &error), MOEC_ERR_RANGE);
    mc_trace_abandon(w);
    mc_trace *t;
    ck_assert_int_eq(mc_trace_open(path, &t, &error), MOEC_ERR_SYNTAX); /* what setup made: empty */
    ck_assert_int_eq(mc_trace_open("/nonexistent/trace", &t, &error), MOEC_ERR_NOT_FOUND);
}
END_TEST

/* ---- damage ----------------------------------------------------------------------------------------------------- */

static void
load(mc_buf *bytes)
{
    OK(mc_file_read(path, 1 << 20, bytes, &error));
}

START_TEST(every_cut_is_noticed)
{
    write_small(&info);
    mc_buf bytes = {0};
    load(&bytes);
    mc_trace *t;
    for (size_t n = 0; n < bytes.len; n++)
        ck_assert_int_eq(mc_trace_read(bytes.data, n, "cut", &t, &error), MOEC_ERR_SYNTAX);
    mc_buf_putc(&bytes, 0);
    ck_assert_int_eq(mc_trace_read(bytes.data, bytes.len, "long", &t, &error), MOEC_ERR_SYNTAX);
    SAYS("bytes after its end");
    mc_buf_fini(&bytes);
}
END_TEST

START_TEST(every_flipped_bit_is_noticed)
{
    write_small(&info);
    mc_buf bytes = {0};
    load(&bytes);
    for (size_t bit = 0; bit < bytes.len * 8; bit++) {
        bytes.data[bit / 8] ^= (char)(1 << bit % 8);
        mc_trace *t;
        moec_status s = mc_trace_read(bytes.data, bytes.len, "flipped", &t, &error);
        ck_assert_msg(s == MOEC_ERR_SYNTAX || s == MOEC_ERR_MISMATCH, "bit %zu: %s", bit, moec_status_name(s));
        bytes.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    mc_buf_fini(&bytes);
}
END_TEST

START_TEST(messages_say_what_to_do)
{
    write_small(&info);
    mc_buf bytes = {0};
    load(&bytes);
    mc_trace *t;
    bytes.data[8] = 2;
    ck_assert_int_eq(mc_trace_read(bytes.data, bytes.len, "x.trace", &t, &error), MOEC_ERR_MISMATCH);
    SAYS("x.trace is a trace of version 2, this moec reads version 1; record it again");
    bytes.data[8] = 1;
    ck_assert_int_eq(mc_trace_read(bytes.data, bytes.len - 24, "x.trace", &t, &error), MOEC_ERR_SYNTAX);
    SAYS("it was cut, or its recording did not end; record it again");
    ck_assert_int_eq(mc_trace_read("hello, world", 12, "x.trace", &t, &error), MOEC_ERR_SYNTAX);
    SAYS("moec route");
    mc_buf_fini(&bytes);
}
END_TEST

START_TEST(other_models)
{
    write_small(&info);
    mc_trace *t;
    OK(mc_trace_open(path, &t, &error));
    mc_trace_info other = info;
    other.hash = 78;
    ck_assert_int_eq(mc_trace_check(t, &other, &error), MOEC_ERR_MISMATCH);
    SAYS("another version of small");
    other.hash = 0;
    OK(mc_trace_check(t, &other, &error));
    other.n_layers = 1;
    ck_assert_int_eq(mc_trace_check(t, &other, &error), MOEC_ERR_MISMATCH);
    SAYS("2 layers of experts; small has 1: record one of this model with moec route");
    mc_trace_layer more[] = {layers[0], {"layers.2.mlp", 6, 3, false}};
    other = (mc_trace_info){"large", 0, more, 2};
    ck_assert_int_eq(mc_trace_check(t, &other, &error), MOEC_ERR_MISMATCH);
    SAYS("layers.2.mlp has 5 experts, 3 for a token; layers.2.mlp of large has 6, 3");
    mc_trace_close(t);
}
END_TEST

/* ---- lines of JSON ---------------------------------------------------------------------------------------------- */

static const char lines[] =
    "{\"step\": 5, \"layer\": 4, \"rank\": 1, \"num_tokens\": 2, \"topk\": 2, \"top_indices\": [[3, 1], [0, 6]]}\n"
    "\n"
    "{\"step\": 5, \"layer\": 2, \"num_tokens\": 1, \"topk\": 1, \"top_indices\": [9], \"more\": true}\r\n"
    "{\"step\": 6, \"layer\": 4, \"rank\": 0, \"num_tokens\": 2, \"topk\": 2, \"top_indices\": [1, 2, -1, 0]}";

START_TEST(reads_lines_of_json)
{
    mc_trace *t;
    OK(mc_trace_read(lines, sizeof lines - 1, "x.jsonl", &t, &error));
    const mc_trace_info *about = mc_trace_about(t);
    ck_assert_uint_eq(about->n_layers, 2);
    ck_assert_str_eq(about->layers[0].name, "2");
    ck_assert_uint_eq(about->layers[0].n_experts, 10);
    ck_assert_uint_eq(about->layers[1].n_experts, 7);
    expect_record(t, 5, 1, 1, 2, 2, (int32_t[]){3, 1, 0, 6});
    expect_record(t, 5, 0, 0, 1, 1, (int32_t[]){9});
    expect_record(t, 6, 1, 0, 2, 2, (int32_t[]){1, 2, -1, 0});
    mc_trace_layer of_model[] = {{"a", 16, 1, false}, {"b", 16, 2, false}};
    OK(mc_trace_check(t, &(mc_trace_info){"m", 5, of_model, 2}, &error));
    of_model[0].n_experts = 9;
    ck_assert_int_eq(mc_trace_check(t, &(mc_trace_info){"m", 5, of_model, 2}, &error), MOEC_ERR_MISMATCH);
    mc_trace_close(t);
}
END_TEST

static const struct {
    const char *text, *says;
} bad_lines[] = {
    {"{", "line 1"},
    {"{} []", "line 1"},
    {"{}", "step is missing"},
    {"{\"step\":-1}", "step"},
    {"{\"step\":1}", "layer is missing"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1.5}", "num_tokens"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":0}", "topk"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":1}", "top_indices"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":1,\"rank\":\"x\"}", "rank"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":2,\"topk\":1,\"top_indices\":[[1]]}", "num_tokens lists"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":2,\"top_indices\":[[1]]}", "topk numbers"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":2000000000,\"topk\":4096,\"top_indices\":[[1]]}", "num_tokens lists"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":1,\"top_indices\":[[\"a\"]]}", "number of an expert"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":1,\"top_indices\":[[9999999]]}", "number of an expert"},
    {"{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":1,\"top_indices\":[[1]]}\n"
     "{\"step\":1,\"layer\":1,\"num_tokens\":1,\"topk\":2,\"top_indices\":[[1,2]]}",
     "topk of layer 1 is 1 in one record and 2 in another"},
};

START_TEST(refuses_bad_lines)
{
    mc_trace *t;
    moec_status s = mc_trace_read(bad_lines[_i].text, strlen(bad_lines[_i].text), "x.jsonl", &t, &error);
    ck_assert_int_eq(s, MOEC_ERR_SYNTAX);
    SAYS(bad_lines[_i].says);
    SAYS("x.jsonl");
}
END_TEST

/* ---- placements ------------------------------------------------------------------------------------------------- */

static const int32_t first_slots[] = {0, 3, 1, -1, 2, 0}, second_slots[] = {1, 0};
static const mc_placement_layer placed[] = {{"layers.0", 4, 6, first_slots}, {"layers.1", 2, 2, second_slots}};
static const mc_placement placement = {"small", 0xFEDCBA9876543210, 2, 1, placed, 2};

START_TEST(placements_are_read_again)
{
    mc_placement *p;
    OK(mc_placement_write(path, &placement, &error));
    OK(mc_placement_open(path, &p, &error));
    ck_assert_str_eq(p->model, "small");
    ck_assert(p->hash == placement.hash);
    ck_assert_uint_eq(p->n_layers, 2);
    ck_assert_str_eq(p->layers[1].name, "layers.1");
    ck_assert_uint_eq(p->layers[0].n_slots, 6);
    ck_assert_mem_eq(p->layers[0].slots, first_slots, sizeof first_slots);
    uint32_t experts[] = {4, 2};
    OK(mc_placement_check(p, "small", 0, 2, experts, 2, &error));
    ck_assert_int_eq(mc_placement_check(p, "large", 0, 2, experts, 2, &error), MOEC_ERR_MISMATCH);
    SAYS("of the model small, not of large: make one with moec plan --place");
    ck_assert_int_eq(mc_placement_check(p, "small", 5, 2, experts, 2, &error), MOEC_ERR_MISMATCH);
    ck_assert_int_eq(mc_placement_check(p, "small", 0, 4, experts, 2, &error), MOEC_ERR_MISMATCH);
    SAYS("for 2 ranks, not for 4");
    ck_assert_int_eq(mc_placement_check(p, "small", 0, 2, experts, 1, &error), MOEC_ERR_MISMATCH);
    experts[1] = 3;
    ck_assert_int_eq(mc_placement_check(p, "small", 0, 2, experts, 2, &error), MOEC_ERR_MISMATCH);
    SAYS("layers.1 of the placement has 2 experts, of small 3");
    mc_placement_close(p);
    ck_assert_int_eq(mc_placement_open("/nonexistent/p", &p, &error), MOEC_ERR_NOT_FOUND);
}
END_TEST

#define HEAD "{\"format\":\"moec placement\",\"version\":1,\"model\":\"m\",\"hash\":\"0000000000000000\",\"ranks\":2,"

static const struct {
    const char *text;
    moec_status status;
    const char *says;
} bad_placements[] = {
    {"", MOEC_ERR_SYNTAX, "x.json"},
    {"[]", MOEC_ERR_SYNTAX, "format"},
    {"{\"format\":\"moec placement\",\"version\":2}", MOEC_ERR_MISMATCH, "this moec reads version 1"},
    {"{\"format\":\"moec placement\",\"version\":1}", MOEC_ERR_SYNTAX, "names no model"},
    {"{\"format\":\"moec placement\",\"version\":1,\"model\":\"m\",\"hash\":\"x\"}", MOEC_ERR_SYNTAX, "hash"},
    {HEAD "\"nodes\":3}", MOEC_ERR_SYNTAX, "nodes do not divide"},
    {HEAD "\"nodes\":1}", MOEC_ERR_SYNTAX, "no layers"},
    {HEAD "\"nodes\":1,\"layers\":[7]}", MOEC_ERR_SYNTAX, "no name"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\"}]}", MOEC_ERR_SYNTAX, "number of experts"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\",\"experts\":2,\"slots\":[]}]}", MOEC_ERR_SYNTAX, "no slots"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\",\"experts\":2,\"slots\":[0,1,0]}]}", MOEC_ERR_SYNTAX, "as many"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\",\"experts\":2,\"slots\":[0,2]}]}", MOEC_ERR_SYNTAX, "that is none"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\",\"experts\":2,\"slots\":[0,1.5]}]}", MOEC_ERR_SYNTAX,
     "that is none"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\",\"experts\":2,\"slots\":[0,-1]}]}", MOEC_ERR_SYNTAX, "in no slot"},
    {HEAD "\"nodes\":1,\"layers\":[{\"name\":\"a\",\"experts\":9999999,\"slots\":[0,-1]}]}", MOEC_ERR_SYNTAX,
     "number of experts"},
};

START_TEST(refuses_bad_placements)
{
    mc_placement *p;
    moec_status s = mc_placement_read(bad_placements[_i].text, strlen(bad_placements[_i].text), "x.json", &p, &error);
    ck_assert_int_eq(s, bad_placements[_i].status);
    SAYS(bad_placements[_i].says);
    ck_assert_ptr_null(p);
}
END_TEST

START_TEST(writes_no_bad_placement)
{
    int32_t bad[] = {0, 0};
    mc_placement_layer l = {"a", 2, 2, bad};
    mc_placement p = {"m", 0, 2, 1, &l, 1};
    ck_assert_int_eq(mc_placement_write(path, &p, &error), MOEC_ERR_ARGUMENT);
    SAYS("an expert is in no slot");
    bad[1] = 1;
    OK(mc_placement_write(path, &p, &error));
    p.n_nodes = 3;
    ck_assert_int_eq(mc_placement_write(path, &p, &error), MOEC_ERR_ARGUMENT);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("trace");
    TCase *tc = tcase_create("trace");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, round_trip);
    tcase_add_test(tc, many_experts);
    tcase_add_test(tc, writer_refuses);
    tcase_add_test(tc, every_cut_is_noticed);
    tcase_add_test(tc, every_flipped_bit_is_noticed);
    tcase_add_test(tc, messages_say_what_to_do);
    tcase_add_test(tc, other_models);
    tcase_add_test(tc, reads_lines_of_json);
    tcase_add_loop_test(tc, refuses_bad_lines, 0, sizeof bad_lines / sizeof *bad_lines);
    tcase_add_test(tc, placements_are_read_again);
    tcase_add_loop_test(tc, refuses_bad_placements, 0, sizeof bad_placements / sizeof *bad_placements);
    tcase_add_test(tc, writes_no_bad_placement);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
