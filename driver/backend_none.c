/* A build without LLVM: checking, formatting and passes work; making code says what is missing. */
#include "driver/backend.h"

static const char text[] = "this moec was built without LLVM, so it cannot make CPU code; build it with -DMOEC_LLVM=ON";

const char *
mc_backend_compiler(void)
{
    return "moec " MOEC_VERSION_STRING ", without LLVM";
}

bool
mc_backend_find(mc_unit *u, mc_backend_target *out)
{
    *out = (mc_backend_target){0};
    return mc_error(&u->diags, (mc_span){0}, MC_E0605, "%s", text);
}

bool
mc_backend_emit(mc_unit *u, const mc_backend_target *target, mc_code_kind kind, mc_buf *out)
{
    (void)target, (void)kind, (void)out;
    return mc_error(&u->diags, (mc_span){0}, MC_E0605, "%s", text);
}

moec_status
mc_backend_load(const void *object, size_t n_bytes, const char *name, mc_loaded **out, const moec_abi_model **out_abi,
                mc_fault *fault)
{
    (void)object, (void)n_bytes, (void)name, (void)out, (void)out_abi;
    return mc_fail(fault, MOEC_ERR_UNSUPPORTED, "%s", text);
}

void
mc_backend_unload(mc_loaded *loaded)
{
    (void)loaded;
}

bool
mc_backend_has_kernel(mc_opcode opcode)
{
    (void)opcode;
    return false;
}
