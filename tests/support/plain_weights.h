/* plain_weights: a checkpoint's numbers for the interpreter: bound by the model's own rules, but unpacked. It uses the
 * runtime's binder on a descriptor whose every weight is plain rows, so names, stages and stacking are the real ones.
 */
#ifndef MC_TESTS_PLAIN_WEIGHTS_H
#define MC_TESTS_PLAIN_WEIGHTS_H

#include "codegen/ref/interp.h"
#include "frontend/elaborate.h"
#include "moec/runtime.h"

typedef struct mc_plain_weights mc_plain_weights;

/* NULL on failure, with a message in *error. The elaborated model must outlive the result. */
mc_plain_weights *mc_plain_weights_open(const mc_elab_result *model, const char *directory, moec_error *error);
void mc_plain_weights_close(mc_plain_weights *w); /* NULL is allowed */
/* For mc_ref_options.weight; the user pointer is the mc_plain_weights. */
bool mc_plain_weights_get(void *user, const mc_ref_weight_request *request, mc_ref_tensor *out);

#endif
