/* op: what the table says about each opcode, and generic access to an op's parts. */
#ifndef MC_IR_OP_H
#define MC_IR_OP_H

#include "ir/ir.h"

typedef enum mc_class { MC_CLASS_F, MC_CLASS_I, MC_CLASS_A, MC_CLASS_W } mc_class;
typedef enum mc_arity { MC_ARITY_ONE, MC_ARITY_OPTIONAL, MC_ARITY_ANY } mc_arity;

enum { /* stages, as bits */
       MC_IN_TENSOR = 1 << MC_STAGE_TENSOR,
       MC_IN_DIST = 1 << MC_STAGE_DIST,
       MC_IN_PLAN = 1 << MC_STAGE_PLAN
};

enum { /* traits */
       MC_TRAIT_PURE = 1,
       MC_TRAIT_TYPED = 2,
       MC_TRAIT_STATE = 4,
       MC_TRAIT_END = 8,
       MC_TRAIT_BODY = 16
};

typedef struct mc_port_info { /* an operand or a result */
    const char *name;
    mc_class cls;
    mc_arity arity;
} mc_port_info;

typedef struct mc_attr_info {
    const char *name;
    mc_attr_kind kind;
    bool required;
    double number;    /* default of INT, FLOAT, BOOL */
    const char *text; /* default of STR */
} mc_attr_info;

typedef struct mc_infer mc_infer; /* ir/infer.h */
typedef bool mc_infer_fn(mc_infer *in);

typedef struct mc_op_info {
    const char *id, *text, *doc;
    unsigned stages, traits;
    mc_infer_fn *infer;
    const mc_port_info *operands, *results;
    const mc_attr_info *attrs;
    uint8_t n_operands, n_results, n_attrs;
} mc_op_info;

extern const mc_op_info mc_op_infos[MC_N_OPCODES];

const mc_op_info *mc_op_info_of(const mc_op *op);
/* MC_N_OPCODES when unknown. */
mc_opcode mc_opcode_find(mc_str text);
bool mc_op_has(const mc_op *op, unsigned trait);

/* Operand i, or NULL when absent or out of range. */
mc_value *mc_operand(const mc_op *op, int i);
/* Operand by its name in the table. */
mc_value *mc_operand_named(const mc_op *op, const char *name);
mc_value *mc_result(const mc_op *op, int i);

/* Attributes by name; they give the default when the attribute is absent. Asking for a name or kind that the table
 * does not have is an internal error (assert). */
int64_t mc_attr_int(const mc_op *op, const char *name);
double mc_attr_float(const mc_op *op, const char *name);
bool mc_attr_bool(const mc_op *op, const char *name);
mc_str mc_attr_str(const mc_op *op, const char *name);
moec_dtype mc_attr_dtype(const mc_op *op, const char *name);
mc_func *mc_attr_func(const mc_op *op, const char *name);
const mc_attr *mc_attr_get(const mc_op *op, const char *name); /* INTS, FLOATS, or to ask for presence */
int mc_attr_index(mc_opcode opcode, mc_str name);              /* -1 when the op has no such attribute */

bool mc_value_has_uses(const mc_value *v);
bool mc_value_has_one_use(const mc_value *v);

#endif
