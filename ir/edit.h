/* edit: the only functions that change use lists, op lists and attributes. */
#ifndef MC_IR_EDIT_H
#define MC_IR_EDIT_H

#include "ir/ir.h"

mc_func *mc_func_create(mc_module *m, mc_str name, mc_span span); /* appended to the module; names must be unique */
mc_value *mc_func_add_formal(mc_func *f, const mc_type *type, mc_str name);
/* Some of its formals, all that are used among them, in another order. */
void mc_func_set_formals(mc_func *f, mc_value *const *formals, size_t n);
void mc_func_remove(mc_func *f); /* nothing may refer to it any more */
/* Reorders the module's list so that callees and bodies stand before their users. */
void mc_module_sort_funcs(mc_module *m);

/* Not inserted yet; operands may contain NULL (absent); attrs as in mc_op (copied). */
mc_op *mc_op_create(mc_module *m, mc_opcode opcode, mc_value *const *operands, int n_operands,
                    const mc_type *const *result_types, int n_results, const mc_attr *attrs, mc_span span);
void mc_op_insert_before(mc_func *f, mc_op *position, mc_op *op); /* position NULL: at the end */
void mc_op_move_before(mc_op *position, mc_op *op);
/* Its results must have no uses. A loop of MC_FOR_OPS may remove the op it stands on. */
void mc_op_remove(mc_op *op);
void mc_op_set_operand(mc_op *op, int i, mc_value *value);
void mc_op_set_attr(mc_op *op, const char *name, mc_attr attr);
void mc_value_replace_uses(mc_value *old_value, mc_value *new_value);

#endif
