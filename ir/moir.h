/* moir: what the printer, the lexer and the reader of .moir share. For ir/ only. */
#ifndef MC_IR_MOIR_H
#define MC_IR_MOIR_H

#include "ir/diag.h"

enum { MC_MOIR_VERSION = 1 };

extern const char *const mc_moir_stages[]; /* by mc_stage; ends with NULL */

/* [A-Za-z_][A-Za-z0-9_.]*: what may be printed as a name without change. */
bool mc_moir_is_ident(mc_str text);

typedef enum mc_moir_kind {
    MC_MOIR_END,
    MC_MOIR_IDENT, /* linear, moe.permute, bf16, true */
    MC_MOIR_VALUE, /* %name or %0; text without the % */
    MC_MOIR_FUNC,  /* @name; text without the @ */
    MC_MOIR_INT,
    MC_MOIR_FLOAT,
    MC_MOIR_STRING, /* text is unescaped, in the lexer's arena */
    MC_MOIR_PUNCT   /* one of ( ) [ ] { } , : = * + - _ and the two-byte -> and .. */
} mc_moir_kind;

typedef struct mc_moir_token {
    mc_moir_kind kind;
    mc_span span;
    mc_str text;
    int64_t integer; /* INT */
    double number;   /* FLOAT */
} mc_moir_token;

typedef struct mc_moir_lexer {
    mc_arena *arena;
    mc_diags *diags;
    mc_str text;
    size_t at;
    uint32_t file;
    bool failed; /* a diagnostic was given; the next tokens are END */
} mc_moir_lexer;

mc_moir_token mc_moir_next(mc_moir_lexer *lexer);

#endif
