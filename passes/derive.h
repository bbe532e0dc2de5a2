/* derive: what a derivative rule sees. Rules stand in passes/derivatives.def, one for each op; each is a few builder
 * calls:
 *
 *     bool mc_derive_softmax(mc_derive *d)          y = softmax(x):  dx = softmax_grad(y, dy)
 *     {
 *         return mc_d_give(d, 0, mc_d_op2(d, MC_OP_SOFTMAX_GRAD, mc_d_result(d, 0), mc_d_of(d, 0)));
 *     }
 *
 * A NULL value stands for a failure that has been reported; giving it fails the rule. Rules are called only when some
 * result has a derivative and some operand wants one. */
#ifndef MC_PASSES_DERIVE_H
#define MC_PASSES_DERIVE_H

#include "ir/build.h"

typedef struct mc_derive {
    mc_builder b;    /* at the end of the backward function */
    const mc_op *op; /* of the forward function */
    struct mc_backward *backward;
} mc_derive;

typedef bool mc_derive_fn(mc_derive *d);

/* How a result that backward needs comes there. */
typedef enum mc_keep {
    MC_KEEP_CHEAP, /* computed again from the op's operands */
    MC_KEEP_SAVE,  /* saved by forward; with the policy `recompute` computed again */
    MC_KEEP_ROUTE  /* saved always: a decision is made once */
} mc_keep;

typedef struct mc_derivative {
    mc_derive_fn *rule; /* NULL: there is none */
    bool stops;         /* no derivative flows through this op: its results are integers, or no function of floats */
    mc_keep keep;
} mc_derivative;

extern const mc_derivative mc_derivatives[MC_N_OPCODES];

/* The values of forward, as backward sees them. */
mc_value *mc_d_need(mc_derive *d, mc_value *forward);
mc_value *mc_d_operand(mc_derive *d, int i);
mc_value *mc_d_result(mc_derive *d, int i);
/* The derivative of the loss with respect to result i: NULL when nothing flows (mc_d_of_or_zero: zeros then). */
mc_value *mc_d_of(mc_derive *d, int result);
mc_value *mc_d_of_or_zero(mc_derive *d, int result);
/* Whether operand i is there and leads to an input or a trained parameter. */
bool mc_d_wants(const mc_derive *d, int operand);
/* Adds to the derivative with respect to operand i; ignored when it is not wanted. False when gradient is NULL. */
bool mc_d_give(mc_derive *d, int operand, mc_value *gradient);
/* x, one of the rows [A, ...] of experts, ready to be summed over all rows: those that belong to no expert hold
 * anything, and are 0 in what is returned (in another order). x itself when the op's result is not of such rows. */
mc_value *mc_d_defined_rows(mc_derive *d, mc_value *x);
/* E0508 at the op: "<op> <why>". */
bool mc_d_refuse(mc_derive *d, const char *why);

/* One-liners. */
mc_value *mc_d_op2(mc_derive *d, mc_opcode opcode, mc_value *a, mc_value *b);
mc_value *mc_d_fill(mc_derive *d, const mc_type *type, double value);
mc_value *mc_d_sum_to(mc_derive *d, mc_value *x, const mc_type *type); /* x itself when it has the type */
mc_value *mc_d_reshape(mc_derive *d, mc_value *x, const mc_type *type);

#define MC_DERIVATIVE(ID, rule, keep) mc_derive_fn mc_derive_##rule;
#define MC_NO_DERIVATIVE(ID, keep)
#include "passes/derivatives.def"
#undef MC_DERIVATIVE
#undef MC_NO_DERIVATIVE

#endif
