/* cpu_ops_cases: executable texts (format: tests/exec/README.md) with sizes that fit no vector, for every kernel of the
 * CPU backend that is not a matrix kernel. */
#ifndef MC_TESTS_CPU_OPS_CASES_H
#define MC_TESTS_CPU_OPS_CASES_H

#include <stdint.h>

typedef struct cpu_ops_case {
    const char *name;
    int64_t cut_at; /* positions of the first piece when the first run is cut in two; 0: it cannot be */
    const char *text;
} cpu_ops_case;

#define HEAD "moir 1 stage=tensor\ndim B\ndim S\ndim C\n"

static const cpu_ops_case cpu_ops_cases[] = {
    {"sdpa_gqa", 13,
     HEAD "model @m(%q: f32[B, S, 6, 20], %k: f32[B, S, 2, 20], %v: f32[B, S, 2, 11]) -> (f32[B, S, 6, 11]) {\n"
          "  %kc = cache %k : f32[B, C, 2, 20]\n"
          "  %vc = cache %v : f32[B, C, 2, 11]\n"
          "  %o = sdpa %q, %kc, %vc {scale = 0.3} : f32[B, S, 6, 11]\n"
          "  return %o\n}\n"
          "#: run\n#: input f32[2, 37, 6, 20] = normal 1\n#: input f32[2, 37, 2, 20] = normal 2\n"
          "#: input f32[2, 37, 2, 11] = normal 3\n"},
};

enum { N_CPU_OPS_CASES = sizeof cpu_ops_cases / sizeof *cpu_ops_cases };

#endif
