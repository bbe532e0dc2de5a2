/* gpu_session: what a session has on a GPU instead of threads and pages. session.c, step.c and feed.c do the rest:
 * sizes, names and checks are the same for every device. */
#ifndef MC_RUNTIME_GPU_SESSION_H
#define MC_RUNTIME_GPU_SESSION_H

#include "runtime/gpu/gpu_graph.h"
#include "runtime/session.h"

typedef enum mc_gpu_rows { MC_GPU_ROWS_NONE, MC_GPU_ROWS_LAST, MC_GPU_ROWS_ALL } mc_gpu_rows;
enum { MC_GPU_SAMPLE_KERNELS = 3 };

struct mc_gpu_session {
    moec_gpu *gpu;
    mc_gpu_walk walk;
    bool own_stream, device_pointers, use_graphs;
    CUdeviceptr slab, states, inputs, outputs, scratch, past;
    size_t slab_bytes, state_bytes, scratch_bytes, input_bytes, output_bytes;
    size_t *input_offsets, *output_offsets; /* in inputs and outputs */
    void **args;                            /* of the step, on the device */
    int64_t *prepared;                      /* n_syms: the sizes that exec's tables are for */
    bool is_prepared;
    mc_gpu_rows rows; /* what of output 0 the next step brings to s->outputs (feed) */
    bool samples;     /* ids are chosen on the device */
    uint32_t sample_kernels[MC_GPU_SAMPLE_KERNELS];
    mc_gpu_graphs graphs;
};

/* Reserves everything at the session's greatest sizes (s->sym_max); s->exec is initialised here. Errors: ARGUMENT (a
 * stream of another device), UNSUPPORTED, MEMORY, DEVICE. */
moec_status mc_gpu_session_create(moec_session *s, const moec_weights *weights, const moec_session_options *o,
                                  mc_fault *error) MOEC_MUST_USE;
void mc_gpu_session_destroy(moec_session *s);
void mc_gpu_session_reset(moec_session *s); /* states become zero */
/* One step: s->exec.syms are the sizes, s->args host addresses, or device addresses with device_pointers. */
moec_status mc_gpu_session_step(moec_session *s, mc_fault *error) MOEC_MUST_USE;
uint64_t mc_gpu_session_bytes(const moec_session *s);
/* The logits of the last step of feed, which stayed on the device, to s->outputs. Errors: DEVICE. */
moec_status mc_gpu_session_bring_logits(const moec_session *s, mc_fault *error) MOEC_MUST_USE;

/* gpu_sample.c. Whether the model brings kernels for it, and which they are. */
bool mc_gpu_find_sampling(const moec_abi_model *m, uint32_t *out_kernels);
bool mc_gpu_samples(const moec_session *s);
/* moec_sample on the device. Errors: RANGE, DEVICE. */
moec_status mc_gpu_sample(moec_session *s, size_t sequence, const moec_sampling *sampling, double uniform,
                          int32_t *out_id, mc_fault *error) MOEC_MUST_USE;

/* gpu_weights.c: the weights' addresses on this GPU: uploaded by the first session that asks, kept until they are
 * closed. */
moec_status mc_weights_on_gpu(const moec_weights *weights, moec_gpu *gpu, void *const **out,
                              mc_fault *error) MOEC_MUST_USE;

#endif
