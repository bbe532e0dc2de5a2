/* What tests of ep share: random dispatches on ranks that are threads, and a plain statement of what every rank must
 * end up with. The statement looks at all ranks' tokens at once and sorts with qsort; it shares nothing with ep. */
#ifndef TESTS_UNIT_EP_RIG_H
#define TESTS_UNIT_EP_RIG_H

#include "runtime/base/dtype.h"
#include "runtime/ep/ep.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct ep_case {
    uint64_t seed;
    uint32_t n_ranks, per_node;
    mc_ep_way way;
    int64_t n_slots, n_experts;
    int32_t *slots;    /* NULL, or [n_ranks * n_slots] */
    int64_t *n_tokens; /* [n_ranks] */
    int64_t k;         /* assignments of a token, some of which may be -1 */
    int32_t **ids;     /* of each rank [T, k] */
    mc_ep_row row;
    int64_t max_tokens;
    bool tight; /* bounds are exactly what comes */
} ep_case;

/* An assignment, with everything there is to know of it. */
typedef struct ep_fact {
    int32_t source, token, expert, at; /* at: its number on the source, after sorting by expert */
    int32_t owner, slot, row;          /* row: among those received by the owner */
} ep_fact;

typedef struct ep_facts {
    ep_fact *all; /* of all sources, sorted by (source, at) */
    int64_t n;
} ep_facts;

static inline uint64_t
rig_mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

