/* The tables of passes.def as data, for the harness, the pipeline parser and the generated documentation. */
#include "ir/op.h"
#include "passes/pass.h"

#include <string.h>

#define NO_OPTIONS
#define OPTIONS(...) __VA_ARGS__
#define OPT(name, value, least, greatest, doc) {#name, value, least, greatest, doc},
#define MC_PASS(ID, function, name, stages, after, need, options, doc)                                                 \
    static const mc_pass_option_info ID##_options[] = {options{NULL, 0, 0, 0, NULL}};
#include "passes/passes.def"
#undef MC_PASS

enum { T = MC_IN_TENSOR, D = MC_IN_DIST, P = MC_IN_PLAN };
enum { SAME, PLAN };
enum { OPTIONAL, REQUIRED };

const mc_pass_info mc_passes[] = {
#define MC_PASS(ID, function, name, stages, after, need, options, doc)                                                 \
    {name,                                                                                                             \
     mc_pass_##function,                                                                                               \
     stages,                                                                                                           \
     (after) == PLAN,                                                                                                  \
     (need) == REQUIRED,                                                                                               \
     ID##_options,                                                                                                     \
     (int)(sizeof ID##_options / sizeof ID##_options[0]) - 1,                                                          \
     doc},
#include "passes/passes.def"
#undef MC_PASS
};
const int mc_n_passes = sizeof mc_passes / sizeof mc_passes[0];

const mc_pass_order mc_pass_orders[] = {
#define MC_BEFORE(first, then, why) {first, then, why},
#include "passes/passes.def"
#undef MC_BEFORE
};
const int mc_n_pass_orders = sizeof mc_pass_orders / sizeof mc_pass_orders[0];

const mc_named_pipeline mc_named_pipelines[] = {
#define MC_PIPELINE(name, text) {name, text},
#include "passes/passes.def"
#undef MC_PIPELINE
};
const int mc_n_named_pipelines = sizeof mc_named_pipelines / sizeof mc_named_pipelines[0];

const mc_pass_info *
mc_pass_find(mc_str name)
{
    for (int i = 0; i < mc_n_passes; i++)
        if (mc_str_is(name, mc_passes[i].name)) return &mc_passes[i];
    return NULL;
}

const mc_named_pipeline *
mc_pipeline_find(mc_str name)
{
    for (int i = 0; i < mc_n_named_pipelines; i++)
        if (mc_str_is(name, mc_named_pipelines[i].name)) return &mc_named_pipelines[i];
    return NULL;
}
