/* abi_model: a checked view of an artefact's descriptor. After mc_model_check every index in the tables is in range and
 * the call graph is a tree of bounded depth, so the rest of the runtime reads them without looking twice. */
#ifndef MC_RUNTIME_ABI_MODEL_H
#define MC_RUNTIME_ABI_MODEL_H

#include "moec/runtime.h"
#include "runtime/abi.h"
#include "runtime/base/file.h"

enum { MC_MAX_CALL_ARGS = 4096, MC_MAX_CALL_DEPTH = 32, MC_NO_SYM = 0xFF };

struct moec_model {
    const moec_abi_model *abi;
    uint8_t sym_new, sym_total, sym_batch; /* indices into abi->syms, or MC_NO_SYM */
    int64_t vocab;                         /* 0: not a language model */
    uint64_t weights_bytes;
    bool trainable;          /* it has a backward function */
    bool runs_here;          /* trainable, and this processor has what it was compiled for */
    struct mc_param *params; /* n_params; runtime/train_params.h */
    uint32_t n_params;
    uint64_t image_hash; /* of the image it came from, else abi->hash */
    void *memory;        /* the tables, when they came out of an image (runtime/image.h) */
    uint32_t *param_of;  /* n_weights: the parameter of each entry of the weight table */
};

/* mul * product + add. False on overflow, or when a symbol that is used has no value (negative). */
bool mc_expr_eval(const moec_abi_expr *e, const int64_t *syms, int64_t *out);
bool mc_expr_is_const(const moec_abi_expr *e);
int64_t mc_expr_const(const moec_abi_expr *e); /* the value of one that is */
/* "S", "2*B*S", "4096" */
void mc_expr_text(const moec_abi_model *abi, const moec_abi_expr *e, char *out, size_t n_bytes);

/* Copies the text of an internal error to a public one and gives the status back. */
moec_status mc_give(moec_error *out, const mc_fault *in, moec_status status);

/* The public description of a table entry. */
void mc_tensor_describe(const moec_abi_model *abi, const moec_abi_tensor *t, moec_tensor_info *out);

/* Fills the model, whose abi is set. */
moec_status mc_model_check(moec_model *model, mc_fault *error) MOEC_MUST_USE;

#endif
