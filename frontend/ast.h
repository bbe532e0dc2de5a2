/* ast: what the parser makes of a .moe text, one struct per construct of docs/LANGUAGE.md. Every node has a span.
 * Nodes live in the arena given to the parser. Lists are linked through `next` in the order of the text. */
#ifndef MC_FRONTEND_AST_H
#define MC_FRONTEND_AST_H

#include "ir/source.h"

typedef struct mc_expr mc_expr;
typedef struct mc_arg mc_arg;
typedef struct mc_route_stage mc_route_stage;
typedef struct mc_stmt mc_stmt;

/* A word of the text with its place. */
typedef struct mc_word {
    mc_str text; /* empty: absent */
    mc_span span;
} mc_word;

typedef enum mc_expr_kind {
    MC_EXPR_INT,
    MC_EXPR_REAL,
    MC_EXPR_STRING,
    MC_EXPR_BOOL,
    MC_EXPR_NONE,   /* the word none */
    MC_EXPR_NAME,   /* text */
    MC_EXPR_WEIGHT, /* @a.b.c: text without the @ */
    MC_EXPR_LIST,   /* items */
    MC_EXPR_COND,   /* a ? b : c */
    MC_EXPR_NOT,    /* a */
    MC_EXPR_NEG,    /* a */
    MC_EXPR_BINARY, /* a op b; range `..` included */
    MC_EXPR_INDEX,  /* a [ items ]; an item may be a SLICE or ELLIPSIS */
    MC_EXPR_SLICE,  /* a : b, either may be NULL */
    MC_EXPR_ELLIPSIS,
    MC_EXPR_CALL,  /* a @label ( items ) */
    MC_EXPR_MOE,   /* moe */
    MC_EXPR_ROUTE, /* route@label(items) { stages } */
    MC_EXPR_ERROR  /* could not be parsed; already reported */
} mc_expr_kind;

typedef enum mc_binop {
    MC_BIN_OR,
    MC_BIN_AND,
    MC_BIN_EQ,
    MC_BIN_NE,
    MC_BIN_LT,
    MC_BIN_GT,
    MC_BIN_LE,
    MC_BIN_GE,
    MC_BIN_IN,
    MC_BIN_RANGE,
    MC_BIN_ADD,
    MC_BIN_SUB,
    MC_BIN_MUL,
    MC_BIN_DIV,
    MC_BIN_MOD,
    MC_BIN_POW
} mc_binop;

/* `name = value` or `value`, in calls, lists (never named) and settings. */
struct mc_arg {
    mc_word name;
    mc_expr *value;
    mc_arg *next;
};

/* name@label(args), or name NUMBER: a stage of a route, of a gate, or of a weights rule. */
struct mc_route_stage {
    mc_word name, label;
    mc_arg *args;
    mc_span span;
    mc_route_stage *next;
};

typedef enum mc_clause_kind {
    MC_CLAUSE_ROUTE,    /* stages */
    MC_CLAUSE_EXPERTS,  /* label, count, of, gate (never) */
    MC_CLAUSE_SHARED,   /* label, count, of, gate */
    MC_CLAUSE_IDENTITY, /* args */
    MC_CLAUSE_LATENT,   /* args */
    MC_CLAUSE_CAPACITY, /* args */
    MC_CLAUSE_COMBINE   /* args */
} mc_clause_kind;

typedef struct mc_clause mc_clause;
struct mc_clause {
    mc_clause_kind kind;
    mc_span span; /* of the keyword */
    mc_word label;
    mc_expr *count, *of;
    mc_route_stage *stages; /* of ROUTE, or the gate of SHARED */
    mc_arg *args;
    mc_clause *next;
};

struct mc_expr {
    mc_expr_kind kind;
    mc_span span;
    union {
        int64_t integer;
        double real;
        bool boolean;
        mc_str text;
    } as;
    mc_binop op;
    mc_expr *a, *b, *c;
    mc_arg *items;          /* LIST, INDEX, CALL, ROUTE, MOE: its arguments */
    mc_word label;          /* CALL, MOE, ROUTE */
    mc_route_stage *stages; /* ROUTE */
    mc_clause *clauses;     /* MOE */
};

/* f32[B, S, 4096]; the dtype may be absent. A dim of kind ELLIPSIS is `...`. */
typedef struct mc_type_expr {
    mc_word dtype;
    mc_arg *dims;
    mc_span span;
} mc_type_expr;

typedef struct mc_formal mc_formal;
struct mc_formal {
    mc_word name; /* absent for a single unnamed result */
    bool is_tensor;
    mc_type_expr type; /* of a tensor */
    mc_expr *initial;  /* default of a compile-time formal, or NULL */
    mc_formal *next;
};

typedef enum mc_stmt_kind {
    MC_STMT_WEIGHT, /* name, type, value = init or NULL */
    MC_STMT_IF,     /* value, body, otherwise (may be NULL) */
    MC_STMT_REPEAT, /* label, value = count, name = index (may be absent), body */
    MC_STMT_RETURN, /* values */
    MC_STMT_ASSERT, /* value, text */
    MC_STMT_SET     /* names = values */
} mc_stmt_kind;

typedef struct mc_name_list mc_name_list;
struct mc_name_list {
    mc_word word;
    mc_name_list *next;
};

struct mc_stmt {
    mc_stmt_kind kind;
    mc_span span;
    mc_word name, label;
    mc_type_expr type;
    mc_expr *value;
    mc_word text; /* the string of assert, without quotes */
    mc_name_list *names;
    mc_arg *values;
    mc_stmt *body, *otherwise;
    mc_stmt *next;
};

/* "target", "target" <- "source" | stages      or      ignore "pattern", ... (sources empty) */
typedef struct mc_rule mc_rule;
struct mc_rule {
    bool is_ignore;
    mc_span span;
    mc_name_list *targets; /* strings without quotes; the patterns of ignore */
    mc_word source;
    mc_route_stage *stages;
    mc_rule *next;
};

typedef struct mc_setting mc_setting; /* a line of precision, place or train */
struct mc_setting {
    mc_word name;
    mc_arg *args;
    mc_setting *next;
};

typedef enum mc_item_kind {
    MC_ITEM_USE,     /* text */
    MC_ITEM_DIM,     /* name, value = range or NULL; one item per name */
    MC_ITEM_PARAM,   /* name, value; one item per name */
    MC_ITEM_DEFAULT, /* name, args */
    MC_ITEM_ASSERT,  /* value, text */
    MC_ITEM_BLOCK,   /* name, formals, results, body */
    MC_ITEM_MODEL,
    MC_ITEM_WEIGHTS,   /* name (may be absent), rules */
    MC_ITEM_PRECISION, /* settings */
    MC_ITEM_PLACE,
    MC_ITEM_TRAIN
} mc_item_kind;

typedef struct mc_item mc_item;
struct mc_item {
    mc_item_kind kind;
    mc_span span; /* of the keyword (and name) */
    mc_word name, text;
    mc_expr *value;
    mc_arg *args;
    mc_formal *formals, *results;
    mc_stmt *body;
    mc_rule *rules;
    mc_setting *settings;
    mc_item *next;
};

typedef struct mc_file {
    int64_t version;
    mc_item *items;
    mc_span span;
} mc_file;

#endif
