/* checkpoint: all tensors of a directory in the Hugging Face layout, or of one .safetensors file, under one roof. */
#ifndef MC_RUNTIME_CHECKPOINT_H
#define MC_RUNTIME_CHECKPOINT_H

#include "runtime/name_table.h"
#include "runtime/safetensors.h"

typedef struct mc_shard {
    char *path;
    mc_mapping mapping;
    mc_st_file file;
} mc_shard;

typedef struct mc_checkpoint {
    char *path; /* as given */
    mc_shard *shards;
    size_t n_shards;
    const mc_st_tensor **tensors; /* all, shard by shard in order of shard name, then of offset */
    bool *used;
    size_t n_tensors;
    mc_name_table by_name;
    uint64_t identity; /* of file names, sizes and modification times */
} mc_checkpoint;

/* Finds the files and their identity; maps nothing yet. Errors: NOT_FOUND, SYNTAX (the index), IO, MEMORY. */
moec_status mc_checkpoint_find(const char *path, mc_checkpoint *out, mc_fault *error) MOEC_MUST_USE;
/* Maps and reads all files. */
moec_status mc_checkpoint_load(mc_checkpoint *c, mc_fault *error) MOEC_MUST_USE;
void mc_checkpoint_fini(mc_checkpoint *c);
/* Whether moec wrote it: all files say so ("format": "moec"). Then tensors have the names of the model's weights. */
bool mc_checkpoint_is_own(const mc_checkpoint *c);

/* NULL when absent. The index is for `used`. */
const mc_st_tensor *mc_checkpoint_get(const mc_checkpoint *c, mc_str name, uint32_t *out_index);

#endif
