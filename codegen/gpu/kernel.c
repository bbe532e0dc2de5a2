/* Kernels as text and numbers: see kernel.h. Two ops that want the same kernel name the same one. */
#include "codegen/gpu/kernel.h"

#include <stdarg.h>
#include <string.h>

mc_plan_kernel *
mc_gpu_kernel_get(mc_plan *p, const mc_gpu_code *code, const char *name_format, ...)
{
    va_list args;
    va_start(args, name_format);
    mc_str name = mc_strfv(p->arena, name_format, args);
    va_end(args);
    mc_plan_kernel *k = mc_plan_kernel_get(p, NULL, NULL, 0, "%.*s", MC_FMT(name));
    if (k->data) return k;
    mc_gpu_kernel *g = MC_NEW(p->arena, mc_gpu_kernel);
    g->code = *code;
    k->data = g;
    return k;
}

void
mc_gpu_kernel_special(mc_plan *p, mc_plan_kernel *kernel, uint32_t arch, const mc_gpu_code *code)
{
    mc_gpu_kernel *g = (mc_gpu_kernel *)(uintptr_t)kernel->data;
    if (g->special) return;
    g->special = mc_arena_copy(p->arena, code, sizeof *code);
    g->special_arch = arch;
}

void
mc_gpu_grid(mc_gpu_code *code, int axis, uint32_t from, uint32_t div)
{
    code->grid[axis] = (moec_abi_grid_axis){.from = from, .div = div};
}

void
mc_gpu_value(mc_plan *p, const mc_value *v)
{
    mc_plan_ptr(p, v);
}

bool
mc_gpu_grows(const mc_plan *p, mc_dim d)
{
    for (int i = 0; i < d.n_syms; i++)
        if (p->syms.items[d.syms[i]].kind == 2) return true;
    return false;
}

void
mc_gpu_int(mc_plan *p, mc_dim value)
{
    if (mc_gpu_grows(p, value)) {
        mc_plan_refuse(p, "a size of its launch changes with every cached position");
        value = mc_dim_const(0);
    }
    mc_plan_int(p, value);
}

const char *
mc_gpu_type(moec_dtype dtype)
{
    switch (dtype) {
    case MOEC_F32: return "f32";
    case MOEC_BF16: return "bf16";
    case MOEC_F16: return "f16";
    case MOEC_F8E4M3: return "f8e4m3";
    case MOEC_F8E5M2: return "f8e5m2";
    case MOEC_F64: return "f64";
    case MOEC_I32: return "i32";
    case MOEC_I64: return "i64";
    case MOEC_I8: return "i8";
    case MOEC_U8: return "u8";
    case MOEC_BOOL: return "u8";
    case MOEC_DTYPE_NONE: break;
    }
    return "void";
}

const mc_gpu_code *
mc_gpu_kernel_code(const mc_plan_kernel *kernel, uint32_t arch)
{
    const mc_gpu_kernel *g = kernel->data;
    return g->special && g->special_arch == arch ? g->special : &g->code;
}

mc_str
mc_gpu_kernel_text(mc_arena *arena, const mc_plan_kernel *kernel, uint32_t arch)
{
    const mc_gpu_code *c = mc_gpu_kernel_code(kernel, arch);
    mc_str bounds = c->blocks ? mc_strf(arena, "%u, %u", c->threads, c->blocks) : mc_strf(arena, "%u", c->threads);
    return mc_strf(arena,
                   "#include \"%s\"\n%.*s\nextern \"C\" __global__ void __launch_bounds__(%.*s)\n"
                   "%.*s(const __grid_constant__ mc_args a%s)\n{\n    %.*s\n}\n",
                   c->file, MC_FMT(c->prelude), MC_FMT(bounds), MC_FMT(kernel->name),
                   c->n_maps ? ", const __grid_constant__ mc_maps m" : "", MC_FMT(c->call));
}
