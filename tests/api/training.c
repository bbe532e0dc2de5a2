/* Trains a layer by a library that `moec compile --train` made: some steps towards a target by plain descent, on one
 * thread and on several; the loss falls, and the bits are the same. Prints the parameters' bits. */
#include "learner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_ROWS = 5, N_COLUMNS = 32, N_STEPS = 20, MAX_PARAMS = 8, ALIGN = 64 };

typedef struct training {
    moec_model *model;
    moec_train_call call;
    size_t n_params;
    size_t n_values[MAX_PARAMS];
    void *params[MAX_PARAMS];
    float *grads[MAX_PARAMS];
    float x[N_ROWS * N_COLUMNS], y[N_ROWS * N_COLUMNS], dy[N_ROWS * N_COLUMNS];
    moec_tensor input, output, cotangent;
} training;

static void *
block(size_t n_bytes)
{
    return aligned_alloc(ALIGN, (n_bytes + ALIGN - 1) / ALIGN * ALIGN);
}

static moec_tensor
rows(float *data)
{
    moec_tensor t;
    memset(&t, 0, sizeof t);
    t.dtype = MOEC_F32;
    t.rank = 2;
    t.dims[0] = N_ROWS;
    t.dims[1] = N_COLUMNS;
    t.data = data;
    t.n_bytes = sizeof(float) * N_ROWS * N_COLUMNS;
    return t;
}

/* 0 when there are too many parameters or no memory. */
static int
make_params(training *t)
{
    t->n_params = moec_train_n_params(t->model);
    if (t->n_params == 0 || t->n_params > MAX_PARAMS) return 0;
    for (size_t p = 0; p < t->n_params; p++) {
        moec_param_info info;
        if (moec_train_param(t->model, p, &info) != MOEC_OK || !info.has_gradient) return 0;
        t->n_values[p] = 1;
        for (unsigned d = 0; d < info.rank; d++) t->n_values[p] *= (size_t)info.dims[d];
        float *values = (float *)block(t->n_values[p] * sizeof(float));
        t->params[p] = values;
        t->grads[p] = (float *)block(t->n_values[p] * sizeof(float));
        if (!values || !t->grads[p]) return 0;
        for (size_t i = 0; i < t->n_values[p]; i++) values[i] = (float)((i * 37 + p * 11) % 101) / 500.0F - 0.1F;
    }
    return 1;
}

static int
make(training *t, unsigned n_threads, moec_error *error)
{
    moec_limit rows_of[1];
    moec_train_sizes sizes;
    memset(t, 0, sizeof *t);
    rows_of[0].name = "T";
    rows_of[0].max = N_ROWS;
    if (learner_open(&t->model, error) != MOEC_OK || !make_params(t) ||
        moec_threads_create(n_threads, &t->call.threads, error) != MOEC_OK ||
        moec_train_query(t->model, rows_of, 1, n_threads, &sizes, error) != MOEC_OK)
        return 0;
    for (int i = 0; i < N_ROWS * N_COLUMNS; i++) t->x[i] = (float)(i * 37 % 101 - 50) / 50.0F;
    t->input = rows(t->x);
    t->output = rows(t->y);
    t->cotangent = rows(t->dy);
    t->call.inputs = &t->input;
    t->call.outputs = &t->output;
    t->call.cotangents = &t->cotangent;
    t->call.n_inputs = t->call.n_outputs = t->call.n_cotangents = 1;
    t->call.params = t->params;
    t->call.param_grads = t->grads;
    t->call.saved = block(t->call.saved_bytes = sizes.saved_bytes);
    t->call.workspace = block(t->call.workspace_bytes = sizes.workspace_bytes);
    return t->call.saved && t->call.workspace;
}

/* Mean square distance from the target; -1 when something failed. */
static double
step(training *t, float rate, moec_error *error)
{
    double loss = 0;
    const int n = N_ROWS * N_COLUMNS;
    if (moec_train_forward(t->model, &t->call, error) != MOEC_OK) return -1;
    for (int i = 0; i < n; i++) {
        float d = t->y[i] - (float)(i % 7 - 3) / 3.0F;
        loss += (double)d * (double)d / n;
        t->dy[i] = 2 * d / (float)n;
    }
    for (size_t p = 0; p < t->n_params; p++) memset(t->grads[p], 0, t->n_values[p] * sizeof(float));
    if (moec_train_backward(t->model, &t->call, error) != MOEC_OK) return -1;
    for (size_t p = 0; p < t->n_params; p++)
        for (size_t i = 0; i < t->n_values[p]; i++) ((float *)t->params[p])[i] -= rate * t->grads[p][i];
    return loss;
}

static int
train(unsigned n_threads)
{
    static training t;
    moec_error error;
    double first = 0, last = 0;
    error.text[0] = 0;
    int failed = !make(&t, n_threads, &error);
    for (int i = 0; i < N_STEPS && !failed; i++) {
        last = step(&t, 1.0F, &error);
        if (i == 0) first = last;
        failed = last < 0;
    }
    if (failed) fprintf(stderr, "training: %s\n", error.text);
    if (!failed && !(last < 0.9 * first)) {
        fprintf(stderr, "the loss was %g and is %g\n", first, last);
        failed = 1;
    }
    if (!failed) printf("%.9g to %.9g\n", first, last);
    for (size_t p = 0; p < t.n_params; p++) {
        unsigned long hash = 5381;
        for (size_t i = 0; i < t.n_values[p] && !failed; i++) {
            unsigned bits;
            memcpy(&bits, (const float *)t.params[p] + i, sizeof bits);
            hash = (hash * 33 + bits) & 0xFFFFFFFFU;
        }
        if (!failed) printf("parameter %u: %08lx\n", (unsigned)p, hash);
        free(t.params[p]);
        free(t.grads[p]);
    }
    free(t.call.saved);
    free(t.call.workspace);
    moec_threads_destroy(t.call.threads);
    moec_model_destroy(t.model);
    return failed;
}

int
main(int argc, char **argv)
{
    return train(argc > 1 ? (unsigned)atoi(argv[1]) : 1);
}
