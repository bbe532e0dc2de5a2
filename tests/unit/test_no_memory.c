/* Memory that runs out is a status: the n-th allocation fails, for every n until everything succeeds. The whole way
 * from a checkpoint to a drawn token must come back with an error and leave nothing half made. */
#define _GNU_SOURCE
#include "moec/runtime.h"
#include "runtime/comm/comm.h"
#include "tests/support/fake_model.h"
#include "tests/support/st_file.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define INTERPOSE 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define INTERPOSE 0
#endif
#endif
#ifndef INTERPOSE
#define INTERPOSE 1 /* sanitizers have allocators of their own, which cannot be wrapped like this */
#endif

static long countdown = -1; /* allocations until one fails; negative: none fails */
static _Atomic long live;   /* allocations not yet freed */

#if INTERPOSE
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

extern void __libc_free(void *p);

/* Visible, or the C library's own calls would go elsewhere and the count be wrong. */
static bool
fails(void)
{
    return countdown >= 0 && countdown-- == 0;
}

static void *
counted(void *p)
{
    if (p) live++;
    return p;
}

MOEC_API void *
malloc(size_t n)
{
    return fails() ? NULL : counted(__libc_malloc(n));
}

MOEC_API void *
calloc(size_t n, size_t size)
{
    return fails() ? NULL : counted(__libc_calloc(n, size));
}

MOEC_API void *
realloc(void *p, size_t n)
{
    if (fails()) return NULL;
    void *q = __libc_realloc(p, n);
    if (q && !p) live++;
    return q;
}

MOEC_API void *
aligned_alloc(size_t align, size_t n)
{
    return fails() ? NULL : counted(__libc_memalign(align, n));
}

MOEC_API void
free(void *p)
{
    if (p) live--;
    __libc_free(p);
}
#endif

static const char *dir;

static void
setup(void)
{
    static st_file f;
    int64_t one[] = {64};
    dir = test_directory();
    st_begin(&f);
    for (int e = 0; e < 4; e++)
        st_add(&f, e == 0 ? "e.0" : e == 1 ? "e.1" : e == 2 ? "e.2" : "e.3", MOEC_BF16, 1, one, NULL);
    st_write(&f, test_path(dir, "model.safetensors"));
}

static void
teardown(void)
{
    countdown = -1;
    test_directory_remove(dir);
}

static moec_status
everything(const moec_abi_model *abi, const char *packed, char *text)
{
    moec_weights_options options = {
        .packed_path = packed, .in_memory = !packed, .n_threads = 1, .allow_narrowing = true};
    moec_session_options sizes = {.n_threads = 1, .max_batch = 2, .max_new = 2};
    moec_sampling warm = {.temperature = 1};
    moec_model *model = NULL;
    moec_weights *weights = NULL;
    moec_session *session = NULL;
    moec_error error = {{0}};
    int32_t ids[6] = {1, 2, 3, 4, 5, 6};
    moec_status s = moec_model_from_abi(abi, &model, &error);
    if (s == MOEC_OK) s = moec_weights_open(model, dir, &options, &weights, &error);
    if (s == MOEC_OK) s = moec_session_create(model, weights, &sizes, &session, &error);
    if (s == MOEC_OK) s = moec_session_feed(session, ids, 2, 3, NULL, &error);
    if (s == MOEC_OK) s = moec_sample(session, 1, &warm, 0, ids, &error);
    strcpy(text, error.text);
    moec_session_destroy(session);
    moec_weights_close(weights);
    moec_model_destroy(model);
    return s;
}

