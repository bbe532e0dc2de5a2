/* Gathers, merges and sums over groups of ranks that are threads, against the plain loops that say what they are. */
#define _GNU_SOURCE
#include "tests/unit/ep_rig.h"

#include <check.h>

#define WANT(condition, ...)                                                                                           \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            rig_fail(rank, __VA_ARGS__);                                                                               \
            mc_comm_abort(rank->comm, "a check failed");                                                               \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

/* Ranks first, first + step, ..: groups like the replicas of a number. */
typedef struct job {
    uint64_t seed;
    uint32_t step;
    int64_t row_bytes, n_slots, limit; /* limit: 0: exactly enough */
} job;

typedef struct member {
    mc_ep_group group;
    uint32_t ranks[64];
    mc_fault fault;
} member;

static void
join(const rig_rank *rank, uint32_t size, uint32_t step, member *m)
{
    m->group = (mc_ep_group){m->ranks, 0, rank->me / step};
    for (uint32_t r = rank->me % step; r < size; r += step) m->ranks[m->group.n_ranks++] = r;
}

static uint32_t
drawn(uint64_t seed, uint32_t rank, uint64_t i, uint32_t below)
{
    uint64_t s = rig_mix(seed ^ (uint64_t)rank << 40) ^ i;
    return rig_draw(&s, below);
}

static unsigned char
byte_of(uint64_t seed, uint32_t rank, uint64_t i)
{
    return (unsigned char)drawn(seed + 5, rank, i, 256);
}

/* ---- gather ------------------------------------------------------------------------------------------------------ */

static int64_t
share_of(const job *j, uint32_t rank)
{
    return drawn(j->seed, rank, 1, 4) == 0 ? 0 : drawn(j->seed, rank, 2, 50);
}

static void
check_gather(rig_rank *rank, const job *j, member *m, int64_t short_of)
{
    int64_t total = 0, own = 0, n = share_of(j, rank->me), got, got_own;
    for (uint32_t i = 0; i < m->group.n_ranks; i++) {
        if (i == m->group.me) own = total;
        total += share_of(j, m->ranks[i]);
    }
    size_t bytes = (size_t)j->row_bytes;
    unsigned char *x = malloc((size_t)n * bytes + 1), *out = malloc((size_t)total * bytes + 1);
    for (size_t i = 0; i < (size_t)n * bytes; i++) x[i] = byte_of(j->seed, rank->me, i);
    int64_t limit = total - short_of;
    moec_status status = mc_ep_gather(rank->comm, &m->group, x, n, j->row_bytes, limit, out, &got, &got_own, &m->fault);
    bool same = status == MOEC_OK;
    for (uint32_t i = 0, at = 0; same && i < m->group.n_ranks; i++)
        for (size_t b = 0; b < (size_t)share_of(j, m->ranks[i]) * bytes; b++)
            same = same && out[at++] == byte_of(j->seed, m->ranks[i], b);
    free(x);
    free(out);
    if (short_of > 0) {
        WANT(status != MOEC_OK && m->fault.text[0], "no error where %lld do not fit", (long long)total);
        return;
    }
    WANT(status == MOEC_OK, "gather: %s", m->fault.text);
    WANT(got == total && got_own == own && same, "gather gives %lld at %lld", (long long)got, (long long)got_own);
}

/* ---- merge ------------------------------------------------------------------------------------------------------- */

static int32_t
rows_of(const job *j, uint32_t rank, int64_t slot)
{
    return drawn(j->seed, rank, 1000 + (uint64_t)slot, 3) == 0
               ? 0
               : (int32_t)drawn(j->seed, rank, 2000 + (uint64_t)slot, 9);
}

