/* The backend's entry. Selection first decides everything (codegen/plan), so an op without a kernel is refused before
 * NVRTC is looked for; then every kernel that was asked for is compiled, once for each architecture. */
#include "codegen/gpu/gpu.h"

#include "codegen/gpu/sample.h"
#include "codegen/gpu/select.h"
#include "runtime/base/hash.h"

#include <stdio.h>
#include <string.h>

typedef struct arch {
    uint32_t number;
    const char *name;
} arch;

static const arch archs[] = {{80, "sm_80"}, {89, "sm_89"}, {90, "sm_90a"}, {100, "sm_100a"}};

bool
mc_gpu_has_kernel(mc_opcode opcode)
{
    return mc_gpu_backend.select[opcode] != NULL || opcode == MC_OP_CALL;
}

const char *
mc_gpu_arch_name(uint32_t number)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (archs[i].number == number) return archs[i].name;
    return NULL;
}

static bool
add_arch(mc_str name, mc_gpu_options *options)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        if (!mc_str_is(name, archs[i].name)) continue;
        for (size_t j = 0; j < options->n_archs; j++)
            if (options->archs[j] == archs[i].number) return true;
        options->archs[options->n_archs++] = archs[i].number;
        return true;
    }
    return false;
}

bool
mc_gpu_archs_read(const char *text, mc_diags *d, mc_gpu_options *options)
{
    options->n_archs = 0;
    if (strcmp(text, "all") == 0) text = "sm_80,sm_89,sm_90a,sm_100a";
    for (const char *at = text;; at++) {
        size_t n = strcspn(at, ",");
        if (!add_arch((mc_str){at, n}, options))
            return mc_error(d, (mc_span){0}, MC_E0704,
                            "'%.*s' is no GPU architecture that moec knows: use sm_80, sm_89, sm_90a, sm_100a, several "
                            "with commas between, or all",
                            (int)n, at);
        at += n;
        if (!*at) return true;
    }
}

/* ---- code ---------------------------------------------------------------------------------------------------- */

static const char *
arch_list(mc_arena *arena, const mc_gpu_options *o)
{
    mc_str list = {0};
    for (size_t i = 0; i < o->n_archs; i++)
        list = mc_strf(arena, "%.*s%s%s", MC_FMT(list), i ? "," : "", mc_gpu_arch_name(o->archs[i]));
    return list.data;
}

static bool
compile_kernels(const mc_plan *p, const mc_gpu_options *o, mc_diags *d, moec_abi_gpu *gpu)
{
    size_t n = p->kernels.n * o->n_archs;
    mc_gpu_source *sources = MC_NEW_N(p->arena, mc_gpu_source, n + 1);
    mc_str *cubins = MC_NEW_N(p->arena, mc_str, n + 1);
    moec_abi_gpu_code *codes = MC_NEW_N(p->arena, moec_abi_gpu_code, n + 1);
    for (size_t i = 0; i < n; i++) {
        const mc_plan_kernel *k = p->kernels.items[i / o->n_archs];
        uint32_t number = o->archs[i % o->n_archs];
        const mc_gpu_code *c = mc_gpu_kernel_code(k, number);
        sources[i] = (mc_gpu_source){k->name.data, mc_gpu_kernel_text(p->arena, k, number), number, c->spills_allowed};
        codes[i] = (moec_abi_gpu_code){.kernel = k->index,
                                       .arch = number,
                                       .threads = c->threads,
                                       .shared_bytes = c->shared,
                                       .cluster = c->cluster ? c->cluster : 1,
                                       .per_sm = c->per_sm,
                                       .n_maps = c->n_maps};
        memcpy(codes[i].maps, c->maps, sizeof c->maps);
        for (int axis = 0; axis < 3; axis++)
            codes[i].grid[axis] =
                c->grid[axis].div ? c->grid[axis] : (moec_abi_grid_axis){.from = MOEC_ABI_GRID_ONE, .div = 1, .add = 1};
    }
    if (!mc_gpu_toolchain_compile(&o->toolchain, sources, n, p->arena, d, cubins)) return false;
    for (size_t i = 0; i < n; i++) {
        codes[i].cubin = cubins[i].data;
        codes[i].n_bytes = cubins[i].len;
    }
    gpu->codes = codes;
    gpu->n_codes = (uint32_t)n;
    return true;
}

/* ---- the descriptor ------------------------------------------------------------------------------------------ */

static const char *
text_of(mc_arena *arena, mc_str s, const char *otherwise)
{
    return s.len ? mc_str_dup(arena, s).data : otherwise;
}

/* Scratch sizes go to the end of the table of expressions. */
static void
place_scratch(mc_plan *p, moec_abi_gpu *gpu)
{
    gpu->first_scratch = (uint32_t)p->exprs.n;
    gpu->n_scratch = (uint32_t)p->scratches.n;
    for (size_t i = 0; i < p->scratches.n; i++) mc_vec_push(p->arena, &p->exprs, p->scratches.items[i]);
}

static const moec_abi_model *
describe(const mc_module *plan, const mc_plan *p, const mc_gpu_options *o, const moec_abi_gpu *gpu)
{
    const char **names = MC_NEW_N(p->arena, const char *, p->kernels.n + 1);
    for (size_t i = 0; i < p->kernels.n; i++) names[i] = p->kernels.items[i]->name.data;
    moec_abi_model *m = MC_NEW(p->arena, moec_abi_model);
    *m = mc_plan_abi(p);
    m->name = text_of(p->arena, o->name.len ? o->name : mc_module_model(plan)->name, "model");
    m->compiler = mc_strf(p->arena, "moec %s, %s", MOEC_VERSION_STRING, mc_gpu_toolchain_name()).data;
    m->target = "cuda";
    m->cpu = gpu->archs;
    m->features = "";
    m->hash = o->hash ? o->hash : mc_plan_hash(plan, mc_hash64(gpu->archs, strlen(gpu->archs), 0));
    m->weights_hash = mc_plan_hash_weights(p, o->rules);
    m->rules = text_of(p->arena, o->rules, "");
    m->meta = text_of(p->arena, o->meta, "{}");
    m->kernel_names = names;
    m->gpu = gpu;
    return m;
}

bool
mc_gpu_compile(const mc_module *plan, const mc_gpu_options *options, mc_diags *d, mc_gpu_result *out)
{
    *out = (mc_gpu_result){.arena = mc_arena_create()};
    mc_plan *p = MC_NEW(out->arena, mc_plan);
    moec_abi_gpu *gpu = MC_NEW(out->arena, moec_abi_gpu);
    gpu->archs = arch_list(out->arena, options);
    bool ok = mc_plan_build(p, out->arena, plan, &mc_gpu_backend, d);
    if (ok) mc_gpu_add_sampling(p);
    if (!ok || !compile_kernels(p, options, d, gpu)) {
        mc_gpu_result_fini(out);
        return false;
    }
    place_scratch(p, gpu);
    out->n_kernels = (int)p->kernels.n;
    out->abi = describe(plan, p, options, gpu);
    return true;
}

void
mc_gpu_result_fini(mc_gpu_result *result)
{
    mc_arena_destroy(result->arena);
    *result = (mc_gpu_result){0};
}
