/* hopper_forms: codegen/gpu/kernels/hopper.cuh compiled for hopper_machine.c in a few forms, and its functions of
 * layout, for tests/unit/test_gpu_schedule.c. */
#ifndef MC_TESTS_GPU_HOPPER_FORMS_H
#define MC_TESTS_GPU_HOPPER_FORMS_H

#include "tests/gpu/hopper_machine.h"

#ifdef __cplusplus
extern "C" {
#endif

enum hopper_form {
    FORM_UP,         /* experts, gathered, silu(gate) * up, bf16 to bf16 */
    FORM_UP_F16,     /* the same, relu2, f16 to f16 */
    FORM_DOWN,       /* experts, by the copy engine, bf16 to f32 */
    FORM_GATHER,     /* experts, gathered, bf16 to bf16 */
    FORM_LINEAR,     /* one group with a residual, bf16 to f32 */
    FORM_LINEAR_F16, /* f16 to f16 */
    FORM_GATED,      /* one group, gelu_tanh(gate) * up, bf16 to bf16 */
    N_FORMS
};

/* args: moec_gpu_args, maps: hopper_tensor in 128 bytes each. False: hopper_machine_error. */
int hopper_forms_run(enum hopper_form form, const struct hopper_launch *launch, const void *args, const void *maps);

/* Tile number n of `groups` groups with these offsets, for n = 0 .. result - 1, as group, row, column; into[] has room
 * for `room` tiles. Negative: it failed. */
int hopper_forms_tiles(const int *offsets, int groups, int height, int columns, int (*into)[3], int room);

unsigned hopper_forms_brick_offset(unsigned row, unsigned chunk);
unsigned long long hopper_forms_descriptor(unsigned address, unsigned part);
unsigned hopper_forms_fragment_row(unsigned thread, unsigned i);
unsigned hopper_forms_fragment_column(unsigned thread, unsigned i);
unsigned hopper_forms_copy_row(unsigned thread, unsigned i);
unsigned hopper_forms_copy_chunk(unsigned thread);
/* Where a thread's copy number i goes, as the kernel computes it. */
unsigned hopper_forms_copy_offset(unsigned thread, unsigned i);
unsigned hopper_forms_threads(void);
unsigned hopper_forms_shared_bytes(void);                              /* dynamic */
void hopper_forms_ring(unsigned n, unsigned *stage, unsigned *parity); /* step n of a ring of 4 */

#ifdef __cplusplus
}
#endif

#endif
