/* value: what an expression of the language can be: numbers, words, dims, functions and tensors. */
#ifndef MC_FRONTEND_VALUE_H
#define MC_FRONTEND_VALUE_H

#include "frontend/ast.h"
#include "ir/ir.h"

typedef enum mc_val_kind {
    MC_VAL_POISON, /* an error was reported; whatever uses it stays silent */
    MC_VAL_NONE,
    MC_VAL_INT,
    MC_VAL_REAL,
    MC_VAL_BOOL,
    MC_VAL_STRING,
    MC_VAL_WORD, /* adjacent, tail, bf16 ... */
    MC_VAL_DIM,  /* a dimension known at run time */
    MC_VAL_RANGE,
    MC_VAL_LIST,
    MC_VAL_TENSOR,
    MC_VAL_WREF,  /* @path: a weight, looked up where it is used */
    MC_VAL_TUPLE, /* several results of a call */
    MC_VAL_FN,    /* a block or op, perhaps with arguments */
    MC_VAL_ROUTE,
    MC_VAL_SCALING /* of a rotary embedding */
} mc_val_kind;

typedef struct mc_val mc_val;

typedef struct mc_val_list {
    mc_val *items;
    size_t n;
    size_t total; /* items of nested lists included: bounded, since lists may share parts */
} mc_val_list;

typedef struct mc_fn mc_fn;

/* What route@label(x, n) { ... } gives: k choices a token. */
typedef struct mc_route_val {
    mc_value *weights, *ids; /* [..., k] */
    int64_t n_experts, k;
} mc_route_val;

enum { MC_MAX_SCALING_ARGS = 8 };

typedef struct mc_scaling {
    const char *kind; /* as in ir/rope.h */
    double args[MC_MAX_SCALING_ARGS];
    size_t n_args;
} mc_scaling;

struct mc_val {
    mc_val_kind kind;
    mc_span span; /* where it was made */
    union {
        int64_t i;
        double r;
        bool b;
        mc_str s; /* STRING, WORD, WREF */
        mc_dim dim;
        struct {
            int64_t lo, hi; /* both inclusive */
        } range;
        mc_val_list list; /* LIST, TUPLE */
        mc_value *tensor;
        const mc_fn *fn;
        const mc_route_val *route;
        const mc_scaling *scaling;
    } as;
};

/* An argument given to a function; level says how many partial applications came before, later ones win. */
typedef struct mc_fn_arg {
    mc_word name; /* empty: positional */
    mc_val value;
    mc_span span;
    int level;
} mc_fn_arg;

struct mc_fn {
    mc_str name;
    const struct mc_block *block; /* one of these two */
    const struct mc_builtin *builtin;
    mc_word label;
    mc_fn_arg *args;
    size_t n_args;
    bool has_tensor; /* among the arguments, or theirs */
};

mc_val mc_val_poison(void);
mc_val mc_val_none(mc_span span);
mc_val mc_val_int(int64_t i, mc_span span);
mc_val mc_val_real(double r, mc_span span);
mc_val mc_val_bool(bool b, mc_span span);
mc_val mc_val_text(mc_val_kind kind, mc_str s, mc_span span); /* STRING, WORD, WREF */
mc_val mc_val_dim(mc_dim dim, mc_span span);                  /* an INT when constant */
mc_val mc_val_tensor(mc_value *tensor, mc_span span);         /* POISON when NULL */

bool mc_val_is_number(mc_val v);
double mc_val_number(mc_val v);  /* of an INT or REAL */
bool mc_val_is_tensor(mc_val v); /* TENSOR, WREF or ROUTE: what a tensor formal takes */
/* Equal compile-time values. False in *known when that is only known at run time. */
bool mc_val_eq(mc_val a, mc_val b, bool *known);

/* "4096", "1e-05", "[0, 1]", "adjacent": as it could be written in the language. */
void mc_val_print(const mc_module *m, mc_val v, mc_buf *out);
mc_str mc_val_str(const mc_module *m, mc_val v, mc_arena *arena);
/* "a tensor", "a number", ...: for messages. */
const char *mc_val_kind_text(mc_val v);

#endif
