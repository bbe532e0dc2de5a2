/* The CPU backend behind driver/backend.h. */
#include "driver/backend.h"

#include "codegen/cpu/cpu.h"
#include "codegen/cpu/llvm_jit.h"
#include "driver/describe.h"

#include <elf.h>
#include <stdlib.h>

const char *
mc_backend_compiler(void)
{
    return mc_cpu_compiler_name();
}

bool
mc_backend_find(mc_unit *u, mc_backend_target *out)
{
    mc_cpu_target *t = MC_NEW(u->arena, mc_cpu_target);
    const char *name = u->options->target ? u->options->target : "native";
    if (!mc_cpu_target_find(name, &u->diags, t)) return false;
    mc_str key = mc_strf(u->arena, "%s %s %s", t->triple, t->cpu, t->llvm_features);
    *out = (mc_backend_target){t->name, mc_cpu_compiler_name(), key.data, t->nr, t};
    return true;
}

bool
mc_backend_has_kernel(mc_opcode opcode)
{
    return mc_cpu_has_kernel(opcode);
}

bool
mc_backend_emit(mc_unit *u, const mc_backend_target *target, mc_code_kind kind, mc_buf *out)
{
    static const mc_emit_kind kinds[] = {
        [MC_CODE_OBJECT] = MC_EMIT_OBJECT, [MC_CODE_ASSEMBLY] = MC_EMIT_ASSEMBLY, [MC_CODE_LLVM] = MC_EMIT_LLVM};
    mc_cpu_options options = {.name = mc_unit_name(u), .rules = mc_describe_rules(u), .meta = mc_describe_meta(u)};
    options.target = *(const mc_cpu_target *)target->detail;
    mc_cpu_result result;
    if (!mc_cpu_compile(u->module, &options, &u->diags, &result)) return false;
    bool good = mc_cpu_emit(&result, kinds[kind], &u->diags, out);
    mc_cpu_result_fini(&result);
    return good;
}

struct mc_loaded {
    mc_jit *jit;
};

/* Code for another processor must not be linked in: its relocations are not those of this one. */
static bool
is_of_this_machine(const void *object, size_t n_bytes)
{
    const Elf64_Ehdr *head = object;
#if defined(__x86_64__)
    uint16_t here = EM_X86_64;
#elif defined(__aarch64__)
    uint16_t here = EM_AARCH64;
#else
    uint16_t here = EM_NONE;
#endif
    return n_bytes >= sizeof *head && head->e_machine == here;
}

/* The first error as a message. */
static moec_status
fault_from(const mc_diags *d, mc_fault *fault)
{
    const char *text = d->list.n ? d->list.items[0].text.data : "unknown";
    return mc_fail(fault, MOEC_ERR_INTERNAL, "cannot load the compiled code: %s", text);
}

moec_status
mc_backend_load(const void *object, size_t n_bytes, const char *name, mc_loaded **out, const moec_abi_model **out_abi,
                mc_fault *fault)
{
    if (!is_of_this_machine(object, n_bytes))
        return mc_fail(fault, MOEC_ERR_UNSUPPORTED,
                       "%s was compiled for another kind of processor; compile it with --target native to run it here",
                       name);
    mc_arena *arena = mc_arena_create();
    mc_sources sources = {.arena = arena};
    mc_diags diags;
    mc_diags_init(&diags, arena, &sources);
    mc_str symbol = mc_strf(arena, "moec_abi_query_%s", name);
    mc_jit *jit = mc_jit_load(object, n_bytes, &diags);
    uintptr_t address = jit ? mc_jit_symbol(jit, symbol.data, &diags) : 0;
    moec_status status = address ? MOEC_OK : fault_from(&diags, fault);
    if (status == MOEC_OK) {
        moec_abi_query_fn *query = (moec_abi_query_fn *)address;
        *out_abi = query(MOEC_ABI_VERSION);
        *out = calloc(1, sizeof **out);
        if (*out)
            (*out)->jit = jit;
        else
            status = mc_fail(fault, MOEC_ERR_MEMORY, "out of memory");
    }
    if (status != MOEC_OK) mc_jit_destroy(jit);
    mc_arena_destroy(arena);
    return status;
}

void
mc_backend_unload(mc_loaded *loaded)
{
    if (!loaded) return;
    mc_jit_destroy(loaded->jit);
    free(loaded);
}
