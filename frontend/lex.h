/* lex: text to tokens. A newline becomes a token only where it ends a statement: not inside ( ) or [ ], not after an
 * operator or comma, and not when the next line begins with | ? or : */
#ifndef MC_FRONTEND_LEX_H
#define MC_FRONTEND_LEX_H

#include "ir/diag.h"

typedef enum mc_token_kind {
    MC_TOKEN_END,
    MC_TOKEN_NEWLINE,
    MC_TOKEN_NAME,
    MC_TOKEN_INT,
    MC_TOKEN_REAL,
    MC_TOKEN_STRING, /* text: between the quotes, \" already replaced */
#define MC_PUNCT(name, text, continues) MC_TOKEN_##name,
#include "frontend/tokens.def"
#undef MC_PUNCT
    MC_N_TOKEN_KINDS
} mc_token_kind;

typedef struct mc_token {
    mc_token_kind kind;
    mc_span span;
    mc_str text;
    union {
        int64_t integer;
        double real;
    } as;
} mc_token;

typedef struct mc_tokens {
    mc_token *items; /* the last is MC_TOKEN_END */
    size_t n;
} mc_tokens;

/* Faults are reported and skipped, so the result is always usable. */
mc_tokens mc_lex(mc_arena *arena, const mc_sources *sources, uint32_t file, mc_diags *diags);

/* "'('", "a name", "end of line": for messages. */
const char *mc_token_kind_text(mc_token_kind kind);

#endif
