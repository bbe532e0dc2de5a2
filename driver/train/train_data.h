/* train_data: a text as token ids, and batches of it. A file is read as bytes (id = byte), a .npy of i32 or i64 as ids.
 */
#ifndef MC_DRIVER_TRAIN_DATA_H
#define MC_DRIVER_TRAIN_DATA_H

#include "runtime/npy.h"

typedef struct mc_train_data {
    mc_mapping bytes; /* or ... */
    mc_npy ids;
    size_t n_tokens;
    uint64_t hash; /* of the ids' bytes: another text has another */
} mc_train_data;

/* Every id is checked against the vocabulary. Errors: NOT_FOUND, IO, SYNTAX, UNSUPPORTED (another element type), RANGE
 * (an id outside the vocabulary: says where), MEMORY. */
moec_status mc_train_data_open(const char *path, int64_t vocab, mc_train_data *out, mc_fault *fault) MOEC_MUST_USE;
void mc_train_data_close(mc_train_data *d);

int32_t mc_train_data_id(const mc_train_data *d, size_t position);
/* n_sequences windows of length + 1 ids: inputs [n][length] and, one further, targets [n][length]. Window k of a run
 * begins at draw k of the stream "batches"; the batch takes windows first, first + 1, ... The text must have more than
 * `length` ids. */
void mc_train_data_batch(const mc_train_data *d, uint64_t seed, uint64_t first, size_t n_sequences, size_t length,
                         int32_t *inputs, int32_t *targets);

#endif
