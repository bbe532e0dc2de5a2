/* build: makes ops at a cursor. Inference runs inside, so a malformed op is refused here, with a diagnostic.
 *
 *     mc_builder b = mc_builder_at_end(func, diags);
 *     mc_value *y = mc_build1(&b, MC_OP_LINEAR, (mc_value *[]){x, w}, 2, NULL, 0);
 */
#ifndef MC_IR_BUILD_H
#define MC_IR_BUILD_H

#include "ir/diag.h"
#include "ir/edit.h"
#include "ir/op.h"

typedef struct mc_builder {
    mc_func *func;
    mc_op *before; /* new ops go before this one; NULL = at the end */
    mc_span span;  /* given to new ops */
    mc_diags *diags;
} mc_builder;

/* An attribute by name, for mc_build. */
typedef struct mc_named_attr {
    const char *name;
    mc_attr attr;
} mc_named_attr;

#define MC_A_INT(name, value)                                                                                          \
    {                                                                                                                  \
        (name),                                                                                                        \
        {                                                                                                              \
            .kind = MC_ATTR_INT, .as.i = (value)                                                                       \
        }                                                                                                              \
    }
#define MC_A_FLOAT(name, value)                                                                                        \
    {                                                                                                                  \
        (name),                                                                                                        \
        {                                                                                                              \
            .kind = MC_ATTR_FLOAT, .as.f = (value)                                                                     \
        }                                                                                                              \
    }
#define MC_A_BOOL(name, value)                                                                                         \
    {                                                                                                                  \
        (name),                                                                                                        \
        {                                                                                                              \
            .kind = MC_ATTR_BOOL, .as.b = (value)                                                                      \
        }                                                                                                              \
    }
#define MC_A_STR(name, value)                                                                                          \
    {                                                                                                                  \
        (name),                                                                                                        \
        {                                                                                                              \
            .kind = MC_ATTR_STR, .as.s = (value)                                                                       \
        }                                                                                                              \
    }
#define MC_A_FUNC(name, value)                                                                                         \
    {                                                                                                                  \
        (name),                                                                                                        \
        {                                                                                                              \
            .kind = MC_ATTR_FUNC, .as.func = (value)                                                                   \
        }                                                                                                              \
    }
#define MC_A_DTYPE(name, value)                                                                                        \
    {                                                                                                                  \
        (name),                                                                                                        \
        {                                                                                                              \
            .kind = MC_ATTR_DTYPE, .as.dtype = (value)                                                                 \
        }                                                                                                              \
    }

mc_builder mc_builder_at_end(mc_func *f, mc_diags *diags);
mc_builder mc_builder_before(mc_op *op, mc_diags *diags); /* takes op's span */

/* NULL when refused (the diagnostic says why). Missing trailing optional operands need not be given. */
mc_op *mc_build(mc_builder *b, mc_opcode opcode, mc_value *const *operands, int n_operands, const mc_named_attr *attrs,
                int n_attrs);
/* For TYPED ops: the declared result types. */
mc_op *mc_build_typed(mc_builder *b, mc_opcode opcode, mc_value *const *operands, int n_operands,
                      const mc_named_attr *attrs, int n_attrs, const mc_type *const *types, int n_types);
/* The first result of mc_build, or NULL. */
mc_value *mc_build1(mc_builder *b, mc_opcode opcode, mc_value *const *operands, int n_operands,
                    const mc_named_attr *attrs, int n_attrs);

/* One-liners for what passes and the front end make often; each returns NULL when refused. */
mc_value *mc_build_unary(mc_builder *b, mc_opcode opcode, mc_value *x);
mc_value *mc_build_binary(mc_builder *b, mc_opcode opcode, mc_value *x, mc_value *y);
mc_value *mc_build_const(mc_builder *b, double value); /* f32 scalar */
mc_value *mc_build_weight(mc_builder *b, mc_str path, bool root, const char *role, int64_t experts,
                          const mc_type *type);
mc_value *mc_build_reshape(mc_builder *b, mc_value *x, const mc_dim *dims, int rank);
mc_op *mc_build_call(mc_builder *b, mc_func *callee, mc_str scope, mc_value *const *args, int n_args);
mc_op *mc_build_return(mc_builder *b, mc_value *const *values, int n_values);

#endif
