/* train_bar: the load of experts in a line of text. */
#ifndef MC_DRIVER_TRAIN_BAR_H
#define MC_DRIVER_TRAIN_BAR_H

#include <stdbool.h>
#include <stddef.h>

/* Loads as a bar of at most 64 characters, one an expert (or, of several neighbours, the greatest): the height is the
 * load against the greatest. Writes at most MC_TRAIN_BAR_BYTES. Returns MaxVio: greatest / mean - 1. */
enum { MC_TRAIN_BAR_BYTES = 64 * 3 + 1 };
double mc_train_bar(const float *counts, size_t n, bool utf8, char *out);

#endif
