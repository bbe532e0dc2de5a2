/* Compiles and runs texts in several threads at once; a faulty text among them reports through its own callback. The
 * same results in every thread. Also run under the thread sanitizer. */
#define _GNU_SOURCE
#include "moec/moec.h"

#include "tests/api/common.h"

#include <pthread.h>
#include <stdlib.h>

enum { N_WORKERS = 4, N_ROUNDS = 3 };

static const char good_text[] = "moe 1\n"
                                "dim T in 1..64\n"
                                "model layer(x: f32[T, 32]) -> f32[T, 32] {\n"
                                "  return x + moe@ffn(x) {\n"
                                "    route linear@router | softmax | top 2 | renorm\n"
                                "    experts 4 of swiglu(48)\n"
                                "  }\n"
                                "}\n";
static const char bad_text[] = "moe 1\n"
                               "dim T in 1..64\n"
                               "model layer(x: f32[T, 32]) -> f32[T, 32] {\n"
                               "  return x + moe@ffn(x) {\n"
                               "    route linear@router | softmax | top 5 | renorm\n"
                               "    experts 4 of swiglu(48)\n"
                               "  }\n"
                               "}\n";

typedef struct worker {
    pthread_t thread;
    int number, failed, n_errors;
    char code[8];
    float out[N_ROWS * N_COLUMNS];
} worker;

static void
note_error(void *user, const moec_diagnostic *d)
{
    worker *w = user;
    w->n_errors += d->severity == MOEC_SEVERITY_ERROR;
    snprintf(w->code, sizeof w->code, "%s", d->code);
    if (!d->line || !d->column || strcmp(d->file, "text.moe") != 0 || !strstr(d->rendered, d->message) ||
        d->json[0] != '{')
        w->failed = 1;
}

static int
compile_and_run(worker *w)
{
    moec_compile_options options = {.on_diagnostic = note_error, .user = w, .cache = w->number % 2 ? NULL : ""};
    moec_compiled *compiled;
    moec_model *model, *again;
    moec_error error = {{0}};
    if (moec_compile_text("text.moe", good_text, strlen(good_text), &options, &compiled) != MOEC_OK) return 1;
    int failed = moec_compiled_load(compiled, &model, &error) != MOEC_OK;
    if (failed) fprintf(stderr, "%s\n", error.text);
    failed = failed || run_once(model, 1 + (unsigned)w->number % 2, w->out);
    failed = failed || moec_compiled_load(compiled, &again, &error) != MOEC_OK || again != model;
    failed = failed || strcmp(moec_compiled_name(compiled), "layer") != 0 ||
             !strstr(moec_compiled_summary(compiled), "fused");
    moec_compiled_destroy(compiled);
    return failed;
}

static int
compile_faulty(worker *w)
{
    moec_compile_options options = {.on_diagnostic = note_error, .user = w};
    moec_compiled *compiled;
    if (moec_compile_text("text.moe", bad_text, strlen(bad_text), &options, &compiled) != MOEC_ERR_SYNTAX || compiled)
        return 1;
    return w->n_errors != 1 || strcmp(w->code, "E0301") != 0;
}

static void *
work(void *user)
{
    worker *w = user;
    for (int i = 0; i < N_ROUNDS && !w->failed; i++) {
        w->n_errors = 0;
        w->failed |= compile_and_run(w) || w->n_errors || compile_faulty(w);
    }
    return NULL;
}

int
main(void)
{
    static worker workers[N_WORKERS];
    int failed = 0;
    for (int i = 0; i < N_WORKERS; i++) {
        workers[i].number = i;
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) return 2;
    }
    for (int i = 0; i < N_WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        failed |= workers[i].failed;
        if (memcmp(workers[i].out, workers[0].out, sizeof workers[0].out) != 0) {
            fprintf(stderr, "thread %d has another result\n", i);
            failed = 1;
        }
    }
    if (!failed) print_bits("layer", workers[0].out);
    return failed;
}
