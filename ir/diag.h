/* diag: errors, warnings and remarks, collected and never printed here. Codes are in ir/diag.def; the message text
 * stands at the call site, where it can be found and its arguments are checked.
 *
 *     mc_error(d, span, MC_E0301, "top %d of only %d experts", k, n);
 *     mc_note(d, other, "declared here");        attaches to the diagnostic before it
 */
#ifndef MC_IR_DIAG_H
#define MC_IR_DIAG_H

#include "ir/source.h"

typedef enum mc_code {
#define MC_DIAG(code, severity, slug, text) MC_##code,
#include "ir/diag.def"
#undef MC_DIAG
    MC_N_CODES
} mc_code;

typedef enum mc_severity { MC_SEVERITY_ERROR, MC_SEVERITY_WARNING, MC_SEVERITY_REMARK } mc_severity;

typedef struct mc_diag_note {
    mc_span span;
    mc_str text;
} mc_diag_note;

typedef struct mc_diagnostic {
    mc_code code;
    mc_span span;
    mc_str text;
    MC_VEC(mc_diag_note) notes;
} mc_diagnostic;

typedef struct mc_diags {
    mc_arena *arena;
    const mc_sources *sources;
    MC_VEC(mc_diagnostic) list;
    int n_errors, n_warnings, n_remarks;
    bool too_many; /* the cap of 20 errors was reached: later ones are counted, not kept */
    bool dropped;  /* the newest diagnostic was not kept, so its notes are not either */
} mc_diags;

void mc_diags_init(mc_diags *d, mc_arena *arena, const mc_sources *sources);
/* All three return false, so that `return mc_error(...)` reads well. */
bool mc_error(mc_diags *d, mc_span span, mc_code code, const char *format, ...) MOEC_PRINTF(4, 5);
bool mc_warning(mc_diags *d, mc_span span, mc_code code, const char *format, ...) MOEC_PRINTF(4, 5);
bool mc_remark(mc_diags *d, mc_span span, mc_code code, const char *format, ...) MOEC_PRINTF(4, 5);
bool mc_note(mc_diags *d, mc_span span, const char *format, ...) MOEC_PRINTF(3, 4);

const char *mc_code_name(mc_code code); /* "E0301" */
const char *mc_code_slug(mc_code code); /* "top-too-large" */
const char *mc_code_text(mc_code code); /* one line: what the code means */
mc_severity mc_code_severity(mc_code code);
mc_code mc_code_find(mc_str name); /* MC_N_CODES when unknown */

/* file:line:col: error[E0301]: text, the source line with a caret, notes, and (once, at the end) the help line. */
void mc_diag_render(const mc_diags *d, const mc_diagnostic *diagnostic, bool color, mc_buf *out);
void mc_diag_render_json(const mc_diags *d, const mc_diagnostic *diagnostic, mc_buf *out);

#endif
