/* Plan to constants. The one idea: tables without pointers are written as the bytes that they are in memory (the target
 * has our byte order and alignment rules, asserted below); tables with pointers are structs whose LLVM layout is the C
 * layout, since every member is naturally aligned and padding is spelt out in abi.h. */
#include "codegen/cpu/tables.h"

#include "codegen/cpu/llvm_emit.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

_Static_assert(sizeof(moec_abi_expr) == 24 && sizeof(moec_abi_ref) == 32 && sizeof(moec_abi_launch) == 48 &&
                   sizeof(moec_abi_slot) == 8,
               "tables without pointers have no padding");
_Static_assert(offsetof(moec_abi_weight, dims) == 40 && offsetof(moec_abi_weight, block) == 80 &&
                   offsetof(moec_abi_weight, init) == 96 &&
                   offsetof(moec_abi_model, saved) == offsetof(moec_abi_model, scratch_bytes) + 8 &&
                   offsetof(moec_abi_tensor, dims) == 16 && offsetof(moec_abi_sym, kind) == 24 &&
                   offsetof(moec_abi_state, bytes) == 16 && offsetof(moec_abi_func, n_formals) == 8,
               "the structs below have the C layout");

typedef struct tables {
    mc_kb *kb;
    mc_map texts; /* text -> global, so that equal paths are stored once */
} tables;

static LLVMValueRef
u32(const tables *t, uint64_t x)
{
    return LLVMConstInt(t->kb->i32, x, 0);
}

static LLVMValueRef
u64(const tables *t, uint64_t x)
{
    return LLVMConstInt(t->kb->i64, x, 0);
}

static LLVMValueRef
constant(const tables *t, LLVMValueRef value, const char *name, unsigned align)
{
    LLVMValueRef global = LLVMAddGlobal(t->kb->module, LLVMTypeOf(value), name);
    LLVMSetInitializer(global, value);
    LLVMSetGlobalConstant(global, 1);
    LLVMSetLinkage(global, LLVMPrivateLinkage);
    LLVMSetAlignment(global, align);
    return global;
}

static LLVMValueRef
bytes(const tables *t, const void *data, size_t n_bytes, const char *name)
{
    if (!n_bytes) return LLVMConstNull(t->kb->ptr);
    LLVMValueRef value = LLVMConstStringInContext2(t->kb->ctx, data, n_bytes, 1);
    return constant(t, value, name, 16);
}

static LLVMValueRef
text(tables *t, const char *s)
{
    if (!s) return LLVMConstNull(t->kb->ptr);
    LLVMValueRef global = mc_map_get(&t->texts, mc_str_of(s));
    if (global) return global;
    global = constant(t, LLVMConstStringInContext2(t->kb->ctx, s, strlen(s), 0), "text", 1);
    mc_map_set(&t->texts, mc_str_of(s), global);
    return global;
}

static LLVMValueRef
record(const tables *t, LLVMValueRef *members, unsigned n)
{
    return LLVMConstStructInContext(t->kb->ctx, members, n, 0);
}

static LLVMValueRef
array(const tables *t, LLVMValueRef *items, size_t n, const char *name)
{
    if (!n) return LLVMConstNull(t->kb->ptr);
    return constant(t, LLVMConstArray2(LLVMTypeOf(items[0]), items, n), name, 16);
}

static LLVMValueRef
words(const tables *t, const int64_t *values, unsigned n)
{
    LLVMValueRef items[8];
    assert(n <= 8);
    for (unsigned i = 0; i < n; i++) items[i] = u64(t, (uint64_t)values[i]);
    return LLVMConstArray2(t->kb->i64, items, n);
}

static LLVMValueRef
syms_of(tables *t, const mc_plan *p)
{
    LLVMValueRef *items = MC_NEW_N(t->kb->arena, LLVMValueRef, p->syms.n);
    for (size_t i = 0; i < p->syms.n; i++) {
        const moec_abi_sym *s = &p->syms.items[i];
        LLVMValueRef m[] = {text(t, s->name), u64(t, (uint64_t)s->lo), u64(t, (uint64_t)s->hi), u32(t, s->kind),
                            u32(t, s->bound)};
        items[i] = record(t, m, sizeof m / sizeof *m);
    }
    return array(t, items, p->syms.n, "syms");
}