START_TEST(every_allocation_may_fail)
{
    static const moec_abi_weight bias[] = {
        {.path = "bias", .role = "head", .dtype = MOEC_F32, .rank = 1, .dims = {256}}};
    moec_abi_model abi = *fake_counter();
    char text[MOEC_ERROR_BYTES], packed[512];
    strcpy(packed, test_path(dir, "packed"));
    abi.weights = bias;
    abi.rules = "\"bias\" <- \"e.{e}\" | concat";
    ck_assert_int_eq(everything(&abi, NULL, text), MOEC_OK); /* what the C library keeps, it has now */
    for (long n = 0;; n++) {
        ck_assert_int_lt(n, 2000);
        long before = live;
        countdown = n;
        moec_status s = everything(&abi, _i ? packed : NULL, text);
        bool all = countdown >= 0;
        countdown = -1;
        ck_assert_msg(live == before, "allocation %ld: %ld are not freed", n, live - before);
        if (all || !INTERPOSE) {
            ck_assert_msg(s == MOEC_OK, "%s", text);
            ck_assert_int_gt(n, INTERPOSE ? 20 : -1);
            return;
        }
        /* The JSON reader sometimes takes a failed allocation for a malformed text. */
        ck_assert_msg(s == MOEC_ERR_MEMORY || s == MOEC_OK || (s == MOEC_ERR_SYNTAX && strstr(text, ": byte")),
                      "allocation %ld: %d %s", n, s, text);
        if (s == MOEC_ERR_MEMORY) ck_assert_msg(strstr(text, "memory") != NULL, "allocation %ld: %s", n, text);
        if (_i) unlink(packed);
    }
}
END_TEST

/* Two ranks played by one thread (a begin waits for nobody), and a group of one. What they exchange needs no memory. */
static moec_status
groups(moec_error *error)
{
    static const uint32_t both[2] = {0, 1};
    moec_comm *comms[3] = {NULL};
    int data[2][4] = {{1, 2}, {3, 4}};
    moec_comm_options local = {.backend = "local"};
    moec_status s = moec_comm_threads(2, NULL, comms, error);
    if (s == MOEC_OK) s = moec_comm_open(&local, &comms[2], error);
    if (s == MOEC_OK) {
        mc_comm_request *requests[2];
        mc_fault fault = {{0}};
        long was = countdown;
        int all = 0;
        moec_status went = MOEC_OK;
        countdown = 0;
        for (int r = 0; r < 2 && went == MOEC_OK; r++) {
            mc_comm_run send[2] = {{&data[r][0], 4}, {&data[r][1], 4}}, recv[2] = {{&data[r][2], 4}, {&data[r][3], 4}};
            mc_exchange x = {"rows", 2, both, send, recv};
            went = mc_comm_begin(comms[r], &x, &requests[r], &fault);
        }
        for (int r = 0; r < 2 && went == MOEC_OK; r++) went = mc_comm_wait(comms[r], requests[r], &fault);
        if (went == MOEC_OK) went = mc_comm_records(comms[2], "counts", 1, both, data, &all, 4, &fault);
        long left = countdown; /* Check allocates, too */
        countdown = -1;
        ck_assert_msg(went == MOEC_OK, "%s", fault.text);
        ck_assert_int_eq(left, 0);
        ck_assert(data[0][2] == 1 && data[0][3] == 3 && data[1][2] == 2 && data[1][3] == 4 && all == 1);
        countdown = was;
    }
    for (int i = 0; i < 3; i++) moec_comm_close(comms[i]);
    return s;
}

START_TEST(every_allocation_of_a_group)
{
    moec_error error = {{0}};
    ck_assert_int_eq(groups(&error), MOEC_OK);
    for (long n = 0;; n++) {
        long before = live;
        countdown = n;
        moec_status s = groups(&error);
        bool all = countdown >= 0;
        countdown = -1;
        ck_assert_msg(live == before, "allocation %ld: %ld are not freed", n, live - before);
        if (all || !INTERPOSE) {
            ck_assert_int_eq(s, MOEC_OK);
            ck_assert_int_gt(n, INTERPOSE ? 20 : -1);
            return;
        }
        ck_assert_msg(s == MOEC_ERR_MEMORY && strstr(error.text, "memory"), "allocation %ld: %d %s", n, s, error.text);
    }
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("no_memory");
    TCase *t = tcase_create("no_memory");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, every_allocation_may_fail, 0, 2);
    tcase_add_test(t, every_allocation_of_a_group);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
