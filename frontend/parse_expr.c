/* Expressions: one function per level of precedence, loosest first, as in the grammar of docs/LANGUAGE.md. */
#include "frontend/parser.h"

static mc_expr *
node(mc_parser *p, mc_expr_kind kind, mc_span span)
{
    mc_expr *e = MC_NEW(p->arena, mc_expr);
    e->kind = kind;
    e->span = span;
    return e;
}

static mc_expr *
binary(mc_parser *p, mc_binop op, mc_expr *a, mc_expr *b)
{
    mc_expr *e = node(p, MC_EXPR_BINARY, mc_span_join(a->span, b->span));
    e->op = op;
    e->a = a;
    e->b = b;
    return e;
}

/* [ NAME "=" ] expr */
static mc_arg *
parse_arg(mc_parser *p)
{
    mc_arg *arg = MC_NEW(p->arena, mc_arg);
    if (mc_parser_is(p, MC_TOKEN_NAME) && mc_parser_peek(p, 1)->kind == MC_TOKEN_ASSIGN) {
        arg->name = mc_parser_name(p, "an argument");
        mc_parser_next(p);
    }
    arg->value = mc_parse_expr(p);
    return arg;
}

mc_arg *
mc_parse_setting(mc_parser *p)
{
    mc_arg *first = NULL, **link = &first;
    do {
        *link = parse_arg(p);
        link = &(*link)->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_COMMA));
    return first;
}

mc_arg *
mc_parse_args(mc_parser *p)
{
    mc_arg *first = NULL, **link = &first;
    mc_parser_expect(p, MC_TOKEN_LPAREN);
    while (!p->panic && !mc_parser_is(p, MC_TOKEN_RPAREN)) {
        *link = parse_arg(p);
        link = &(*link)->next;
        if (!mc_parser_accept(p, MC_TOKEN_COMMA)) break;
    }
    if (!p->panic) mc_parser_expect(p, MC_TOKEN_RPAREN);
    return first;
}

mc_route_stage *
mc_parse_stage(mc_parser *p)
{
    mc_route_stage *stage = MC_NEW(p->arena, mc_route_stage);
    stage->name = mc_parser_name(p, "a stage");
    stage->label = mc_parser_label(p);
    if (mc_parser_is(p, MC_TOKEN_LPAREN)) {
        stage->args = mc_parse_args(p);
    } else if (mc_parser_is(p, MC_TOKEN_INT) || mc_parser_is(p, MC_TOKEN_REAL)) {
        const mc_token *t = mc_parser_next(p);
        stage->args = MC_NEW(p->arena, mc_arg);
        stage->args->value = node(p, t->kind == MC_TOKEN_INT ? MC_EXPR_INT : MC_EXPR_REAL, t->span);
        if (t->kind == MC_TOKEN_INT)
            stage->args->value->as.integer = t->as.integer;
        else
            stage->args->value->as.real = t->as.real;
    }
    stage->span = mc_parser_span_from(p, stage->name.span);
    return stage;
}

mc_route_stage *
mc_parse_pipe(mc_parser *p)
{
    mc_route_stage *first = NULL, **link = &first;
    do {
        *link = mc_parse_stage(p);
        link = &(*link)->next;
    } while (!p->panic && mc_parser_accept(p, MC_TOKEN_BAR));
    return first;
}

static mc_expr *
parse_list(mc_parser *p)
{
    mc_span begin = mc_parser_next(p)->span;
    mc_expr *e = node(p, MC_EXPR_LIST, begin);
    mc_arg **link = &e->items;
    while (!p->panic && !mc_parser_is(p, MC_TOKEN_RBRACKET)) {
        *link = MC_NEW(p->arena, mc_arg);
        (*link)->value = mc_parse_expr(p);
        link = &(*link)->next;
        if (!mc_parser_accept(p, MC_TOKEN_COMMA)) break;
    }
    if (!p->panic) mc_parser_expect(p, MC_TOKEN_RBRACKET);
    e->span = mc_parser_span_from(p, begin);
    return e;
}

/* "@" NAME { "." ( NAME | INT ) }. The lexer may have read `.0.` as part of a number: `layers.0.w` is NAME DOT INT DOT
 * NAME, but `a.0.1` would be a real; weight labels after a number start with a letter, so that does not occur. */
static mc_expr *
parse_weight_ref(mc_parser *p)
{
    mc_span begin = mc_parser_next(p)->span;
    mc_buf path = {0};
    mc_buf_str(&path, mc_parser_name(p, "the path of a weight").text);
    while (!p->panic && mc_parser_is(p, MC_TOKEN_DOT)) {
        mc_parser_next(p);
        mc_buf_putc(&path, '.');
        if (mc_parser_is(p, MC_TOKEN_NAME) || mc_parser_is(p, MC_TOKEN_INT))
            mc_buf_str(&path, mc_parser_next(p)->text);
        else
            mc_parser_error(p, MC_E0101, "expected a name or number after '.' in the path of a weight");
    }
    mc_expr *e = node(p, MC_EXPR_WEIGHT, mc_parser_span_from(p, begin));
    e->as.text = mc_str_dup(p->arena, mc_buf_view(&path));
    mc_buf_fini(&path);
    return e;
}