static LLVMValueRef
tensors_of(tables *t, const moec_abi_tensor *tensors, size_t n, const char *name)
{
    LLVMValueRef *items = MC_NEW_N(t->kb->arena, LLVMValueRef, n);
    for (size_t i = 0; i < n; i++) {
        const moec_abi_tensor *x = &tensors[i];
        LLVMValueRef dims[MOEC_ABI_MAX_RANK];
        for (int d = 0; d < MOEC_ABI_MAX_RANK; d++) {
            int64_t parts[3] = {x->dims[d].mul, x->dims[d].add, 0};
            memcpy(&parts[2], x->dims[d].syms, sizeof x->dims[d].syms);
            dims[d] = words(t, parts, 3);
        }
        LLVMValueRef m[] = {text(t, x->name), u32(t, x->dtype), u32(t, x->rank),
                            LLVMConstArray2(LLVMTypeOf(dims[0]), dims, MOEC_ABI_MAX_RANK), u64(t, (uint64_t)x->limit)};
        items[i] = record(t, m, sizeof m / sizeof *m);
    }
    return array(t, items, n, name);
}

static LLVMValueRef
weights_of(tables *t, const mc_plan *p)
{
    LLVMValueRef *items = MC_NEW_N(t->kb->arena, LLVMValueRef, p->weights.n);
    for (size_t i = 0; i < p->weights.n; i++) {
        const moec_abi_weight *w = &p->weights.items[i];
        LLVMValueRef m[] = {text(t, w->path),     text(t, w->path2),     text(t, w->role), u32(t, w->dtype),
                            u32(t, w->layout),    u32(t, w->nr),         u32(t, w->rank),  words(t, w->dims, 4),
                            text(t, w->scale_of), words(t, w->block, 2), text(t, w->init),
                            u64(t, (uint64_t)w->experts)};
        items[i] = record(t, m, sizeof m / sizeof *m);
    }
    return array(t, items, p->weights.n, "weights");
}

static LLVMValueRef
states_of(tables *t, const mc_plan *p)
{
    LLVMValueRef *items = MC_NEW_N(t->kb->arena, LLVMValueRef, p->states.n);
    for (size_t i = 0; i < p->states.n; i++) {
        const moec_abi_state *s = &p->states.items[i];
        LLVMValueRef m[] = {text(t, s->name), u32(t, s->kind), u32(t, s->reserved), u64(t, (uint64_t)s->bytes)};
        items[i] = record(t, m, sizeof m / sizeof *m);
    }
    return array(t, items, p->states.n, "states");
}

static LLVMValueRef
funcs_of(tables *t, const mc_plan *p)
{
    LLVMValueRef *items = MC_NEW_N(t->kb->arena, LLVMValueRef, p->funcs.n);
    for (size_t i = 0; i < p->funcs.n; i++) {
        const moec_abi_func *f = &p->funcs.items[i];
        LLVMValueRef m[] = {text(t, f->name),      u32(t, f->n_formals),  u32(t, f->n_results), u32(t, f->first_launch),
                            u32(t, f->n_launches), u32(t, f->first_slot), u32(t, f->n_slots)};
        items[i] = record(t, m, sizeof m / sizeof *m);
    }
    return array(t, items, p->funcs.n, "funcs");
}

static LLVMValueRef
kernel_names_of(tables *t, const mc_plan *p)
{
    LLVMValueRef *items = MC_NEW_N(t->kb->arena, LLVMValueRef, p->kernels.n);
    for (size_t i = 0; i < p->kernels.n; i++) items[i] = text(t, p->kernels.items[i]->name.data);
    return array(t, items, p->kernels.n, "kernel_names");
}

static LLVMValueRef
ep_of(tables *t, const mc_plan *p)
{
    const moec_abi_ep *ep = p->ep;
    if (!ep) return LLVMConstNull(t->kb->ptr);
    LLVMValueRef m[] = {u32(t, ep->n_ranks),  u32(t, ep->n_replicas), u32(t, ep->per_node), u32(t, ep->round_robin),
                        u32(t, ep->rank_sym), u32(t, ep->reduced),    text(t, ep->plan)};
    return constant(t, record(t, m, sizeof m / sizeof *m), "ep", 16);
}

