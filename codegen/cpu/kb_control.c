/* Control flow of the kernel builder. Loops are emitted rotated (test, then body with the test at its end), the form
 * that the machine wants, since no pass will bring them into it. */
#include "codegen/cpu/kb.h"

#include <assert.h>

static LLVMBasicBlockRef
new_block(mc_kb *kb, const char *name)
{
    return LLVMAppendBasicBlockInContext(kb->ctx, kb->frames[kb->n_frames - 1].fn, name);
}

/* ---- loops ---------------------------------------------------------------------------------------------------- */

kb_loop
kb_loop_begin(mc_kb *kb, LLVMValueRef begin, LLVMValueRef end, LLVMValueRef step, int n, const LLVMValueRef *init)
{
    assert(n >= 0 && n <= KB_MAX_CARRIED);
    kb_loop l = {.n = n, .end = end, .step = step, .before = LLVMGetInsertBlock(kb->b)};
    l.body = new_block(kb, "loop");
    l.after = new_block(kb, "after");
    LLVMBuildCondBr(kb->b, kb_icmp(kb, LLVMIntSLT, begin, end), l.body, l.after);
    LLVMPositionBuilderAtEnd(kb->b, l.body);
    l.i = LLVMBuildPhi(kb->b, LLVMTypeOf(begin), "");
    LLVMAddIncoming(l.i, &begin, &l.before, 1);
    for (int j = 0; j < n; j++) {
        l.init[j] = init[j];
        l.phi[j] = l.v[j] = LLVMBuildPhi(kb->b, LLVMTypeOf(init[j]), "");
        LLVMAddIncoming(l.phi[j], &l.init[j], &l.before, 1);
    }
    return l;
}

void
kb_loop_end(mc_kb *kb, kb_loop *l)
{
    LLVMBasicBlockRef latch = LLVMGetInsertBlock(kb->b);
    LLVMValueRef next = LLVMBuildNSWAdd(kb->b, l->i, l->step, "");
    LLVMBuildCondBr(kb->b, kb_icmp(kb, LLVMIntSLT, next, l->end), l->body, l->after);
    LLVMAddIncoming(l->i, &next, &latch, 1);
    LLVMPositionBuilderAtEnd(kb->b, l->after);
    for (int j = 0; j < l->n; j++) {
        LLVMAddIncoming(l->phi[j], &l->v[j], &latch, 1);
        LLVMValueRef final = LLVMBuildPhi(kb->b, LLVMTypeOf(l->v[j]), "");
        LLVMAddIncoming(final, &l->init[j], &l->before, 1);
        LLVMAddIncoming(final, &l->v[j], &latch, 1);
        l->v[j] = final;
    }
}

/* ---- if ------------------------------------------------------------------------------------------------------- */

kb_if
kb_if_begin(mc_kb *kb, LLVMValueRef condition)
{
    kb_if c = {.else_end = LLVMGetInsertBlock(kb->b)};
    LLVMBasicBlockRef then = new_block(kb, "then");
    c.otherwise = new_block(kb, "else");
    LLVMBuildCondBr(kb->b, condition, then, c.otherwise);
    LLVMPositionBuilderAtEnd(kb->b, then);
    return c;
}

void
kb_else(mc_kb *kb, kb_if *c)
{
    assert(!c->join);
    c->then_end = LLVMGetInsertBlock(kb->b);
    c->join = new_block(kb, "join");
    LLVMBuildBr(kb->b, c->join);
    LLVMPositionBuilderAtEnd(kb->b, c->otherwise);
}

void
kb_if_end(mc_kb *kb, kb_if *c)
{
    LLVMBasicBlockRef here = LLVMGetInsertBlock(kb->b);
    if (c->join) {
        c->else_end = here;
        LLVMBuildBr(kb->b, c->join);
    } else {
        c->then_end = here;
        c->join = c->otherwise;
        LLVMBuildBr(kb->b, c->join);
    }
    LLVMPositionBuilderAtEnd(kb->b, c->join);
}

LLVMValueRef
kb_if_value(mc_kb *kb, const kb_if *c, LLVMValueRef from_then, LLVMValueRef from_else)
{
    LLVMValueRef phi = LLVMBuildPhi(kb->b, LLVMTypeOf(from_then), "");
    LLVMBasicBlockRef then_end = c->then_end, else_end = c->else_end;
    LLVMAddIncoming(phi, &from_then, &then_end, 1);
    LLVMAddIncoming(phi, &from_else, &else_end, 1);
    return phi;
}

/* ---- vector loops --------------------------------------------------------------------------------------------- */

kb_vloop
kb_vloop_begin(mc_kb *kb, LLVMValueRef begin, LLVMValueRef end, int n, const LLVMValueRef *init)
{
    kb_vloop l = {.lanes = kb->vl, .n = n, .end = end};
    LLVMValueRef count = kb_sub(kb, end, begin);
    l.whole_end = kb_add(kb, begin, kb_and(kb, count, kb_i64(kb, -(int64_t)kb->vl)));
    l.loop = kb_loop_begin(kb, begin, l.whole_end, kb_i64(kb, kb->vl), n, init);
    return l;
}

static void
begin_rest(mc_kb *kb, kb_vloop *l)
{
    for (int j = 0; j < l->n; j++) l->loop.v[j] = l->v[j];
    kb_loop_end(kb, &l->loop);
    for (int j = 0; j < l->n; j++) l->v[j] = l->saved[j] = l->loop.v[j];
    LLVMValueRef left = kb_sub(kb, l->end, l->whole_end);
    l->rest = kb_if_begin(kb, kb_icmp(kb, LLVMIntSGT, left, kb_i64(kb, 0)));
    LLVMValueRef limit = kb_splat(kb, kb_convert(kb, left, kb->i32), kb->vl);
    l->mask = kb_icmp(kb, LLVMIntSLT, kb_lane_ids(kb, kb->vl), limit);
    l->i = l->whole_end;
}

bool
kb_vloop_next(mc_kb *kb, kb_vloop *l)
{
    switch (l->phase++) {
    case 0:
        l->i = l->loop.i;
        for (int j = 0; j < l->n; j++) l->v[j] = l->loop.v[j];
        return true;
    case 1: begin_rest(kb, l); return true;
    default:
        kb_if_end(kb, &l->rest);
        for (int j = 0; j < l->n; j++) l->v[j] = kb_if_value(kb, &l->rest, l->v[j], l->saved[j]);
        return false;
    }
}

LLVMValueRef
kb_keep(mc_kb *kb, LLVMValueRef mask, LLVMValueRef next, LLVMValueRef old)
{
    return mask ? kb_select(kb, mask, next, old) : next;
}
