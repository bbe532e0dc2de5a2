/* The one idea: first within groups of 4 rows and 4 lanes, then the groups among themselves, each step a shuffle of two
 * registers. */
#include "codegen/cpu/turn.h"

/* x and y interleaved by runs of `run` lanes within each 4 lanes: the lower halves, or the upper ones. */
static LLVMValueRef
interleave(mc_kb *kb, LLVMValueRef x, LLVMValueRef y, int run, bool upper)
{
    int lanes[64];
    for (int l = 0; l < kb->vl; l++) {
        int at = l % 4, from = at / run % 2, within = at / (2 * run) * run + at % run + (upper ? 2 : 0);
        lanes[l] = l / 4 * 4 + within + from * kb->vl;
    }
    return kb_shuffle(kb, x, y, lanes, kb->vl);
}

/* Swaps blocks of d groups (of 4 lanes) between x and y: the lower gets y's block at its own odd places. */
static LLVMValueRef
swap_groups(mc_kb *kb, LLVMValueRef x, LLVMValueRef y, int d, bool upper)
{
    int lanes[64];
    for (int l = 0; l < kb->vl; l++) {
        int group = l / 4, odd = group / d % 2;
        int from = upper ? group + (odd ? 0 : d) : group - (odd ? d : 0);
        lanes[l] = from * 4 + l % 4 + odd * kb->vl;
    }
    return kb_shuffle(kb, x, y, lanes, kb->vl);
}

void
mc_turn(mc_kb *kb, LLVMValueRef *rows)
{
    LLVMValueRef t[64];
    int vl = kb->vl, groups = vl / 4;
    for (int g = 0; g < groups; g++) {
        LLVMValueRef *r = rows + g * 4, pair[4];
        for (int h = 0; h < 4; h += 2) {
            pair[h] = interleave(kb, r[h], r[h + 1], 1, false);
            pair[h + 1] = interleave(kb, r[h], r[h + 1], 1, true);
        }
        for (int h = 0; h < 2; h++) { /* t: [column mod 4][group] */
            t[(2 * h) * groups + g] = interleave(kb, pair[h], pair[h + 2], 2, false);
            t[(2 * h + 1) * groups + g] = interleave(kb, pair[h], pair[h + 2], 2, true);
        }
    }
    for (int d = groups / 2; d >= 1; d /= 2) {
        for (int i = 0; i < 4 * groups; i++) {
            if (i % groups / d % 2) continue;
            LLVMValueRef x = t[i], y = t[i + d];
            t[i] = swap_groups(kb, x, y, d, false);
            t[i + d] = swap_groups(kb, x, y, d, true);
        }
    }
    for (int i = 0; i < vl; i++) rows[i] = t[i % 4 * groups + i / 4];
}
