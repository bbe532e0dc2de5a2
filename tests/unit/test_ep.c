/* Rows of tokens between ranks: random dispatches on up to 64 ranks that are threads, against a plain statement of what
 * every rank must end up with. MOEC_EP_CASES says how many cases (default 1200). */
#define _GNU_SOURCE
#include "tests/unit/ep_station.h"

#include <check.h>

typedef struct batch {
    ep_case *cases;
    ep_facts *facts;
    uint32_t n;
} batch;

static void *
run_batch(void *argument)
{
    rig_rank *rank = argument;
    const batch *b = rank->shared;
    for (uint32_t i = 0; i < b->n && run_case(rank, &b->cases[i], &b->facts[i]); i++) continue;
    return NULL;
}

enum { BATCH = 20 };

static void
run_cases(uint64_t first, uint32_t n, uint32_t n_ranks, uint64_t shuffle)
{
    ep_case cases[BATCH];
    ep_facts facts[BATCH];
    batch b = {cases, facts, n};
    for (uint32_t i = 0; i < n; i++) {
        rig_draw_case(&cases[i], first + i, n_ranks);
        facts[i] = rig_facts(&cases[i]);
    }
    const char *text = rig_run(n_ranks, run_batch, &b, shuffle, 20);
    ck_assert_msg(!text, "cases from %llu: %s", (unsigned long long)first, text);
    for (uint32_t i = 0; i < n; i++) {
        free(facts[i].all);
        rig_free_case(&cases[i]);
    }
}

static uint32_t
draw_ranks(uint64_t number)
{
    uint64_t s = rig_mix(number ^ 99);
    uint32_t kind = rig_draw(&s, 20);
    if (kind == 0) return 1 + rig_draw(&s, 64);
    static const uint32_t composed[] = {4, 6, 8, 9, 12, 16};
    return kind < 8 ? composed[rig_draw(&s, 6)] : 1 + rig_draw(&s, kind < 10 ? 20 : 8);
}

START_TEST(random_cases_give_what_they_must)
{
    const char *text = getenv("MOEC_EP_CASES");
    uint64_t n = text ? strtoull(text, NULL, 10) : 1200;
    for (uint64_t i = 0; i < n; i += BATCH)
        run_cases(1000 * i, n - i < BATCH ? (uint32_t)(n - i) : BATCH, draw_ranks(i), 0);
}
END_TEST

START_TEST(timing_changes_nothing)
{
    for (uint64_t i = 0; i < 50; i++) run_cases(77, 3, 12, 1 + i);
}
END_TEST

int
main(void)
{
    for (uint32_t r = 0; r < MC_COMM_MAX_RANKS; r++) everyone[r] = r;
    Suite *s = suite_create("ep");
    TCase *t = tcase_create("ep");
    tcase_set_timeout(t, 3600);
    tcase_add_test(t, random_cases_give_what_they_must);
    tcase_add_test(t, timing_changes_nothing);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
