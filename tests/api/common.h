/* What the programs of this folder share: one step of a model f32[T, 32] -> f32[T, 32] with made-up weights. */
#ifndef MOEC_TEST_API_COMMON_H
#define MOEC_TEST_API_COMMON_H

#include <stdio.h>
#include <string.h>

enum { N_ROWS = 5, N_COLUMNS = 32 };

/* Returns 0 and the output, or 1 after printing what went wrong. */
static inline int
run_once(moec_model *model, unsigned n_threads, float *out)
{
    moec_error error;
    moec_weights *weights = NULL;
    moec_session *session = NULL;
    moec_session_options options;
    moec_tensor input, output;
    float x[N_ROWS * N_COLUMNS];
    int failed;
    for (int i = 0; i < N_ROWS * N_COLUMNS; i++) x[i] = (float)(i * 37 % 101 - 50) / 50.0F;
    memset(&options, 0, sizeof options);
    memset(&input, 0, sizeof input);
    memset(&output, 0, sizeof output);
    options.n_threads = n_threads;
    input.dtype = MOEC_F32;
    input.rank = 2;
    input.dims[0] = N_ROWS;
    input.dims[1] = N_COLUMNS;
    input.data = x;
    input.n_bytes = sizeof x;
    output.data = out;
    output.n_bytes = sizeof x;
    error.text[0] = 0;
    failed = moec_weights_synthetic(model, NULL, &weights, &error) != MOEC_OK ||
             moec_session_create(model, weights, &options, &session, &error) != MOEC_OK ||
             moec_session_run(session, &input, 1, &output, 1, &error) != MOEC_OK;
    if (failed) fprintf(stderr, "%s: %s\n", moec_model_name(model), error.text);
    moec_session_destroy(session);
    moec_weights_close(weights);
    return failed;
}

/* The result's bits, for comparing programs with each other. */
static inline void
print_bits(const char *name, const float *out)
{
    printf("%s", name);
    for (int i = 0; i < N_ROWS * N_COLUMNS; i++) {
        unsigned bits;
        memcpy(&bits, &out[i], sizeof bits);
        printf(" %08x", bits);
    }
    printf("\n");
}

#endif
