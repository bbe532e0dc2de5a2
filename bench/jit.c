/* How long it takes from a text to runnable code in this process: jit [--train] FILE.moe [N=V ...]. Compiled afresh,
 * then from the cache directory, then linked; the least of several times each, wall clock. With --train: forward and
 * backward.
 */
#define _GNU_SOURCE
#include "moec/moec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_ROUNDS = 5 };

static double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void
report(void *user, const moec_diagnostic *d)
{
    (void)user;
    fputs(d->rendered, stderr);
}

/* The least time of a compile, and of loading its result; in milliseconds. */
static int
measure(const char *path, const moec_compile_options *options, bool cached, double *compile, double *load)
{
    *compile = *load = 1e30;
    for (int round = 0; round < N_ROUNDS; round++) {
        moec_compiled *compiled;
        moec_model *model;
        moec_error error;
        double begin = now();
        if (moec_compile_file(path, options, &compiled) != MOEC_OK) return 1;
        double middle = now();
        if (moec_compiled_load(compiled, &model, &error) != MOEC_OK) {
            fprintf(stderr, "jit: %s\n", error.text);
            moec_compiled_destroy(compiled);
            return 1;
        }
        double end = now();
        if (moec_compiled_from_cache(compiled) == cached) {
            if (middle - begin < *compile) *compile = middle - begin;
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
    double cold, warm, load;
    if (measure(argv[1], &options, false, &cold, &load)) return 1;
    options.cache = NULL; /* $MOEC_CACHE */
    if (measure(argv[1], &options, true, &warm, &load)) return 1;
    printf("%-28s %-8s cold %8.1f ms   warm %6.2f ms   link %6.2f ms\n", argv[1], options.train ? "training" : "", cold,
           warm, load);
    return 0;
}
