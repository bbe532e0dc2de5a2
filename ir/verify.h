/* verify: structure (operands, classes, attributes, use lists, order), stage legality, and that inference agrees with
 * the stored types. Reports every fault found, each inside the text of its function. */
#ifndef MC_IR_VERIFY_H
#define MC_IR_VERIFY_H

#include "ir/diag.h"
#include "ir/ir.h"

bool mc_module_verify(const mc_module *m, mc_diags *diags);

#endif
