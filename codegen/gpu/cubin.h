/* cubin: what can be read in compiled GPU code without a disassembler: the resources of a kernel, and which
 * instructions it has. Any bytes may be given: every offset is checked. */
#ifndef MC_CODEGEN_GPU_CUBIN_H
#define MC_CODEGEN_GPU_CUBIN_H

#include "runtime/base/str.h"

/* The low 12 bits of an instruction, from Volta to Blackwell. */
typedef enum mc_opcode_gpu {
    MC_GPU_HGMMA = 0x9F0,   /* wgmma on bf16, f16 */
    MC_GPU_QGMMA = 0x9F3,   /* wgmma on f8 */
    MC_GPU_HMMA = 0x23C,    /* mma on bf16, f16, tf32 */
    MC_GPU_UTMALDG = 0x5B4, /* a copy of the copy engine, global to shared */
    MC_GPU_LDGSTS = 0xFAE,  /* cp.async */
    MC_GPU_LDSM = 0x83B,    /* ldmatrix */
    MC_GPU_LDG = 0x981,
    MC_GPU_STG = 0x986,
    MC_GPU_LDL = 0x983, /* local memory: spills, and arrays that are indexed */
    MC_GPU_STL = 0x387,
    MC_GPU_MUFU = 0x308,
    MC_GPU_SHFL = 0xF89
} mc_opcode_gpu;

typedef struct mc_cubin_kernel {
    mc_str text;        /* the instructions, 16 bytes each; points into the cubin */
    uint32_t registers; /* of a thread */
    uint32_t frame;     /* bytes of local memory of a thread */
    uint32_t shared;    /* bytes of static shared memory of a block */
    uint32_t constants; /* bytes of constant bank 0: parameters, and a head */
} mc_cubin_kernel;

/* False when this is no cubin, is damaged, or has no kernel of this name. */
bool mc_cubin_find(mc_str cubin, const char *kernel, mc_cubin_kernel *out);
size_t mc_cubin_count(const mc_cubin_kernel *kernel, uint32_t opcode);

/* What ptxas -v says about a kernel that the cubin does not. */
typedef struct mc_ptxas_report {
    uint32_t spill_stores, spill_loads; /* bytes */
    bool serialised;                    /* wgmma instructions wait for each other: C7511 and its like */
    uint32_t n_warnings;
} mc_ptxas_report;

mc_ptxas_report mc_ptxas_read(mc_str log);

#endif
