/* One forward and backward of a library made by `moec compile --train`, with nothing but its own header: prints the
 * bits of the output and of every gradient. Compiles as C11 and as C++17. */
#include "trained.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_ROWS = 5, N_COLUMNS = 32, N_VALUES = N_ROWS * N_COLUMNS, MOST_PARAMS = 8 };

static void
print_bits(const char *what, const float *values, size_t n)
{
    printf("%s", what);
    for (size_t i = 0; i < n; i++) {
        unsigned bits;
        memcpy(&bits, &values[i], sizeof bits);
        printf(" %08x", bits);
    }
    printf("\n");
}

static void *
aligned(size_t n_bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, n_bytes ? n_bytes : 64)) exit(2);
    return memset(p, 0, n_bytes);
}

static void
stop(const char *where, const moec_error *error)
{
    fprintf(stderr, "%s: %s\n", where, error->text);
    exit(1);
}

int
main(void)
{
    moec_error error;
    moec_model *model;
    moec_threads *threads;
    moec_train_sizes sizes;
    moec_limit rows;
    moec_tensor x, y, dy, dx;
    moec_train_call call;
    void *params[MOST_PARAMS];
    float *grads[MOST_PARAMS];
    size_t n[MOST_PARAMS], n_params;
    if (trained_open(&model, &error) || moec_threads_create(2, &threads, &error)) stop("open", &error);
    rows.name = "T";
    rows.max = N_ROWS;
    if (moec_train_query(model, &rows, 1, 2, &sizes, &error)) stop("query", &error);
    n_params = moec_train_n_params(model);
    if (n_params == 0 || n_params > MOST_PARAMS) return 1;
    for (size_t i = 0; i < n_params; i++) {
        moec_param_info info;
        if (moec_train_param(model, i, &info) || info.dtype != MOEC_F32 || !info.has_gradient) return 1;
        n[i] = 1;
        for (uint32_t d = 0; d < info.rank; d++) n[i] *= (size_t)info.dims[d];
        params[i] = aligned(n[i] * sizeof(float));
        grads[i] = (float *)aligned(n[i] * sizeof(float));
        for (size_t k = 0; k < n[i]; k++) ((float *)params[i])[k] = (float)((k * 37 + i) % 101) / 101 - 0.5f;
    }
    memset(&x, 0, sizeof x);
    x.dtype = MOEC_F32;
    x.rank = 2;
    x.dims[0] = N_ROWS;
    x.dims[1] = N_COLUMNS;
    x.n_bytes = N_VALUES * sizeof(float);
    y = dy = dx = x;
    x.data = aligned(x.n_bytes);
    y.data = aligned(x.n_bytes);
    dx.data = aligned(x.n_bytes);
    dy.data = aligned(x.n_bytes);
    for (int i = 0; i < N_VALUES; i++) {
        ((float *)x.data)[i] = (float)(i * 29 % 97) / 97 - 0.5f;
        ((float *)dy.data)[i] = (float)(i * 53 % 89) / 89 - 0.5f;
    }
    memset(&call, 0, sizeof call);
    call.threads = threads;
    call.inputs = &x;
    call.outputs = &y;
    call.cotangents = &dy;
    call.input_grads = &dx;
    call.n_inputs = call.n_outputs = call.n_cotangents = call.n_input_grads = 1;
    call.params = params;
    call.param_grads = grads;
    call.saved = aligned(sizes.saved_bytes);
    call.saved_bytes = sizes.saved_bytes;
    call.workspace = aligned(sizes.workspace_bytes);
    call.workspace_bytes = sizes.workspace_bytes;
    if (moec_train_forward(model, &call, &error)) stop("forward", &error);
    if (moec_train_backward(model, &call, &error)) stop("backward", &error);
    print_bits("y", (const float *)y.data, N_VALUES);
    print_bits("dx", (const float *)dx.data, N_VALUES);
    for (size_t i = 0; i < n_params; i++) {
        print_bits("gradient", grads[i], n[i]);
        free(params[i]);
        free(grads[i]);
    }
    free(x.data);
    free(y.data);
    free(dx.data);
    free(dy.data);
    free(call.saved);
    free(call.workspace);
    moec_threads_destroy(threads);
    moec_model_destroy(model);
    return 0;
}
