/* grad_attention: the derivative of attention on one block of query rows, and on one of rows and one of keys. A block
 * of rows is loaded, then meets the blocks of its keys in ascending order:
 *
 *     find_keys, load_rows, start_statistics
 *     for each block of keys: make_scores, make_dp, take_max        keys in a.block, values in values
 *     for each: take_sums, then finish_statistics
 *     start_dq, for each: take_shares, add_dq, add_dk_dv; then store_dq */
#ifndef MC_CODEGEN_CPU_GRAD_ATTENTION_H
#define MC_CODEGEN_CPU_GRAD_ATTENTION_H

#include "codegen/cpu/attention.h"

enum {
    MC_GRAD_ROWS = 64,
    MC_GRAD_KEYS = 48,
    MC_GRAD_KEPT = 21, /* blocks of keys whose scores and dp are kept between sweeps */
    MC_GRAD_BLOCK_BYTES = MC_GRAD_KEYS * MC_GRAD_ROWS * 4 /* of scores, and of dp after them */
};

typedef struct mc_grad {
    mc_attend a; /* arguments, the rows at work, scratch: qt, block (keys), low, high, max, sum */
    LLVMValueRef dy, dq, dk, dv;
    LLVMValueRef dyt, q_rows, dy_rows, dq_rows, values, mean, kept; /* scratch */
    LLVMValueRef used, begin, end; /* rows of the block; the keys that they see, from a multiple of MC_GRAD_KEYS on */
} mc_grad;

typedef struct mc_grad_block {
    LLVMValueRef first, n;   /* keys */
    LLVMValueRef scores, dp; /* [key][row] */
} mc_grad_block;

/* Sets used, begin and end for the rows from g->a.first on. */
void mc_grad_find_keys(mc_kb *kb, mc_grad *g);
void mc_grad_load_rows(mc_kb *kb, const mc_grad *g);
void mc_grad_start_statistics(mc_kb *kb, const mc_grad *g);
void mc_grad_finish_statistics(mc_kb *kb, const mc_grad *g);
void mc_grad_start_dq(mc_kb *kb, const mc_grad *g);
void mc_grad_store_dq(mc_kb *kb, const mc_grad *g);

void mc_grad_make_scores(mc_kb *kb, const mc_grad *g, const mc_grad_block *b);
void mc_grad_make_dp(mc_kb *kb, const mc_grad *g, const mc_grad_block *b);
void mc_grad_take_max(mc_kb *kb, const mc_grad *g, const mc_grad_block *b);
/* Scores become weights, exp(score - max), if the kernel keeps these. */
bool mc_grad_keeps_weights(const mc_grad *g);
void mc_grad_take_sums(mc_kb *kb, const mc_grad *g, const mc_grad_block *b);
/* Scores (or weights) become shares, dp becomes ds; zeros follow up to whole tiles of keys. */
void mc_grad_take_shares(mc_kb *kb, const mc_grad *g, const mc_grad_block *b, bool weights);
void mc_grad_add_dq(mc_kb *kb, const mc_grad *g, const mc_grad_block *b);
void mc_grad_add_dk_dv(mc_kb *kb, const mc_grad *g, const mc_grad_block *b);

/* n floats become 0. */
void mc_grad_fill_row(mc_kb *kb, LLVMValueRef to, int64_t n);

#endif
