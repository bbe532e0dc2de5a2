/* fake_model: artefacts written by hand, with kernels in C, so that the runtime is tested without a compiler. */
#ifndef MC_TESTS_FAKE_MODEL_H
#define MC_TESTS_FAKE_MODEL_H

#include "runtime/abi.h"

#include <stddef.h>

/* y = relu(x w0^T) w1^T, x f32[T, 4], y f32[T, 4], T in 1..1000: one function "layer" called twice, each call with its
 * own weight (a.w, b.w: f32 [4, 4], panels of 3). */
const moec_abi_model *fake_layers(void);

/* A "language model" with a cache: the logit of v at position p is bias[v] + 2 * (how often v occurs up to p) + (v ==
 * the id at p + 1 mod 256 ? 0.5 : 0). ids i32[B, S], logits f32[B, S, 256], S in 1..64, weight "bias" f32 [256]. */
const moec_abi_model *fake_counter(void);

/* A model that does nothing but have these weights. rules: the text of its weights block. */
const moec_abi_model *fake_weights(const moec_abi_weight *weights, size_t n, const char *rules);

/* Constructors for tables. */
moec_abi_expr fake_const(int64_t n);
moec_abi_expr fake_sym(int64_t mul, uint8_t sym);
moec_abi_expr fake_syms(int64_t mul, uint8_t a, uint8_t b);

#endif