static mc_expr *
parse_word(mc_parser *p)
{
    const mc_token *t = mc_parser_peek(p, 0);
    mc_token_kind after = mc_parser_peek(p, 1)->kind;
    if (mc_str_is(t->text, "moe")) return mc_parse_moe(p);
    if (mc_str_is(t->text, "route") && (after == MC_TOKEN_LPAREN || after == MC_TOKEN_AT)) return mc_parse_route(p);
    mc_parser_next(p);
    if (mc_str_is(t->text, "none")) return node(p, MC_EXPR_NONE, t->span);
    bool truth = mc_str_is(t->text, "true");
    mc_expr *e = node(p, truth || mc_str_is(t->text, "false") ? MC_EXPR_BOOL : MC_EXPR_NAME, t->span);
    if (e->kind == MC_EXPR_BOOL)
        e->as.boolean = truth;
    else
        e->as.text = t->text;
    return e;
}

static mc_expr *
parse_atom(mc_parser *p)
{
    const mc_token *t = mc_parser_peek(p, 0);
    mc_expr *e;
    switch ((int)t->kind) {
    case MC_TOKEN_INT:
        e = node(p, MC_EXPR_INT, mc_parser_next(p)->span);
        e->as.integer = t->as.integer;
        return e;
    case MC_TOKEN_REAL:
        e = node(p, MC_EXPR_REAL, mc_parser_next(p)->span);
        e->as.real = t->as.real;
        return e;
    case MC_TOKEN_STRING:
        e = node(p, MC_EXPR_STRING, mc_parser_next(p)->span);
        e->as.text = t->text;
        return e;
    case MC_TOKEN_NAME: return parse_word(p);
    case MC_TOKEN_AT: return parse_weight_ref(p);
    case MC_TOKEN_LBRACKET: return parse_list(p);
    case MC_TOKEN_LPAREN:
        mc_parser_next(p);
        e = mc_parse_expr(p);
        if (!p->panic) mc_parser_expect(p, MC_TOKEN_RPAREN);
        e->span = mc_parser_span_from(p, t->span); /* with its brackets, so that spans can be cut out and replaced */
        return e;
    default:
        mc_parser_error(p, MC_E0101, "expected a value before %s", mc_token_kind_text(t->kind));
        return node(p, MC_EXPR_ERROR, t->span);
    }
}

/* "..." | expr | [ expr ] ":" [ expr ] */
static mc_expr *
parse_index(mc_parser *p)
{
    mc_span begin = mc_parser_peek(p, 0)->span;
    if (mc_parser_accept(p, MC_TOKEN_ELLIPSIS)) return node(p, MC_EXPR_ELLIPSIS, begin);
    mc_expr *from = mc_parser_is(p, MC_TOKEN_COLON) ? NULL : mc_parse_expr(p);
    if (!mc_parser_accept(p, MC_TOKEN_COLON)) return from;
    mc_expr *e = node(p, MC_EXPR_SLICE, begin);
    e->a = from;
    if (!mc_parser_is(p, MC_TOKEN_COMMA) && !mc_parser_is(p, MC_TOKEN_RBRACKET)) e->b = mc_parse_expr(p);
    e->span = mc_parser_span_from(p, begin);
    return e;
}

static mc_expr *
parse_subscript(mc_parser *p, mc_expr *a)
{
    mc_expr *e = node(p, MC_EXPR_INDEX, a->span);
    e->a = a;
    mc_arg **link = &e->items;
    mc_parser_next(p);
    while (!p->panic && !mc_parser_is(p, MC_TOKEN_RBRACKET)) {
        *link = MC_NEW(p->arena, mc_arg);
        (*link)->value = parse_index(p);
        link = &(*link)->next;
        if (!mc_parser_accept(p, MC_TOKEN_COMMA)) break;
    }
    if (!p->panic) mc_parser_expect(p, MC_TOKEN_RBRACKET);
    e->span = mc_parser_span_from(p, a->span);
    return e;
}

static mc_expr *
parse_postfix(mc_parser *p)
{
    mc_expr *e = parse_atom(p);
    while (!p->panic) {
        bool labelled = mc_parser_is(p, MC_TOKEN_AT) && e->kind == MC_EXPR_NAME;
        if (labelled || mc_parser_is(p, MC_TOKEN_LPAREN)) {
            mc_expr *call = node(p, MC_EXPR_CALL, e->span);
            call->a = e;
            call->label = mc_parser_label(p);
            if (!p->panic) call->items = mc_parse_args(p);
            call->span = mc_parser_span_from(p, e->span);
            e = call;
        } else if (mc_parser_is(p, MC_TOKEN_LBRACKET)) {
            e = parse_subscript(p, e);
        } else {
            break;
        }
    }
    return e;
}

