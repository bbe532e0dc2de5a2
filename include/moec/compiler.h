/* moec/compiler.h: compiling a .moe text in this process, to run it here or to keep it.
 *
 *     moec_compiled *compiled;
 *     moec_model *model;
 *     moec_compile_options options = {.on_diagnostic = print_it};
 *     if (moec_compile_file("layer.moe", &options, &compiled) == MOEC_OK &&
 *         moec_compiled_load(compiled, &model, &error) == MOEC_OK) {
 *         ... moec_weights_open(model, ...), moec_session_create(...): moec/runtime.h
 *     }
 *     moec_compiled_destroy(compiled);      after the model and its sessions
 *
 * Compiles share nothing: any number may run at once, one a thread. Nothing here prints or exits.
 */
#ifndef MOEC_COMPILER_H
#define MOEC_COMPILER_H

#include "moec/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_compiled moec_compiled;

typedef enum moec_severity { MOEC_SEVERITY_ERROR, MOEC_SEVERITY_WARNING, MOEC_SEVERITY_REMARK } moec_severity;

/* Everything in it is borrowed for the duration of the callback. */
typedef struct moec_diagnostic {
    moec_severity severity;
    const char *code;     /* "E0310"; `moec explain E0310` says more */
    const char *message;  /* the sentence alone */
    const char *file;     /* "" when there is no place in a text */
    int line, column;     /* from 1; 0 when there is no place */
    const char *rendered; /* the whole report: place, message, source line with carets, notes; ends with a newline */
    const char *json;     /* the same as one line of JSON */
} moec_diagnostic;

typedef void moec_diagnostic_fn(void *user, const moec_diagnostic *diagnostic);

/* Zero-initialise; zero means the default. Strings are borrowed during the call. */
typedef struct moec_compile_options {
    const char *model;          /* which model of the file; NULL: the only one */
    const char *const *defines; /* "D=1024": overrides of params */
    size_t n_defines;
    const char *const *settings; /* "precision.storage=f32", "place.mesh=ep=8" */
    size_t n_settings;
    const char *config; /* config.json or the directory that holds it, for config(...) */
    const char *map;    /* which `weights NAME`; NULL: the first */
    const char *target; /* "native" (NULL), "x86-64-v3", "x86-64-v4", "aarch64" */
    const char *gpu;    /* "sm_90a", "sm_80,sm_90a", "all": code for GPUs; then for a CPU only when `target` is given */
    const char *dump_dir; /* with gpu: gets the source, PTX, code and resources of every kernel; NULL: nothing */
    const char *name;     /* of the artefact: a C identifier; NULL: the model's name */
    const char *pipeline; /* passes; NULL: "@default" */
    const char *cache;    /* directory of compiled code; NULL: the default; "": none */
    bool train;           /* forward and backward (moec/train.h) instead of inference; parameters are f32 */
    bool recompute;       /* with train: save inputs and routing only, compute the rest again in backward */
    const char *mesh;     /* ranks, over what the text's place block says: "ep=4", "dp=2,ep=4"; a model for several runs
                             with     a moec_comm (moec/comm.h) */
    const char *frozen;   /* with train: globs of parameter paths without gradient, by commas: "embed.**,**.norm.*" */
    bool remarks;         /* report remarks too (what was fused, and why not) */
    bool color;           /* in `rendered` */
    moec_diagnostic_fn *on_diagnostic;
    void *user;
} moec_compile_options;

/* Compiles a text or file. `name` appears in diagnostics. Diagnostics go to options->on_diagnostic (NULL: dropped).
 * A text compiled before, with the same options, target and version of moec, comes from the cache directory
 * ($MOEC_CACHE, else $XDG_CACHE_HOME/moec, else ~/.cache/moec; verified on load).
 * Errors: SYNTAX (diagnostics say what), NOT_FOUND and IO (the file), UNSUPPORTED (target or operation), INTERNAL. */
MOEC_API moec_status moec_compile_text(const char *name, const char *text, size_t n_bytes,
                                       const moec_compile_options *options, moec_compiled **out_compiled) MOEC_MUST_USE;
MOEC_API moec_status moec_compile_file(const char *path, const moec_compile_options *options,
                                       moec_compiled **out_compiled) MOEC_MUST_USE;
/* Models loaded from it, their weights and sessions must be gone. NULL is allowed. */
MOEC_API void moec_compiled_destroy(moec_compiled *compiled);

/* The object file (ELF) of CPU code, valid until destroy; NULL and 0 when there is none. */
MOEC_API const void *moec_compiled_object(const moec_compiled *compiled, size_t *out_n_bytes);
/* The image of GPU code (moec_model_from_image), likewise. */
MOEC_API const void *moec_compiled_image(const moec_compiled *compiled, size_t *out_n_bytes);
MOEC_API const char *moec_compiled_name(const moec_compiled *compiled);
/* What was fused, what is in FP8 and why the rest is not: one line. */
MOEC_API const char *moec_compiled_summary(const moec_compiled *compiled);
MOEC_API bool moec_compiled_from_cache(const moec_compiled *compiled);

/* Links the CPU code into this process, or opens the GPU code when there is no other. The model lives inside
 * `compiled`. Errors: UNSUPPORTED (compiled for another processor), INTERNAL. */
MOEC_API moec_status moec_compiled_load(moec_compiled *compiled, moec_model **out_model,
                                        moec_error *error) MOEC_MUST_USE;
/* The model for GPUs. Errors: UNSUPPORTED (compiled without `gpu`), INTERNAL, MEMORY. */
MOEC_API moec_status moec_compiled_load_gpu(moec_compiled *compiled, moec_model **out_model,
                                            moec_error *error) MOEC_MUST_USE;

/* Writes an executable, a shared library or an archive (with its header beside it), by way of the system's linker.
 * Written to a temporary name first: on an error nothing is left at `path`.
 * Errors: NOT_FOUND (no linker, E0604), UNSUPPORTED (an executable of a model compiled for training), IO. */
typedef enum moec_artefact {
    MOEC_EXECUTABLE,
    MOEC_SHARED_LIBRARY,
    MOEC_ARCHIVE,
    MOEC_OBJECT,
    MOEC_HEADER
} moec_artefact;
MOEC_API moec_status moec_compiled_write(const moec_compiled *compiled, moec_artefact kind, const char *path,
                                         moec_error *error) MOEC_MUST_USE;

#ifdef __cplusplus
}
#endif
#endif
