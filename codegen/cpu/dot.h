/* dot: several keys against a vector of queries, for attention and top_keys. Keys are first copied together: rows of a
 * cache often lie a power of two apart, where eight of them would fight for the same lines of the L1 cache. */
#ifndef MC_CODEGEN_CPU_DOT_H
#define MC_CODEGEN_CPU_DOT_H

#include "codegen/cpu/kb.h"

enum { MC_DOT_TILE = 8 };

/* n floats (a constant). */
void mc_copy_row(mc_kb *kb, LLVMValueRef from, LLVMValueRef to, int64_t n);
/* acc[u][lane] = sum over i of qt[i][lane] * keys[u][i], one FMA chain in ascending i. qt: [width][vl]; keys:
 * [MC_DOT_TILE][width]. */
void mc_dot_tile(mc_kb *kb, LLVMValueRef qt, int64_t width, LLVMValueRef keys, LLVMValueRef *acc);

#endif
