/* A session on a GPU of a library made by `moec compile --gpu --emit lib`, with nothing but its own header. Compiles as
 * C11 and as C++17; linked to the archive and to the shared library. */
#include "library.h"

#include <stdio.h>
#include <string.h>

int
main(void)
{
    moec_error error;
    moec_model *model;
    moec_gpu *gpu;
    moec_weights *weights;
    moec_session *session;
    moec_session_options options;
    if (moe_layer_open_gpu(&model, &error) || moec_gpu_open(0, &gpu, &error)) return puts(error.text), 1;
    memset(&options, 0, sizeof options);
    options.gpu = gpu;
    if (moec_weights_synthetic(model, NULL, &weights, &error)) return puts(error.text), 1;
    if (moec_session_create(model, weights, &options, &session, &error)) return puts(error.text), 1;
    printf("%d inputs, %s memory\n", (int)moec_model_n_inputs(model), moec_session_bytes(session) ? "has" : "no");
    moec_session_destroy(session);
    moec_weights_close(weights);
    moec_model_destroy(model);
    moec_gpu_close(gpu);
    return 0;
}