static void
check_merge(rig_rank *rank, const job *j, member *m)
{
    size_t bytes = (size_t)j->row_bytes;
    int32_t *offsets = calloc((size_t)j->n_slots + 1, 4), *out_offsets = calloc((size_t)j->n_slots + 1, 4);
    int64_t total = 0, got = 0;
    for (int64_t s = 0; s < j->n_slots; s++) {
        offsets[s + 1] = offsets[s] + rows_of(j, rank->me, s);
        for (uint32_t i = 0; i < m->group.n_ranks; i++) total += rows_of(j, m->ranks[i], s);
    }
    unsigned char *x = malloc((size_t)offsets[j->n_slots] * bytes + 1), *out = malloc((size_t)total * bytes + 1);
    for (int64_t s = 0, at = 0; s < j->n_slots; s++) /* a row is known by its rank, slot and number */
        for (int64_t b = 0; b < rows_of(j, rank->me, s) * j->row_bytes; b++)
            x[at++] = byte_of(j->seed + (uint64_t)s, rank->me, (uint64_t)b);
    moec_status status = mc_ep_merge(rank->comm, &m->group, j->n_slots, offsets, x, j->row_bytes, total, out,
                                     out_offsets, &got, &m->fault);
    bool same = status == MOEC_OK && got == total;
    int64_t at = 0, n = 0;
    for (int64_t s = 0; same && s < j->n_slots; s++) {
        same = out_offsets[s] == n;
        for (uint32_t i = 0; i < m->group.n_ranks; i++) {
            n += rows_of(j, m->ranks[i], s);
            for (int64_t b = 0; same && b < rows_of(j, m->ranks[i], s) * j->row_bytes; b++)
                same = out[at++] == byte_of(j->seed + (uint64_t)s, m->ranks[i], (uint64_t)b);
        }
    }
    same = same && out_offsets[j->n_slots] == n;
    free(offsets);
    free(out_offsets);
    free(x);
    free(out);
    WANT(status == MOEC_OK, "merge: %s", m->fault.text);
    WANT(same, "merge gives other rows");
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

static float
number_of(const job *j, uint32_t rank, int64_t i)
{
    return ldexpf((float)drawn(j->seed, rank, 7000 + (uint64_t)i, 1u << 24) - 8388608.0f,
                  (int)drawn(j->seed, rank, (uint64_t)i, 24));
}

static void
check_sum(rig_rank *rank, const job *j, member *m)
{
    int64_t n = drawn(j->seed, 99, 3, 3) == 0 ? drawn(j->seed, 99, 4, 8) : drawn(j->seed, 99, 4, 300);
    float *x = malloc((size_t)n * 4 + 4), *scratch = malloc((size_t)n * 4 + 4);
    for (int64_t i = 0; i < n; i++) x[i] = number_of(j, rank->me, i);
    scratch[n] = 12345;
    moec_status status = mc_ep_all_reduce(rank->comm, &m->group, x, n, scratch, &m->fault);
    bool same = status == MOEC_OK, within = m->group.n_ranks == 1 || scratch[n] == 12345;
    for (int64_t i = 0; same && i < n; i++) {
        float sum = number_of(j, m->ranks[0], i);
        for (uint32_t r = 1; r < m->group.n_ranks; r++) sum += number_of(j, m->ranks[r], i);
        same = memcmp(&sum, &x[i], 4) == 0;
    }
    free(x);
    free(scratch);
    WANT(status == MOEC_OK, "all_reduce: %s", m->fault.text);
    WANT(same && within, "all_reduce of %lld gives other sums", (long long)n);
}

static uint32_t size_now; /* of all ranks */

static void *
gather_all(void *argument)
{
    rig_rank *rank = argument;
    const job *first = rank->shared;
    for (uint64_t i = 0; i < 12 && !rank->text[0]; i++) {
        member m;
        job j = *first;
        j.seed = rig_mix(j.seed + i);
        j.row_bytes = drawn(j.seed, 0, 11, 5) == 0 ? 0 : 1 + drawn(j.seed, 0, 12, 40);
        j.n_slots = drawn(j.seed, 0, 13, 12);
        join(rank, size_now, j.step, &m);
        check_gather(rank, &j, &m, 0);
        rig_dawdle(rank);
        if (!rank->text[0]) check_merge(rank, &j, &m);
        if (!rank->text[0]) check_sum(rank, &j, &m);
    }
    return NULL;
}

START_TEST(groups_gather_merge_and_add)
{
    for (uint64_t seed = 1; seed <= 120; seed++) {
        uint64_t s = seed;
        size_now = 1 + rig_draw(&s, seed % 20 == 0 ? 40 : 9);
        job j = {.seed = seed, .step = 1 + rig_draw(&s, size_now)};
        while (size_now % j.step) j.step--;
        const char *text = rig_run(size_now, gather_all, &j, seed % 2 ? seed : 0, 20);
        ck_assert_msg(!text, "seed %llu: %s", (unsigned long long)seed, text);
    }
}
END_TEST

/* ---- what cannot be ---------------------------------------------------------------------------------------------- */

static void *
gather_too_much(void *argument)
{
    rig_rank *rank = argument;
    member m;
    join(rank, size_now, 1, &m);
    check_gather(rank, rank->shared, &m, 1);
    return NULL;
}

START_TEST(a_gather_that_does_not_fit_is_an_error_everywhere)
{
    size_now = 3;
    job j = {.seed = 4, .row_bytes = 8};
    while (share_of(&j, 0) == 0 || share_of(&j, 1) == 0) j.seed++;
    const char *text = rig_run(size_now, gather_too_much, &j, 0, 5);
    ck_assert_msg(!text, "%s", text);
}
END_TEST

static void *
disagree(void *argument)
{
    rig_rank *rank = argument;
    const int *what = rank->shared;
    member m = {.fault = {""}};
    unsigned char x[64] = {0}, out[256];
    float sums[8] = {0}, scratch[8];
    int64_t n, own;
    int32_t offsets[3] = {0, 1, 2}, out_offsets[3];
    join(rank, size_now, 1, &m);
    bool odd = rank->me == 1;
    moec_status status = MOEC_OK;
    if (*what == 0) status = mc_ep_gather(rank->comm, &m.group, x, 2, odd ? 4 : 8, 10, out, &n, &own, &m.fault);
    if (*what == 1) status = mc_ep_gather(rank->comm, &m.group, x, odd ? -1 : 1, 8, 10, out, &n, &own, &m.fault);
    if (*what == 2) status = mc_ep_all_reduce(rank->comm, &m.group, sums, odd ? 7 : 8, scratch, &m.fault);
    if (*what == 3)
        status = mc_ep_merge(rank->comm, &m.group, odd ? 1 : 2, offsets, x, 8, 10, out, out_offsets, &n, &m.fault);
    if (*what == 4)
        status = mc_ep_merge(rank->comm, &m.group, 2, offsets, x, odd ? 4 : 8, 10, out, out_offsets, &n, &m.fault);
    if (*what == 5) status = mc_ep_merge(rank->comm, &m.group, 2, offsets, x, 8, 5, out, out_offsets, &n, &m.fault);
    if (odd && *what == 6) offsets[1] = 3;
    if (*what == 6) status = mc_ep_merge(rank->comm, &m.group, 2, offsets, x, 8, 10, out, out_offsets, &n, &m.fault);
    if (status != MOEC_ERR_MISMATCH && status != MOEC_ERR_COMM && !(odd && status == MOEC_ERR_ARGUMENT))
        rig_fail(rank, "case %d: status %d %s", *what, (int)status, m.fault.text);
    return NULL;
}

START_TEST(ranks_that_disagree_are_told)
{
    size_now = 3;
    for (int what = 0; what < 7; what++) {
        const char *text = rig_run(size_now, disagree, &what, 0, 5);
        ck_assert_msg(!text, "%s", text);
    }
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("ep_gather");
    TCase *t = tcase_create("ep_gather");
    tcase_set_timeout(t, 600);
    tcase_add_test(t, groups_gather_merge_and_add);
    tcase_add_test(t, a_gather_that_does_not_fit_is_an_error_everywhere);
    tcase_add_test(t, ranks_that_disagree_are_told);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
