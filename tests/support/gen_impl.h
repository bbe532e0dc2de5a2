/* gen_impl: what the generator's files share. A block takes a stream [..., n] in the function being built and returns
 * another, of any width; NULL when an op was refused. */
#ifndef MC_SUPPORT_GEN_IMPL_H
#define MC_SUPPORT_GEN_IMPL_H

#include "ir/build.h"
#include "tests/support/gen_module.h"

typedef struct mc_gen {
    mc_module *module;
    mc_diags *diags;
    uint64_t state; /* of the random numbers */
    int n_names;    /* for weight paths and function names */
    bool by_token, continuous, trainable, f32;
} mc_gen;

/* A function being built. */
typedef struct mc_gen_func {
    mc_gen *gen;
    mc_func *func;
    mc_builder b;
    mc_value *tokens; /* i32[B, S], or NULL */
} mc_gen_func;

/* 0..n-1 */
int mc_gen_pick(mc_gen *g, int n);
bool mc_gen_chance(mc_gen *g, int percent);

#define GEN_OPERANDS(...) ((mc_value *[]){__VA_ARGS__}), (int)(sizeof((mc_value *[]){__VA_ARGS__}) / sizeof(mc_value *))
#define GEN_ATTRS(...)                                                                                                 \
    ((mc_named_attr[]){__VA_ARGS__}), (int)(sizeof((mc_named_attr[]){__VA_ARGS__}) / sizeof(mc_named_attr))
#define GEN_NONE NULL, 0

mc_op *mc_gen_op(mc_gen_func *f, mc_opcode opcode, mc_value *const *operands, int n, const mc_named_attr *attrs,
                 int n_attrs);
/* Its first result. NULL operands at the front mean that something was refused before: NULL again. */
mc_value *mc_gen_make(mc_gen_func *f, mc_opcode opcode, mc_value *const *operands, int n, const mc_named_attr *attrs,
                      int n_attrs);
mc_value *mc_gen_unary(mc_gen_func *f, mc_opcode opcode, mc_value *x);
mc_value *mc_gen_binary(mc_gen_func *f, mc_opcode opcode, mc_value *a, mc_value *b);
/* A weight with a fresh path. experts: for expert bodies, else 0. */
mc_value *mc_gen_weight(mc_gen_func *f, const char *role, moec_dtype dtype, int64_t experts, const int64_t *dims,
                        int rank);
/* x times a fresh weight of n rows, with bias, residual or FP8 scales at random. */
mc_value *mc_gen_linear(mc_gen_func *f, mc_value *x, int64_t n, const char *role, int64_t experts);
/* [lead..., dims...] for the leading axes of x but its last. */
mc_value *mc_gen_reshape(mc_gen_func *f, mc_value *x, const int64_t *tail, int n_tail);
int64_t mc_gen_width(const mc_value *x); /* the last axis */
mc_gen_func mc_gen_func_begin(mc_gen *g, const char *kind);
mc_dim mc_gen_sym(mc_gen *g, const char *name);

typedef mc_value *mc_gen_block(mc_gen_func *f, mc_value *x);
/* One block at random; `plain` leaves out those that call functions. */
mc_value *mc_gen_any_block(mc_gen_func *f, mc_value *x, bool plain);
mc_gen_block mc_gen_moe, mc_gen_expert_ops, mc_gen_primitives;

#endif
