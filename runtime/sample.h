/* sample: choosing an id from logits; moec_sample (include/moec/runtime.h) describes the draws. */
#ifndef MC_RUNTIME_SAMPLE_H
#define MC_RUNTIME_SAMPLE_H

#include "moec/runtime.h"
#include "runtime/base/file.h"

/* A number in [0, 1) from the documented counter-based generator. */
double mc_sample_uniform(uint64_t seed, uint64_t step, uint64_t sequence);
/* exp(x) for x <= 0 in correctly ordered basic arithmetic: the same bits on every machine. */
double mc_sample_exp(double x);
/* Whether ids can be chosen from logits whose greatest is this one: NaN or +infinity if there is any. Errors: RANGE. */
moec_status mc_sample_check(size_t id, float logit, mc_fault *error) MOEC_MUST_USE;
/* scratch: 2 n doubles. Errors: RANGE (a logit that is not a number). */
moec_status mc_sample(const float *logits, size_t n, const moec_sampling *sampling, double uniform, double *scratch,
                      int32_t *out_id, mc_fault *error) MOEC_MUST_USE;

#endif
