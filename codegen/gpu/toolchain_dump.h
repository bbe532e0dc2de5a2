/* toolchain_dump: what --dump-dir shows of a compiled kernel. */
#ifndef MC_CODEGEN_GPU_TOOLCHAIN_DUMP_H
#define MC_CODEGEN_GPU_TOOLCHAIN_DUMP_H

#include "codegen/gpu/toolchain.h"

/* Writes NAME.ARCH.cu, .ptx, .cubin (where there are any) and .txt. False after E0910. */
bool mc_gpu_dump(const char *directory, const mc_gpu_source *source, mc_str ptx, const mc_gpu_built *built,
                 mc_diags *d);

#endif
