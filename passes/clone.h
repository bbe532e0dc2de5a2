/* clone: copies of ops into another place, for inlining a body and for making a second version of a function. */
#ifndef MC_PASSES_CLONE_H
#define MC_PASSES_CLONE_H

#include "ir/build.h"

/* Where the values of the source went, and what its symbols stand for in the destination. */
typedef struct mc_clone {
    mc_module *module;
    mc_arena *scratch;
    mc_value **values; /* by id of the source's value */
    uint32_t n_values;
    bool bound[MC_MAX_SYMS];
    mc_dim dims[MC_MAX_SYMS]; /* of the bound symbols */
} mc_clone;

/* Ready to map every value that the module has now. */
mc_clone mc_clone_begin(mc_module *m, mc_arena *scratch);
/* Forgets the symbols; values are overwritten by the next use. */
void mc_clone_unbind(mc_clone *c);
/* Formal `from` becomes `to`: its symbols are bound to to's dims. False: the types do not fit. */
bool mc_clone_formal(mc_clone *c, const mc_value *from, mc_value *to);
/* NULL when a dim leaves the form that dims can have. */
const mc_type *mc_clone_type(mc_clone *c, const mc_type *t);
/* A copy of op before b's cursor with mapped operands and types; NULL as mc_clone_type. Keeps op's span. */
mc_op *mc_clone_op(mc_clone *c, mc_builder *b, const mc_op *op);
/* A second function with the same formals and ops under another name. */
mc_func *mc_clone_func(mc_func *f, mc_str name, mc_arena *scratch);

#endif