/* The n-th number after the seed, below `below`. */
static inline uint32_t
rig_draw(uint64_t *seed, uint32_t below)
{
    *seed = rig_mix(*seed + 0x9e3779b97f4a7c15ull);
    return (uint32_t)((*seed >> 32) * below >> 32);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

/* Row number `row` of array `what` on `rank`: any bits for what is only moved, sizes from tiny to large for f32. */
static inline void
rig_fill(const ep_case *c, uint32_t what, uint32_t rank, int64_t row, void *out)
{
    uint64_t state = rig_mix(c->seed ^ (uint64_t)what << 48 ^ (uint64_t)rank << 32 ^ (uint64_t)row);
    size_t bytes = moec_dtype_bytes(c->row.dtype);
    for (int64_t i = 0; i < c->row.width; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        uint32_t draw = (uint32_t)(state >> 33);
        float x = ldexpf((float)(int32_t)(draw << 8) * 0x1p-31f, (int)(draw >> 27) - 8);
        if ((draw & 0xFFFF) == 7) x = NAN;
        if ((draw & 0xFFFF) == 8) x = INFINITY;
        if ((draw & 0x7F) == 9) x = 0;
        if (c->row.dtype == MOEC_F32)
            memcpy((float *)out + i, &x, 4);
        else
            memcpy((unsigned char *)out + (size_t)i * bytes, &state, bytes);
    }
}

/* What of a row arrives. */
static inline void
rig_round(mc_ep_row row, void *data)
{
    float *x = data;
    if (row.wire == row.dtype) return;
    if (row.wire == MOEC_BF16)
        for (int64_t i = 0; i < row.width; i++) x[i] = mc_bf16_to_f32(mc_f32_to_bf16(x[i]));
    if (row.wire != MOEC_F8E4M3) return;
    for (int64_t begin = 0; begin < row.width; begin += 128) {
        int64_t end = begin + 128 < row.width ? begin + 128 : row.width;
        float most = 0;
        for (int64_t i = begin; i < end; i++)
            if (isfinite(x[i]) && fabsf(x[i]) > most) most = fabsf(x[i]);
        float scale = most == 0 ? 1 : most / 448;
        if (scale < FLT_MIN) scale = FLT_MIN;
        for (int64_t i = begin; i < end; i++)
            x[i] = isfinite(x[i]) ? mc_f8e4m3_to_f32(mc_f32_to_f8e4m3(x[i] / scale)) * scale : NAN;
    }
}

static inline bool
rig_same(mc_ep_row row, const void *a, const void *b)
{
    size_t bytes = (size_t)row.width * moec_dtype_bytes(row.dtype);
    if (memcmp(a, b, bytes) == 0) return true;
    if (row.dtype != MOEC_F32) return false;
    const float *x = a, *y = b;
    for (int64_t i = 0; i < row.width; i++)
        if (memcmp(&x[i], &y[i], 4) != 0 && !(isnan(x[i]) && isnan(y[i]))) return false;
    return true;
}

/* ---- cases ------------------------------------------------------------------------------------------------------- */

static inline void
rig_free_case(ep_case *c)
{
    for (uint32_t r = 0; c->ids && r < c->n_ranks; r++) free(c->ids[r]);
    free(c->ids);
    free(c->slots);
    free(c->n_tokens);
}

/* Every expert once, further copies anywhere, some slots empty. */
static inline void
rig_draw_slots(ep_case *c, uint64_t *s)
{
    int64_t n = c->n_ranks * c->n_slots;
    c->slots = malloc((size_t)n * sizeof *c->slots);
    for (int64_t i = 0; i < n; i++)
        c->slots[i] = i < c->n_experts      ? (int32_t)i
                      : rig_draw(s, 4) == 0 ? -1
                                            : (int32_t)rig_draw(s, (uint32_t)c->n_experts);
    for (int64_t i = n - 1; i > 0; i--) {
        uint32_t j = rig_draw(s, (uint32_t)i + 1);
        int32_t swap = c->slots[i];
        c->slots[i] = c->slots[j];
        c->slots[j] = swap;
    }
}

static inline void
rig_draw_ids(ep_case *c, uint64_t *s)
{
    uint32_t e = (uint32_t)c->n_experts, hot = rig_draw(s, e), mood = rig_draw(s, 6);
    c->n_tokens = calloc(c->n_ranks, sizeof *c->n_tokens);
    c->ids = calloc(c->n_ranks, sizeof *c->ids);
    c->max_tokens = 0;
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        int64_t t = rig_draw(s, 5) == 0 ? 0 : rig_draw(s, c->n_ranks > 16 ? 6 : 20);
        c->n_tokens[r] = t;
        if (t > c->max_tokens) c->max_tokens = t;
        c->ids[r] = malloc((size_t)(t * c->k + 1) * sizeof(int32_t));
        for (int64_t i = 0; i < t * c->k; i++) {
            uint32_t draw = rig_draw(s, e); /* duplicates in a token happen */
            c->ids[r][i] = mood == 0                          ? (int32_t)hot
                           : mood == 1 && rig_draw(s, 2) == 0 ? -1
                           : mood == 2                        ? (int32_t)(draw % (1 + e / 3))
                                                              : (int32_t)draw;
            if (mood == 5) c->ids[r][i] = -1;
        }
    }
}

static inline void
rig_draw_case(ep_case *c, uint64_t seed, uint32_t n_ranks)
{
    uint64_t s = rig_mix(seed);
    *c = (ep_case){.seed = rig_mix(seed + 1), .n_ranks = n_ranks};
    do c->per_node = 1 + rig_draw(&s, n_ranks);
    while (n_ranks % c->per_node);
    c->way = (mc_ep_way)rig_draw(&s, 3);
    c->n_slots = 1 + rig_draw(&s, rig_draw(&s, 3) ? 4 : 12);
    uint32_t all = (uint32_t)c->n_slots * n_ranks;
    bool table = rig_draw(&s, 2);
    c->n_experts = table ? 1 + rig_draw(&s, all) : all - (rig_draw(&s, 3) ? 0 : rig_draw(&s, (uint32_t)c->n_slots));
    c->k = 1 + rig_draw(&s, c->n_experts < 8 ? (uint32_t)c->n_experts : 8);
    if (table) rig_draw_slots(c, &s);
    rig_draw_ids(c, &s);
    static const mc_ep_row kinds[] = {{0, MOEC_F32, MOEC_F32},   {0, MOEC_F32, MOEC_BF16}, {0, MOEC_F32, MOEC_F8E4M3},
                                      {0, MOEC_BF16, MOEC_BF16}, {0, MOEC_I32, MOEC_I32},  {0, MOEC_F16, MOEC_F16},
                                      {0, MOEC_F32, MOEC_F32}};
    c->row = kinds[rig_draw(&s, 7)];
    c->row.width = rig_draw(&s, 4) == 0 ? 1 : rig_draw(&s, 10) == 0 ? 120 + rig_draw(&s, 200) : rig_draw(&s, 40);
    c->tight = rig_draw(&s, 2);
}

