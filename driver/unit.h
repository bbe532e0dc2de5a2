/* unit: one text on its way through the compiler, with everything that lives as long as it does.
 *
 *     text -> mc_unit_elaborate -> module (tensor) -> mc_unit_passes -> module (plan) -> mc_unit_code -> object
 */
#ifndef MC_DRIVER_UNIT_H
#define MC_DRIVER_UNIT_H

#include "frontend/elaborate.h"
#include "moec/compiler.h"
#include "passes/pass.h"
#include "runtime/base/file.h"

typedef struct mc_unit {
    mc_arena *arena;
    mc_sources sources;
    mc_diags diags;
    const moec_compile_options *options; /* borrowed */
    mc_elab_result elab;                 /* empty for a .moir text */
    mc_module *module;
    bool gpu; /* it becomes code for GPUs: @gpu and @gpu-train are its pipelines */
    uint32_t file;
    size_t n_delivered; /* diagnostics already handed to the callback */
} mc_unit;

void mc_unit_init(mc_unit *u, const moec_compile_options *options);
void mc_unit_fini(mc_unit *u);

/* With code for GPUs, code for a CPU is made only when a target is given. */
bool mc_unit_wants_cpu(const moec_compile_options *options);
/* Passes change a module, so code for GPUs beside a CPU's begins with the same text again: u becomes a unit of it,
 * elaborated; what the text's own reports are, the other unit has said. To be ended like any. False after an error. */
bool mc_unit_begin_gpu(mc_unit *u, const mc_unit *cpu);

/* The text of config.json, given the file or the directory that holds it, in the unit's arena. Reports nothing. */
moec_status mc_unit_read_config(mc_unit *u, const char *path, mc_str *out, mc_fault *fault) MOEC_MUST_USE;

/* All return false after reporting an error. Diagnostics wait in u->diags until mc_unit_deliver. */
bool mc_unit_load(mc_unit *u, const char *path);
bool mc_unit_text(mc_unit *u, const char *name, const char *text, size_t n_bytes);
bool mc_unit_elaborate(mc_unit *u); /* a name that ends in .moir is read as IR instead */
/* options->pipeline, or the one for what the unit becomes. pass_options may be NULL. `nr` is set from the target. */
bool mc_unit_passes(mc_unit *u, const mc_pass_options *pass_options);

/* What was fused, what is in FP8 and why the rest is not: one line, of a module in stage plan. In the unit's arena. */
mc_str mc_unit_summary(mc_unit *u);
/* The artefact's name: options->name, else the model's. */
mc_str mc_unit_name(const mc_unit *u);
/* The status that the diagnostics so far amount to. */
moec_status mc_unit_status(const mc_unit *u);
/* Hands every diagnostic not delivered yet to the callback. */
void mc_unit_deliver(mc_unit *u);

#endif
