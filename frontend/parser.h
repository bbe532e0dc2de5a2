/* parser: what parse.c (items, statements) and parse_expr.c (expressions, routes, moe) share. */
#ifndef MC_FRONTEND_PARSER_H
#define MC_FRONTEND_PARSER_H

#include "frontend/ast.h"
#include "frontend/lex.h"

enum { MC_MAX_NESTING = 200 };

typedef struct mc_parser {
    mc_arena *arena;
    mc_diags *diags;
    mc_tokens tokens;
    size_t at;
    int nesting;
    bool panic; /* an error was reported and the parser has not yet found firm ground: stay silent */
} mc_parser;

/* Tokens. */
const mc_token *mc_parser_peek(const mc_parser *p, size_t ahead);
bool mc_parser_is(const mc_parser *p, mc_token_kind kind);
bool mc_parser_is_word(const mc_parser *p, const char *word);
const mc_token *mc_parser_next(mc_parser *p);
bool mc_parser_accept(mc_parser *p, mc_token_kind kind);
bool mc_parser_accept_word(mc_parser *p, const char *word);
/* Reports E0101 when the token is another; returns whether it was there. */
bool mc_parser_expect(mc_parser *p, mc_token_kind kind);
mc_word mc_parser_name(mc_parser *p, const char *what);
mc_word mc_parser_string(mc_parser *p, const char *what);
mc_word mc_parser_label(mc_parser *p); /* [ "@" NAME ] */
void mc_parser_newlines(mc_parser *p);
/* End of a statement: newline, `;`, or before `}`. */
void mc_parser_end_statement(mc_parser *p);
/* Reports at the present token unless panicking, and panics. */
void mc_parser_error(mc_parser *p, mc_code code, const char *format, ...) MOEC_PRINTF(3, 4);
/* After an error inside { }: to just after the next end of statement, or to the closing brace. */
void mc_parser_recover(mc_parser *p);
mc_span mc_parser_span_from(const mc_parser *p, mc_span begin); /* up to the last token taken */
bool mc_parser_enter(mc_parser *p);                             /* one level deeper; false (and E0108) when too deep */
void mc_parser_leave(mc_parser *p);

/* parse_expr.c */
mc_expr *mc_parse_expr(mc_parser *p); /* never NULL */
mc_arg *mc_parse_args(mc_parser *p);  /* "(" ... ")" */
mc_arg *mc_parse_setting(mc_parser *p);
mc_route_stage *mc_parse_pipe(mc_parser *p);
mc_route_stage *mc_parse_stage(mc_parser *p);

/* parse_moe.c */
mc_expr *mc_parse_moe(mc_parser *p);
mc_expr *mc_parse_route(mc_parser *p);

#endif
