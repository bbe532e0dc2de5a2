/* attention: what the two forms of the attention kernel share. */
#ifndef MC_CODEGEN_CPU_ATTENTION_H
#define MC_CODEGEN_CPU_ATTENTION_H

#include "codegen/cpu/kb.h"

enum {
    MC_ATTEND_KEYS = 32,   /* a block: online softmax goes on from multiples of it */
    MC_ATTEND_VECTORS = 4, /* of rows that share a copied block */
    MC_ATTEND_FEW = 3      /* rows up to which lanes are keys and channels instead of rows */
};
enum { /* flags */
       MC_ATTEND_CAUSAL = 1,
       MC_ATTEND_WINDOW = 2,
       MC_ATTEND_CHUNKED = 4,
       MC_ATTEND_SOFTCAP = 8,
       MC_ATTEND_SINKS = 16,
       MC_ATTEND_SELECT = 32,
       MC_ATTEND_LATENT = 64
};

/* Stands for -inf where a finite number is needed: exp(anything - it) is never of inf - inf. */
#define MC_ATTEND_LOWEST (-1e30)

typedef struct mc_attend {
    int64_t width, value, flags; /* channels of q and k; of v */
    int64_t rot;                 /* those of width that lie apart, in q_rot and k_rot (latent_sdpa), or 0 */
    LLVMValueRef q, k, v, o, sinks, select, q_rot, k_rot;
    LLVMValueRef S, H, KV, C, G, window, chunk, n_select;
    LLVMValueRef scale, cap;                                         /* vectors */
    LLVMValueRef k_step, v_step, rot_step;                           /* bytes between positions */
    LLVMValueRef qt, out, scores, low, high, max, sum, alpha, block; /* scratch */
    /* of the block of rows at work */
    LLVMValueRef b, kv, s0, first, n_rows; /* row r of the block: s0 + (first + r) / G, head (first + r) mod G */
    LLVMValueRef n_vectors, k_base, v_base, rot_base, list;
} mc_attend;

typedef struct mc_attend_row {
    LLVMValueRef valid, position, head, index; /* index: of (b, s, head) */
} mc_attend_row;

/* Row r of the block at work. */
mc_attend_row mc_attend_row_of(mc_kb *kb, const mc_attend *a, LLVMValueRef r);
/* The first and last key that a query at `position` may see. */
void mc_attend_range(mc_kb *kb, const mc_attend *a, LLVMValueRef position, LLVMValueRef *low, LLVMValueRef *high);
/* A sink is a key whose score is known and whose value is 0: the maximum and the sum start from it. */
void mc_attend_start(mc_kb *kb, const mc_attend *a, LLVMValueRef head, LLVMValueRef *max, LLVMValueRef *sum);
/* Where the keys come from: slot j of the list, or position j itself. -1 for an empty slot. */
LLVMValueRef mc_attend_key(mc_kb *kb, const mc_attend *a, LLVMValueRef j);
/* The slots of the list up to the last that is used. */
LLVMValueRef mc_attend_list_end(mc_kb *kb, const mc_attend *a);
/* Keys or values first..first+n-1 to a->block, one after another. */
void mc_attend_copy(mc_kb *kb, const mc_attend *a, LLVMValueRef base, LLVMValueRef step, int64_t width,
                    LLVMValueRef first, LLVMValueRef n);
kb_loop mc_attend_count(mc_kb *kb, LLVMValueRef n, int n_carried, const LLVMValueRef *init);

/* The block's rows, at most MC_ATTEND_FEW (attention_few.c). Bit for bit what the other form gives. */
void mc_attend_few(mc_kb *kb, const mc_attend *a);

#endif
