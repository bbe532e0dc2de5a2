/* rope: rotary frequencies of a rope op, shared by every backend.
 *
 * scaling   args
 * none      -
 * linear    factor
 * llama3    factor, low, high, original
 * yarn      factor, original, beta_fast, beta_slow, mscale, mscale_all, truncate (0/1), attention_factor (0 = derive)
 * (formulas: docs/LANGUAGE.md, rotary forms; sources named there) */
#ifndef MC_IR_ROPE_H
#define MC_IR_ROPE_H

#include "ir/op.h"

/* Writes dims/2 inverse frequencies (dims = attribute `dims`, or the last axis when 0); *out_factor multiplies cos and
 * sin. */
void mc_rope_frequencies(const mc_op *rope, double *out_inv_freq, double *out_factor);
/* Number of rotated channels. */
int64_t mc_rope_dims(const mc_op *rope);

#endif