static LLVMValueRef
model_of(tables *t, const mc_plan *p, const LLVMValueRef *kernels, const mc_cpu_names *names)
{
    LLVMValueRef *functions = MC_NEW_N(t->kb->arena, LLVMValueRef, p->kernels.n);
    for (size_t i = 0; i < p->kernels.n; i++) functions[i] = kernels[i];
    const size_t n_launches = p->launches.n, n_refs = p->refs.n, n_exprs = p->exprs.n;
    LLVMValueRef m[] = {
        u32(t, MOEC_ABI_MAGIC),
        u32(t, MOEC_ABI_VERSION),
        text(t, names->name),
        text(t, mc_cpu_compiler_name()),
        text(t, p->target->triple),
        text(t, p->target->name),
        text(t, p->target->needs),
        u64(t, names->hash),
        u64(t, names->weights_hash),
        text(t, names->rules),
        text(t, names->meta),
        syms_of(t, p),
        tensors_of(t, p->inputs.items, p->inputs.n, "inputs"),
        tensors_of(t, p->outputs.items, p->outputs.n, "outputs"),
        weights_of(t, p),
        states_of(t, p),
        funcs_of(t, p),
        bytes(t, p->launches.items, n_launches * sizeof *p->launches.items, "launches"),
        bytes(t, p->slots.items, p->slots.n * sizeof *p->slots.items, "slots"),
        bytes(t, p->refs.items, n_refs * sizeof *p->refs.items, "refs"),
        bytes(t, p->exprs.items, n_exprs * sizeof *p->exprs.items, "exprs"),
        bytes(t, p->floats.items, p->floats.n * sizeof *p->floats.items, "floats"),
        array(t, functions, p->kernels.n, "kernels"),
        kernel_names_of(t, p),
        p->strings.n ? bytes(t, p->strings.items, p->strings.n, "strings") : text(t, ""),
        u32(t, p->syms.n),
        u32(t, p->inputs.n),
        u32(t, p->outputs.n),
        u32(t, p->weights.n),
        u32(t, p->states.n),
        u32(t, p->funcs.n),
        u32(t, n_launches),
        u32(t, p->slots.n),
        u32(t, n_refs),
        u32(t, n_exprs),
        u32(t, p->floats.n),
        u32(t, p->kernels.n),
        u32(t, p->entry),
        u32(t, p->batch_sym),
        u64(t, p->scratch_bytes),
        tensors_of(t, p->saved.items, p->saved.n, "saved"),
        bytes(t, p->cotangents.items, p->cotangents.n * sizeof *p->cotangents.items, "cotangents"),
        bytes(t, p->input_grads.items, p->input_grads.n * sizeof *p->input_grads.items, "input_grads"),
        u32(t, p->backward),
        u32(t, p->backward_weight_base),
        u32(t, p->saved.n),
        u32(t, p->cotangents.n),
        u32(t, p->input_grads.n),
        u32(t, 0),
        LLVMConstNull(t->kb->ptr),
        ep_of(t, p),
    };
    return constant(t, record(t, m, sizeof m / sizeof *m), "model", 16);
}

void
mc_cpu_tables_emit(mc_kb *kb, const mc_plan *p, const LLVMValueRef *kernels, const mc_cpu_names *names)
{
    tables t = {.kb = kb};
    mc_map_init(&t.texts, kb->arena);
    LLVMValueRef model = model_of(&t, p, kernels, names);
    LLVMValueRef query = kb_function_begin(kb, names->query, kb->ptr, &kb->i32, 1);
    LLVMValueRef known = kb_icmp(kb, LLVMIntEQ, kb_param(kb, 0), kb_i32(kb, MOEC_ABI_VERSION));
    kb_function_end(kb, kb_select(kb, known, model, LLVMConstNull(kb->ptr)));
    LLVMSetLinkage(query, LLVMExternalLinkage);
}