/* ---- what must be ------------------------------------------------------------------------------------------------ */

/* The slot (rank * n_slots + slot) where `token` of `source` finds `expert`. */
static inline int64_t
rig_place(const ep_case *c, uint32_t source, int32_t token, int32_t expert)
{
    if (!c->slots) return expert;
    uint32_t widths[] = {1, c->per_node, c->n_ranks};
    for (int level = 0; level < 3; level++) {
        int32_t n = 0;
        for (int pass = 0; pass < 2; pass++) {
            int32_t wanted = n ? token % n : 0;
            n = 0;
            for (int64_t s = 0; s < (int64_t)c->n_ranks * c->n_slots; s++) {
                uint32_t rank = (uint32_t)(s / c->n_slots);
                if (c->slots[s] != expert || rank / widths[level] != source / widths[level]) continue;
                if (pass == 1 && n == wanted) return s;
                n++;
            }
            if (n == 0) break;
        }
    }
    return -1;
}

static inline int
rig_by_expert(const void *a, const void *b)
{
    const ep_fact *x = a, *y = b;
    if (x->source != y->source) return x->source < y->source ? -1 : 1;
    if (x->expert != y->expert) return x->expert < y->expert ? -1 : 1;
    if (x->token != y->token) return x->token < y->token ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static inline int
rig_by_row(const void *a, const void *b)
{
    const ep_fact *x = *(ep_fact *const *)a, *y = *(ep_fact *const *)b;
    if (x->owner != y->owner) return x->owner < y->owner ? -1 : 1;
    if (x->source != y->source) return x->source < y->source ? -1 : 1;
    if (x->token != y->token) return x->token < y->token ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static inline ep_facts
rig_facts(const ep_case *c)
{
    int64_t most = 0;
    for (uint32_t r = 0; r < c->n_ranks; r++) most += c->n_tokens[r] * c->k;
    ep_facts f = {calloc((size_t)most + 1, sizeof(ep_fact)), 0};
    for (uint32_t r = 0; r < c->n_ranks; r++)
        for (int64_t i = 0; i < c->n_tokens[r] * c->k; i++)
            if (c->ids[r][i] >= 0)
                f.all[f.n++] = (ep_fact){
                    .source = (int32_t)r, .token = (int32_t)(i / c->k), .expert = c->ids[r][i], .at = (int32_t)i};
    qsort(f.all, (size_t)f.n, sizeof *f.all, rig_by_expert);
    ep_fact **sorted = malloc(((size_t)f.n + 1) * sizeof *sorted);
    for (int64_t i = 0; i < f.n; i++) {
        ep_fact *x = &f.all[i];
        int64_t place = rig_place(c, (uint32_t)x->source, x->token, x->expert);
        x->at = i > 0 && x[-1].source == x->source ? x[-1].at + 1 : 0;
        x->owner = (int32_t)(place / c->n_slots);
        x->slot = (int32_t)(place % c->n_slots);
        sorted[i] = x;
    }
    qsort(sorted, (size_t)f.n, sizeof(ep_fact *), rig_by_row);
    for (int64_t i = 0; i < f.n; i++) {
        const ep_fact *before = i > 0 && sorted[i - 1]->owner == sorted[i]->owner ? sorted[i - 1] : NULL;
        bool same = before && c->way != MC_EP_EXPERT && before->source == sorted[i]->source &&
                    before->token == sorted[i]->token;
        sorted[i]->row = before ? before->row + !same : 0;
    }
    free(sorted);
    return f;
}

static inline bool
rig_by_node(const ep_case *c)
{
    return c->way == MC_EP_NODE && c->per_node > 1 && c->per_node < c->n_ranks;
}

/* The sum of what `what` (rows of the owners) holds for a token: by rank, or by node. */
static inline void
rig_sum(const ep_case *c, const ep_facts *f, int32_t source, int32_t token, uint32_t what, float *sum)
{
    size_t width = (size_t)c->row.width, bytes = width * sizeof(float);
    float *row = malloc(bytes + 4), *part = malloc(bytes + 4);
    uint32_t step = rig_by_node(c) ? c->per_node : c->n_ranks;
    bool begun = false;
    memset(sum, 0, bytes);
    for (uint32_t first = 0; first < c->n_ranks; first += step) {
        bool some = false;
        for (uint32_t owner = first; owner < first + step; owner++) {
            int32_t last = -1;
            for (int64_t i = 0; i < f->n; i++) {
                const ep_fact *x = &f->all[i];
                if (x->source != source || x->token != token || x->owner != (int32_t)owner || x->row <= last) continue;
                last = x->row; /* rows of a token ascend with its assignments */
                rig_fill(c, what, owner, x->row, row);
                rig_round(c->row, row);
                for (size_t j = 0; j < width; j++) part[j] = some ? part[j] + row[j] : row[j];
                some = true;
            }
        }
        if (!some) continue;
        if (rig_by_node(c)) rig_round(c->row, part);
        for (size_t j = 0; j < width; j++) sum[j] = begun ? sum[j] + part[j] : part[j];
        begun = true;
    }
    free(row);
    free(part);
}

/* ---- ranks as threads -------------------------------------------------------------------------------------------- */

typedef struct rig_rank {
    moec_comm *comm;
    uint32_t me;
    void *shared;
    uint64_t shuffle; /* other than 0: waits now and then, differently for each seed */
    char text[512];   /* what went wrong; empty: nothing */
} rig_rank;

static inline bool MOEC_PRINTF(2, 3) rig_fail(rig_rank *r, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (!r->text[0]) vsnprintf(r->text, sizeof r->text, format, arguments);
    va_end(arguments);
    return false;
}

static inline void
rig_dawdle(rig_rank *r)
{
    if (r->shuffle == 0) return;
    uint32_t draw = rig_draw(&r->shuffle, 8);
    if (draw < 3) nanosleep(&(struct timespec){.tv_nsec = 1000 + 40000 * (long)draw}, NULL);
}

/* Runs `body` on n ranks; the first complaint, or NULL. */
static inline const char *
rig_run(uint32_t n, void *(*body)(void *), void *shared, uint64_t shuffle, double deadline)
{
    static char text[600];
    static moec_error error;
    moec_comm *comms[MC_COMM_MAX_RANKS];
    rig_rank *ranks = calloc(n, sizeof *ranks);
    pthread_t *threads = calloc(n, sizeof *threads);
    moec_comm_options options = {.deadline_seconds = deadline};
    text[0] = 0;
    if (moec_comm_threads(n, &options, comms, &error) != MOEC_OK) return error.text;
    for (uint32_t r = 0; r < n; r++) {
        ranks[r] =
            (rig_rank){.comm = comms[r], .me = r, .shared = shared, .shuffle = shuffle ? rig_mix(shuffle + r) | 1 : 0};
        if (r > 0) pthread_create(&threads[r], NULL, body, &ranks[r]);
    }
    body(&ranks[0]);
    for (uint32_t r = 1; r < n; r++) pthread_join(threads[r], NULL);
    for (uint32_t r = 0; r < n; r++) {
        if (ranks[r].text[0] &&
            (!text[0] || strstr(text, "gave up"))) /* the cause, rather than what others make of it */
            snprintf(text, sizeof text, "rank %u of %u: %s", r, n, ranks[r].text);
        moec_comm_close(comms[r]);
    }
    free(ranks);
    free(threads);
    return text[0] ? text : NULL;
}

#endif
