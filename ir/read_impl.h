/* read_impl: what the three files of the .moir reader share. For ir/ only.
 *   read_type.c  tokens, dimensions, types     read_op.c  one line: an operation     read.c  functions, the module */
#ifndef MC_IR_READ_IMPL_H
#define MC_IR_READ_IMPL_H

#include "ir/ir.h"
#include "ir/moir.h"

enum { MC_READ_MAX_OPERANDS = 4096 };

typedef struct mc_reader {
    mc_moir_lexer lexer;
    mc_moir_token token; /* the one to be read next */
    uint32_t last_end;   /* where the token before it ended */
    mc_arena *arena;
    mc_diags *diags;
    mc_module *module;
    mc_map funcs, values; /* values: of the function being read */
    mc_func *func;
    bool refused; /* something was reported that did not stop the reading */
} mc_reader;

void mc_read_advance(mc_reader *r);
bool mc_read_is(const mc_reader *r, mc_moir_kind kind, const char *text);
/* Consumes the token if it is this one. */
bool mc_read_accept(mc_reader *r, mc_moir_kind kind, const char *text);
/* "expected <wanted>, but found ..."; stops the reading; false. The lexer's own message, if there is one, is enough. */
bool mc_read_malformed(mc_reader *r, const char *wanted);
bool mc_read_expect(mc_reader *r, mc_moir_kind kind, const char *text);
bool mc_read_punct(mc_reader *r, const char *text);
bool mc_read_kind(mc_reader *r, mc_moir_kind kind, const char *wanted, mc_moir_token *out);
bool mc_read_index(mc_reader *r, int32_t *out);
bool mc_read_dim(mc_reader *r, mc_dim *out);
bool mc_read_type(mc_reader *r, const mc_type **out);

/* Makes a value known by its name in the function being read. */
bool mc_read_define(mc_reader *r, mc_moir_token name, mc_value *value);
/* The name, unless it is a number: numbers are given anew when printed. */
mc_str mc_read_hint(mc_moir_token name);
/* One operation, appended to the function being read. */
bool mc_read_line(mc_reader *r);

#endif
