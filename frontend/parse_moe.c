/* The two constructs with braces inside expressions: moe@label(x) { clauses } and route@label(x, n) { stages }. */
#include "frontend/parser.h"

static const struct clause_word {
    const char *word;
    mc_clause_kind kind;
} clause_words[] = {{"route", MC_CLAUSE_ROUTE},       {"experts", MC_CLAUSE_EXPERTS}, {"shared", MC_CLAUSE_SHARED},
                    {"identity", MC_CLAUSE_IDENTITY}, {"latent", MC_CLAUSE_LATENT},   {"capacity", MC_CLAUSE_CAPACITY},
                    {"combine", MC_CLAUSE_COMBINE}};
enum { N_CLAUSES = sizeof clause_words / sizeof clause_words[0] };

static bool
clause_kind(mc_parser *p, mc_clause_kind *kind)
{
    mc_str word = mc_parser_peek(p, 0)->text, names[N_CLAUSES];
    for (int i = 0; i < N_CLAUSES; i++) {
        names[i] = mc_str_of(clause_words[i].word);
        if (!mc_str_eq(word, names[i])) continue;
        *kind = clause_words[i].kind;
        return true;
    }
    mc_str near = mc_str_nearest(word, names, N_CLAUSES);
    const char *list = "route, experts, shared, identity, latent, capacity, combine";
    if (near.len)
        mc_parser_error(p, MC_E0107, "'%.*s' is not a clause of moe: %s (did you mean '%.*s'?)", MC_FMT(word), list,
                        MC_FMT(near));
    else
        mc_parser_error(p, MC_E0107, "'%.*s' is not a clause of moe: %s", MC_FMT(word), list);
    return false;
}

static void
parse_copies(mc_parser *p, mc_clause *c) /* [@label] N of f [gate pipe] */
{
    c->label = mc_parser_label(p);
    c->count = mc_parse_expr(p);
    if (p->panic) return;
    if (!mc_parser_accept_word(p, "of")) {
        mc_parser_error(p, MC_E0101, "expected 'of' and an expert body, as in: experts 8 of swiglu(14336)");
        return;
    }
    c->of = mc_parse_expr(p);
    if (!p->panic && mc_parser_accept_word(p, "gate")) c->stages = mc_parse_pipe(p);
}

static mc_clause *
parse_clause(mc_parser *p)
{
    mc_clause *c = MC_NEW(p->arena, mc_clause);
    c->span = mc_parser_peek(p, 0)->span;
    if (!mc_parser_is(p, MC_TOKEN_NAME)) {
        mc_parser_error(p, MC_E0101, "expected a clause of moe before %s",
                        mc_token_kind_text(mc_parser_peek(p, 0)->kind));
        return NULL;
    }
    if (!clause_kind(p, &c->kind)) return NULL;
    mc_parser_next(p);
    switch (c->kind) {
    case MC_CLAUSE_ROUTE: c->stages = mc_parse_pipe(p); break;
    case MC_CLAUSE_EXPERTS:
    case MC_CLAUSE_SHARED: parse_copies(p, c); break;
    case MC_CLAUSE_IDENTITY:
    case MC_CLAUSE_LATENT:
    case MC_CLAUSE_CAPACITY:
    case MC_CLAUSE_COMBINE: c->args = mc_parse_setting(p); break;
    }
    return p->panic ? NULL : c;
}

static void
parse_head(mc_parser *p, mc_expr *e) /* keyword [@label] ( setting ) { */
{
    mc_parser_next(p);
    e->label = mc_parser_label(p);
    if (p->panic || !mc_parser_expect(p, MC_TOKEN_LPAREN)) return;
    e->items = mc_parse_setting(p);
    if (p->panic || !mc_parser_expect(p, MC_TOKEN_RPAREN)) return;
    mc_parser_expect(p, MC_TOKEN_LBRACE);
}

mc_expr *
mc_parse_moe(mc_parser *p)
{
    mc_expr *e = MC_NEW(p->arena, mc_expr);
    e->kind = MC_EXPR_MOE;
    e->span = mc_parser_peek(p, 0)->span;
    mc_span begin = e->span;
    parse_head(p, e);
    if (p->panic) return e;
    mc_clause **link = &e->clauses;
    for (mc_parser_newlines(p); !mc_parser_is(p, MC_TOKEN_RBRACE) && !mc_parser_is(p, MC_TOKEN_END);
         mc_parser_newlines(p)) {
        *link = parse_clause(p);
        if (*link) link = &(*link)->next;
        if (!p->panic) mc_parser_end_statement(p);
        if (p->panic) mc_parser_recover(p);
    }
    mc_parser_expect(p, MC_TOKEN_RBRACE);
    e->span = mc_parser_span_from(p, begin);
    return e;
}

mc_expr *
mc_parse_route(mc_parser *p)
{
    mc_expr *e = MC_NEW(p->arena, mc_expr);
    e->kind = MC_EXPR_ROUTE;
    e->span = mc_parser_peek(p, 0)->span;
    mc_span begin = e->span;
    parse_head(p, e);
    if (p->panic) return e;
    mc_parser_newlines(p);
    e->stages = mc_parse_pipe(p);
    mc_parser_newlines(p);
    if (!p->panic) mc_parser_expect(p, MC_TOKEN_RBRACE);
    e->span = mc_parser_span_from(p, begin);
    return e;
}
