/* view: a tensor of a checkpoint as strides over mapped bytes, and the stages of a rule as changes of strides. Nothing
 * is copied until rows are read, but where a stage cannot be said in strides. */
#ifndef MC_RUNTIME_VIEW_H
#define MC_RUNTIME_VIEW_H

#include "runtime/base/dtype.h"
#include "runtime/checkpoint.h"
#include "runtime/rules.h"

enum { MC_VIEW_RANK = MC_ST_MAX_RANK + 1 };

typedef enum mc_view_kind {
    MC_VIEW_PLAIN,
    MC_VIEW_FP8,  /* value = element * scale of its block of the last two axes */
    MC_VIEW_MXFP4 /* 4-bit codes, one power-of-two scale for each 32 along the last axis, which stays contiguous */
} mc_view_kind;

typedef struct mc_view {
    mc_view_kind kind;
    moec_dtype dtype; /* of the values: MXFP4 reads as F32 */
    int rank;
    int64_t dims[MC_VIEW_RANK], strides[MC_VIEW_RANK], offset; /* in elements */
    const unsigned char *data;
    const unsigned char *scales;
    moec_dtype scale_dtype;
    int64_t scale_strides[MC_VIEW_RANK], scale_offset, block[2];
    bool affine; /* value * mul + add */
    double mul, add;
    void *owned;
} mc_view;

/* Equal views side by side: one tensor, or several to be stacked along a new axis 0. */
typedef struct mc_tensor {
    mc_view *parts;
    size_t n_parts;
    bool stacked, cast; /* cast: the rule allows narrowing */
    int rank;
    int64_t dims[MC_VIEW_RANK];
    mc_view *whole; /* what parts were picked from, n_whole; owns their copies */
    size_t n_whole;
} mc_tensor;

/* Opens the sources of a rule and applies its stages; `target` says which part of a division. With dry only shapes and
 * types are right, and no data is read or copied.
 * Errors: MISMATCH (a stage that does not fit, E0905), NOT_FOUND, MEMORY. */
moec_status mc_tensor_open(mc_checkpoint *c, const mc_rule *rule, int target, const uint32_t *sources, size_t n_sources,
                           bool dry, mc_tensor *out, mc_fault *error) MOEC_MUST_USE;
void mc_tensor_close(mc_tensor *t);
/* Leaves only picks[0..n-1] of axis 0, in that order; n > 0, each below dims[0]. Errors: MEMORY, MISMATCH (a scalar).
 */
moec_status mc_tensor_pick(mc_tensor *t, const int64_t *picks, int64_t n, mc_fault *error) MOEC_MUST_USE;

/* The product of all dims but the last, and the last (1 for rank 0). */
int64_t mc_tensor_rows(const mc_tensor *t);
int64_t mc_tensor_row_elems(const mc_tensor *t);
moec_dtype mc_tensor_dtype(const mc_tensor *t);
/* Bytes of the row in its own type when they lie in one piece and mean themselves; else NULL. May be unaligned. */
const unsigned char *mc_tensor_row_raw(const mc_tensor *t, int64_t row);
/* The row's values. Raw FP8 codes (no scales) with mc_tensor_row_codes, for kind FP8 only. */
void mc_tensor_row_f32(const mc_tensor *t, int64_t row, float *out);
void mc_tensor_row_codes(const mc_tensor *t, int64_t row, uint8_t *out);
/* Integers; false when one does not fit. */
bool mc_tensor_row_i32(const mc_tensor *t, int64_t row, int32_t *out);
/* The scale of block (row / block[0], column / block[1]) where row counts within the last two axes. kind FP8 only. */
float mc_tensor_scale(const mc_tensor *t, int64_t group, int64_t block_row, int64_t block_column);

/* view.c, for stages.c */
void mc_view_row_f32(const mc_view *v, int64_t row, float *out);
bool mc_view_is_contiguous(const mc_view *v);
/* Replaces v by a dense copy of its values: in its own type when it is plain, else in f32. */
moec_status mc_view_materialise(mc_view *v, bool dry, mc_fault *error) MOEC_MUST_USE;
moec_status mc_view_stage(mc_view *v, const mc_stage *stage, int target, int n_targets, bool dry,
                          mc_fault *error) MOEC_MUST_USE;
/* "[8, 16, 4]" */
void mc_dims_text(const int64_t *dims, int rank, char *out, size_t n_bytes);

#endif
