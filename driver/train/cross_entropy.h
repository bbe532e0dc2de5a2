/* cross_entropy: the loss of next tokens and its derivative. */
#ifndef MC_DRIVER_CROSS_ENTROPY_H
#define MC_DRIVER_CROSS_ENTROPY_H

#include "runtime/pool.h"

/* For each row r of logits [n_rows][vocab]: row_losses[r] = ln(sum_v exp(logits[r][v])) - logits[r][targets[r]], and
 * logits[r] is overwritten with its derivative times `scale`: scale * (softmax(logits[r]) - [v = targets[r]]). Sums are
 * f64, so the bits do not depend on the threads. scale 0: logits stay, for evaluation. Returns the sum of row_losses in
 * ascending order. */
double mc_cross_entropy(mc_pool *pool, float *logits, const int32_t *targets, size_t n_rows, size_t vocab, double scale,
                        double *row_losses);

#endif
