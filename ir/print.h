/* print / read: the text form of a module, .moir. One generic syntax for all ops (docs/IR.md has the grammar).
 *
 *     moir 1 stage=tensor
 *     dim B
 *     dim S in 1..32768
 *     meta "precision.router" = "f32"
 *
 *     model @layer(%x: f32[B, S, 64]) -> (f32[B, S, 64]) {
 *       %w = weight {path = "mlp.gate.weight", role = "router"} : bf16[8, 64]
 *       %z = linear %x, %w : f32[B, S, 8]
 *       return %z
 *     }
 *
 * Law, tested on every file of the tree: print(read(print(m))) == print(m), byte for byte. */
#ifndef MC_IR_PRINT_H
#define MC_IR_PRINT_H

#include "ir/diag.h"
#include "ir/ir.h"

void mc_module_print(const mc_module *m, mc_buf *out);
void mc_func_print(const mc_func *f, mc_buf *out);
void mc_op_print(const mc_op *op, mc_buf *out); /* one line, without the newline */

/* NULL when the text is malformed; diagnostics say where. Verifies nothing beyond what inference refuses. */
mc_module *mc_module_read(mc_sources *sources, uint32_t file, mc_diags *diags);

#endif
