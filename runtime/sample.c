/* sample: see sample.h. Nothing here calls libm, whose last bits differ between systems: additions, multiplications and
 * divisions are the same everywhere, so a seed means the same text everywhere. */
#include "runtime/sample.h"

#include "runtime/gpu/gpu_session.h"
#include "runtime/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double
mc_sample_uniform(uint64_t seed, uint64_t step, uint64_t sequence)
{
    uint64_t z = seed + UINT64_C(0x9E3779B97F4A7C15) * (1 + step) + UINT64_C(0xD1B54A32D192ED03) * sequence;
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

double
mc_sample_exp(double x)
{
    if (!(x > -700)) return 0; /* below every probability that could be drawn */
    int64_t n = (int64_t)(x * 1.4426950408889634 - 0.5);
    double r = x - (double)n * 0.69314718055994529, term = 1, sum = 1, power = 1;
    for (int i = 1; i < 18; i++) {
        term = term * r / i;
        sum += term;
    }
    for (; n < 0; n++) power *= 0.5;
    return sum * power;
}

moec_status
mc_sample_check(size_t id, float logit, mc_fault *error)
{
    if (isnan(logit) || logit == INFINITY)
        return mc_fail(error, MOEC_ERR_RANGE,
                       "the logit of id %zu is %s: the weights or the input hold values that are not finite", id,
                       isnan(logit) ? "not a number" : "infinite");
    if (logit == -INFINITY)
        return mc_fail(error, MOEC_ERR_RANGE, "every logit is -infinity: the weights or the input are not finite");
    return MOEC_OK;
}

/* NaN and infinity count as the greatest of all. */
static size_t
greatest(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY) return i;
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

/* Two doubles wide: mc_sample says so of its scratch. */
typedef struct candidate {
    double p;
    int32_t id;
} candidate;

static int
likelier(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Walks down the distribution to the point `uniform` of its total. */
static int32_t
draw(const candidate *c, size_t n, double total, double uniform)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += c[i].p;
        if (uniform * total < sum) return c[i].id;
    }
    return c[n - 1].id;
}

/* The fewest likeliest candidates that reach top_p of the total. Ids below (1 - top_p) / n of the total can be left out
 * of the sort: together they are less than 1 - top_p. */
static size_t
nucleus(candidate *c, size_t n, double top_p, double *total)
{
    double floor = *total * (1 - top_p) / (double)n, sum = 0;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].p >= floor) c[kept++] = c[i];
    qsort(c, kept, sizeof *c, likelier);
    for (size_t i = 0; i < kept; i++) {
        sum += c[i].p;
        if (sum >= top_p * *total || i + 1 == kept) {
            *total = sum;
            return i + 1;
        }
    }
    return kept;
}

moec_status
mc_sample(const float *logits, size_t n, const moec_sampling *sampling, double uniform, double *scratch,
          int32_t *out_id, mc_fault *error)
{
    size_t best = greatest(logits, n);
    moec_status s = mc_sample_check(best, n ? logits[best] : -INFINITY, error);
    if (s != MOEC_OK) return s;
    *out_id = (int32_t)best;
    if (!sampling || !(sampling->temperature > 0)) return MOEC_OK;
    candidate *c = (candidate *)(void *)scratch;
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        c[i] =
            (candidate){mc_sample_exp(((double)logits[i] - (double)logits[best]) / sampling->temperature), (int32_t)i};
        total += c[i].p;
    }
    if (sampling->top_p > 0 && sampling->top_p < 1) n = nucleus(c, n, sampling->top_p, &total);
    *out_id = draw(c, n, total, uniform);
    return MOEC_OK;
}

static moec_status
sample_here(moec_session *session, size_t sequence, const moec_sampling *sampling, double uniform, int32_t *out_id,
            mc_fault *error)
{
    const float *logits = moec_session_logits(session, sequence);
    size_t n = (size_t)session->model->vocab;
    if (!logits) return mc_fail(error, MOEC_ERR_DEVICE, "the logits could not be brought from the device");
    if (!session->sample_scratch) session->sample_scratch = malloc(2 * n * sizeof *session->sample_scratch);
    if (!session->sample_scratch) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    return mc_sample(logits, n, sampling, uniform, session->sample_scratch, out_id, error);
}

moec_status
moec_sample(moec_session *session, size_t sequence, const moec_sampling *sampling, uint64_t step, int32_t *out_id,
            moec_error *error)
{
    mc_fault e = {{0}};
    moec_status s = MOEC_OK;
    if (!session->logits || sequence >= session->logits_batch)
        s = mc_fail(&e, MOEC_ERR_ARGUMENT, "nothing was fed to sequence %zu yet", sequence);
    if (s == MOEC_OK && sampling && (sampling->temperature < 0 || isnan(sampling->temperature)))
        s = mc_fail(&e, MOEC_ERR_ARGUMENT, "the temperature is negative");
    double uniform = mc_sample_uniform(sampling ? sampling->seed : 0, step, sequence);
    if (s == MOEC_OK && mc_gpu_samples(session))
        s = mc_gpu_sample(session, sequence, sampling, uniform, out_id, &e);
    else if (s == MOEC_OK)
        s = sample_here(session, sequence, sampling, uniform, out_id, &e);
    return mc_give(error, &e, s);
}
