/* How long it takes from a text to runnable code in this process: jit [--train] FILE.moe [N=V ...]. Compiled afresh,
 * then from the cache directory, then linked; the least of several times each, wall clock; of the first also the
 * processor's time. With --train: forward and backward.
 */
#define _GNU_SOURCE
#include "moec/moec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_ROUNDS = 5 };

static double
now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void
report(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

/* The least time of a compile, the least that the processor worked on one, and of loading its result; milliseconds. */
static int
measure(const char *path, const moec_compile_options *options, bool cached, double *compile, double *work, double *load)
{
    *compile = *work = *load = 1e30;
    for (int round = 0; round < N_ROUNDS; round++) {
        moec_compiled *compiled;
        moec_model *model;
        moec_error error;
        double begin = now(CLOCK_MONOTONIC), idle = now(CLOCK_PROCESS_CPUTIME_ID);
        if (moec_compile_file(path, options, &compiled) != MOEC_OK) return 1;
        double middle = now(CLOCK_MONOTONIC), worked = now(CLOCK_PROCESS_CPUTIME_ID) - idle;
        if (moec_compiled_load(compiled, &model, &error) != MOEC_OK) {
            fprintf(stderr, "jit: %s\n", error.text);
            moec_compiled_destroy(compiled);
            return 1;
        }
        double end = now(CLOCK_MONOTONIC);
        if (moec_compiled_from_cache(compiled) == cached) {
            if (middle - begin < *compile) *compile = middle - begin;
            if (worked < *work) *work = worked;
            if (end - middle < *load) *load = end - middle;
        }
        moec_compiled_destroy(compiled);
    }
    return 0;
}

int
main(int argc, char **argv)
{
    moec_compile_options options = {.cache = "", .on_diagnostic = report};
    if (argc > 1 && strcmp(argv[1], "--train") == 0) {
        options.train = true;
        argv++;
        argc--;
    }
    if (argc < 2) {
        fputs("usage: jit [--train] FILE.moe [N=V ...]\n", stderr);
        return 2;
    }
    options.defines = (const char *const *)(argv + 2);
    options.n_defines = (size_t)(argc - 2);
    double cold, warm, load, work, ignored;
    if (measure(argv[1], &options, false, &cold, &work, &load)) return 1;
    options.cache = NULL; /* $MOEC_CACHE */
    if (measure(argv[1], &options, true, &warm, &ignored, &load)) return 1;
    printf("%-28s %-8s cold %8.1f ms (%.1f of work)   warm %6.2f ms   link %6.2f ms\n", argv[1],
           options.train ? "training" : "", cold, work, warm, load);
    return 0;
}
