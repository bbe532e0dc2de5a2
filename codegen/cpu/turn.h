/* turn: a square of vl x vl floats in registers. */
#ifndef MC_CODEGEN_CPU_TURN_H
#define MC_CODEGEN_CPU_TURN_H

#include "codegen/cpu/kb.h"

/* rows[r][c] becomes rows[c][r]; vl rows. */
void mc_turn(mc_kb *kb, LLVMValueRef *rows);

#endif
