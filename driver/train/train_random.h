/* train_random: random numbers as a function of (seed, stream, index), so that they depend neither on the order in
 * which they are drawn nor on the number of threads, and a run can be cut anywhere. The generator is that of
 * moec_sample:
 *
 *     z = seed + 0x9E3779B97F4A7C15 * (1 + index) + 0xD1B54A32D192ED03 * stream   (mod 2^64)
 *     z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;  z = (z ^ z >> 27) * 0x94D049BB133111EB;  z = z ^ z >> 31
 */
#ifndef MC_DRIVER_TRAIN_RANDOM_H
#define MC_DRIVER_TRAIN_RANDOM_H

#include <stdint.h>

uint64_t mc_train_bits(uint64_t seed, uint64_t stream, uint64_t index);
/* (bits >> 11) * 2^-53, in [0, 1) */
double mc_train_uniform(uint64_t seed, uint64_t stream, uint64_t index);
/* sqrt(-2 ln(1 - u)) cos(2 pi v), with u and v the draws 2 index and 2 index + 1 (Box and Muller). */
double mc_train_normal(uint64_t seed, uint64_t stream, uint64_t index);
/* bits * n / 2^64, in 0 .. n-1 */
uint64_t mc_train_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t n);
/* A stream for a name: FNV-1a, 64 bits. */
uint64_t mc_train_stream(const char *name);

#endif