/* power = postfix [ "^" unary ], unary = "-" unary | power: 2 ^ -1 and -2 ^ 2 = -(2 ^ 2) */
static mc_expr *
parse_unary(mc_parser *p)
{
    if (!mc_parser_enter(p)) return node(p, MC_EXPR_ERROR, mc_parser_peek(p, 0)->span);
    mc_span begin = mc_parser_peek(p, 0)->span;
    mc_expr *e;
    if (mc_parser_accept(p, MC_TOKEN_MINUS)) {
        e = node(p, MC_EXPR_NEG, begin);
        e->a = parse_unary(p);
        e->span = mc_span_join(begin, e->a->span);
    } else {
        e = parse_postfix(p);
        if (!p->panic && mc_parser_accept(p, MC_TOKEN_CARET)) e = binary(p, MC_BIN_POW, e, parse_unary(p));
    }
    mc_parser_leave(p);
    return e;
}

typedef struct level {
    mc_token_kind token;
    mc_binop op;
} level;

static const level terms[] = {
    {MC_TOKEN_STAR, MC_BIN_MUL}, {MC_TOKEN_SLASH, MC_BIN_DIV}, {MC_TOKEN_PERCENT, MC_BIN_MOD}, {MC_TOKEN_END, 0}};
static const level sums[] = {{MC_TOKEN_PLUS, MC_BIN_ADD}, {MC_TOKEN_MINUS, MC_BIN_SUB}, {MC_TOKEN_END, 0}};
static const level comparisons[] = {{MC_TOKEN_EQ, MC_BIN_EQ}, {MC_TOKEN_NE, MC_BIN_NE}, {MC_TOKEN_LE, MC_BIN_LE},
                                    {MC_TOKEN_GE, MC_BIN_GE}, {MC_TOKEN_LT, MC_BIN_LT}, {MC_TOKEN_GT, MC_BIN_GT},
                                    {MC_TOKEN_END, 0}};

static bool
accept_level(mc_parser *p, const level *table, mc_binop *op)
{
    if (p->panic) return false;
    for (; table->token != MC_TOKEN_END; table++) {
        if (!mc_parser_accept(p, table->token)) continue;
        *op = table->op;
        return true;
    }
    return false;
}

static mc_expr *
parse_term(mc_parser *p)
{
    mc_expr *e = parse_unary(p);
    for (mc_binop op; accept_level(p, terms, &op);) e = binary(p, op, e, parse_unary(p));
    return e;
}

static mc_expr *
parse_sum(mc_parser *p)
{
    mc_expr *e = parse_term(p);
    for (mc_binop op; accept_level(p, sums, &op);) e = binary(p, op, e, parse_term(p));
    return e;
}

static mc_expr *
parse_range(mc_parser *p)
{
    mc_expr *e = parse_sum(p);
    if (!p->panic && mc_parser_accept(p, MC_TOKEN_RANGE)) e = binary(p, MC_BIN_RANGE, e, parse_sum(p));
    return e;
}

static mc_expr *
parse_comparison(mc_parser *p)
{
    mc_expr *e = parse_range(p);
    for (;;) {
        mc_binop op = MC_BIN_IN;
        if (p->panic || !(accept_level(p, comparisons, &op) || mc_parser_accept_word(p, "in"))) return e;
        e = binary(p, op, e, parse_range(p));
    }
}

static mc_expr *
parse_not(mc_parser *p)
{
    mc_span begin = mc_parser_peek(p, 0)->span;
    if (!mc_parser_accept_word(p, "not")) return parse_comparison(p);
    mc_expr *e = node(p, MC_EXPR_NOT, begin);
    if (!mc_parser_enter(p)) return e->kind = MC_EXPR_ERROR, e;
    e->a = parse_not(p);
    mc_parser_leave(p);
    e->span = mc_span_join(begin, e->a->span);
    return e;
}

static mc_expr *
parse_and(mc_parser *p)
{
    mc_expr *e = parse_not(p);
    while (!p->panic && mc_parser_accept_word(p, "and")) e = binary(p, MC_BIN_AND, e, parse_not(p));
    return e;
}

static mc_expr *
parse_or(mc_parser *p)
{
    mc_expr *e = parse_and(p);
    while (!p->panic && mc_parser_accept_word(p, "or")) e = binary(p, MC_BIN_OR, e, parse_and(p));
    return e;
}

mc_expr *
mc_parse_expr(mc_parser *p)
{
    if (!mc_parser_enter(p)) return node(p, MC_EXPR_ERROR, mc_parser_peek(p, 0)->span);
    mc_expr *e = parse_or(p);
    if (!p->panic && mc_parser_accept(p, MC_TOKEN_QUESTION)) {
        mc_expr *choice = node(p, MC_EXPR_COND, e->span);
        choice->a = e;
        choice->b = mc_parse_expr(p);
        if (!p->panic) mc_parser_expect(p, MC_TOKEN_COLON);
        choice->c = p->panic ? node(p, MC_EXPR_ERROR, e->span) : mc_parse_expr(p);
        choice->span = mc_span_join(e->span, choice->c->span);
        e = choice;
    }
    mc_parser_leave(p);
    return e;
}
