/* The backend's entry. The one idea: selection first decides everything (plan.h), so that an op without a kernel is
 * refused before LLVM is touched; then each kernel that was asked for is emitted once, and the tables around them. */
#include "codegen/cpu/cpu.h"

#include "codegen/cpu/gemm.h"
#include "codegen/cpu/select.h"
#include "codegen/cpu/tables.h"
#include "runtime/base/hash.h"

#include <ctype.h>
#include <string.h>

bool
mc_cpu_has_kernel(mc_opcode opcode)
{
    return mc_cpu_supports(opcode);
}

static uint64_t
hash_text(const char *s, uint64_t seed)
{
    return mc_hash64(s ? s : "", s ? strlen(s) + 1 : 0, seed);
}

static uint64_t
hash_plan(const mc_module *plan, const mc_cpu_target *target)
{
    uint64_t h = mc_plan_hash(plan, 0);
    h = hash_text(target->triple, h);
    h = hash_text(target->cpu, h);
    return hash_text(target->llvm_features, h);
}

static const char *
query_name(mc_arena *arena, mc_str model)
{
    mc_str s = mc_strf(arena, "moec_abi_query_%.*s", MC_FMT(model));
    char *text = mc_arena_copy(arena, s.data, s.len + 1);
    for (size_t i = 0; i < s.len; i++) {
        if (!isalnum((unsigned char)text[i])) text[i] = '_';
    }
    return text;
}

/* Kernels are reached through the table only, so two models can be linked into one program. */
static LLVMValueRef
emit_kernel(mc_kb *kb, const mc_plan_kernel *k)
{
    const char *name = k->name.data;
    if (k->emit) {
        k->emit(kb, k);
    } else {
        name = mc_gemm_kernel(kb, k->data);
    }
    LLVMValueRef function = kb_find(kb, name);
    LLVMSetLinkage(function, LLVMInternalLinkage);
    return function;
}

static void
emit_module(mc_cpu_result *out, const mc_plan *p, const mc_cpu_options *options, mc_str name)
{
    LLVMValueRef *kernels = MC_NEW_N(out->arena, LLVMValueRef, p->kernels.n);
    for (size_t i = 0; i < p->kernels.n; i++) kernels[i] = emit_kernel(out->kb, p->kernels.items[i]);
    mc_cpu_names names = {.name = mc_str_dup(out->arena, name).data,
                          .rules = mc_str_dup(out->arena, options->rules).data,
                          .meta = options->meta.len ? mc_str_dup(out->arena, options->meta).data : "{}",
                          .query = out->query,
                          .hash = out->hash,
                          .weights_hash = out->weights_hash};
    mc_cpu_tables_emit(out->kb, p, kernels, &names);
}

bool
mc_cpu_compile(const mc_module *plan, const mc_cpu_options *options, mc_diags *d, mc_cpu_result *out)
{
    *out = (mc_cpu_result){.arena = mc_arena_create()};
    mc_plan *p = MC_NEW(out->arena, mc_plan);
    p->target = &options->target;
    p->vl = options->target.vl;
    if (!mc_plan_build(p, out->arena, plan, &mc_cpu_backend, d)) {
        mc_cpu_result_fini(out);
        return false;
    }
    mc_str name = options->name.len ? options->name : mc_module_model(plan)->name;
    out->query = query_name(out->arena, name);
    out->hash = options->hash ? options->hash : hash_plan(plan, &options->target);
    out->weights_hash = mc_plan_hash_weights(p, options->rules);
    out->n_kernels = (int)p->kernels.n;
    out->kb = mc_kb_create(&options->target, mc_str_dup(out->arena, name).data, out->arena);
    emit_module(out, p, options, name);
    return true;
}

bool
mc_cpu_emit(const mc_cpu_result *result, mc_emit_kind kind, mc_diags *d, mc_buf *out)
{
    return mc_kb_emit(result->kb, kind, d, out);
}

void
mc_cpu_result_fini(mc_cpu_result *result)
{
    mc_kb_destroy(result->kb);
    mc_arena_destroy(result->arena);
    *result = (mc_cpu_result){0};
}
