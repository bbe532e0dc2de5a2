/* dot: several keys against a vector of queries, for attention and top_keys. */
#ifndef MC_CODEGEN_CPU_DOT_H
#define MC_CODEGEN_CPU_DOT_H

#include "codegen/cpu/kb.h"

enum { MC_DOT_TILE = 8 };

/* acc[u][lane] = sum over i of qt[i][lane] * key[u][i], one FMA chain in ascending i. qt: [width][vl] in scratch; key:
 * addresses of MC_DOT_TILE arrays of `width` floats. */
void mc_dot_tile(mc_kb *kb, LLVMValueRef qt, int64_t width, const LLVMValueRef *key, LLVMValueRef *acc);
/* The same chains carried on: adds to acc. */
void mc_dot_more(mc_kb *kb, LLVMValueRef qt, int64_t width, const LLVMValueRef *key, LLVMValueRef *acc);

#endif
