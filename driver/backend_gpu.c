/* The GPU backend behind driver/backend.h. */
#include "codegen/gpu/gpu.h"
#include "driver/backend.h"
#include "driver/describe.h"
#include "runtime/base/cache_dir.h"
#include "runtime/image.h"

bool
mc_backend_gpu_has_kernel(mc_opcode opcode)
{
    return mc_gpu_has_kernel(opcode);
}

/* Where kernels are kept; NULL when nowhere, with a warning when that is not what was asked for. */
static const char *
kernel_cache(mc_unit *u)
{
    mc_buf directory = {0};
    mc_fault fault = {0};
    const char *path = NULL;
    if (u->options->cache && !*u->options->cache) return NULL;
    moec_status status = mc_cache_directory(u->options->cache, "kernels", &directory, &fault);
    if (status == MOEC_OK)
        path = mc_str_dup(u->arena, mc_buf_view(&directory)).data;
    else if (status != MOEC_ERR_NOT_FOUND)
        mc_warning(&u->diags, (mc_span){0}, MC_W0913, "compiled kernels are not kept: %s", fault.text);
    mc_buf_fini(&directory);
    return path;
}

bool
mc_backend_gpu_emit(mc_unit *u, mc_buf *out)
{
    mc_gpu_options options = {.name = mc_unit_name(u)};
    mc_gpu_result result;
    if (!mc_gpu_archs_read(u->options->gpu, &u->diags, &options)) return false;
    options.rules = mc_describe_rules(u);
    options.meta = mc_describe_meta(u);
    options.toolchain.cache = kernel_cache(u);
    options.toolchain.dump_dir = u->options->dump_dir;
    if (!mc_gpu_compile(u->module, &options, &u->diags, &result)) return false;
    mc_image_write(result.abi, out);
    mc_gpu_result_fini(&result);
    return true;
}
