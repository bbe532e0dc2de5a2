/* import: `moec import`. A family file and a config.json become a plain text: numbers filled in, branches that this
 * configuration never takes left out, asserts dropped. The families are data (examples/families, embedded). */
#ifndef MC_FRONTEND_IMPORT_H
#define MC_FRONTEND_IMPORT_H

#include "frontend/elaborate.h"

typedef struct mc_import_options {
    mc_str config;         /* text of config.json */
    const mc_str *defines; /* "NAME=value": replace what the configuration says */
    size_t n_defines;
    mc_str family;      /* text of a family file; empty: the embedded one that the model_type names */
    mc_str family_name; /* for messages, with family */
} mc_import_options;

/* Appends the text, formatted. False after an error (E0906, E0908, E0911, or any of the elaborator's). */
bool mc_import(mc_arena *arena, mc_sources *sources, const mc_import_options *options, mc_diags *diags, mc_buf *out);

/* Appends the precision block that the configuration asks for, if any. False: E0331, a quantisation that cannot be
 * read. */
bool mc_import_precision(mc_str config, mc_buf *out, mc_diags *diags);

#endif
