/* Four files for each kernel. The report gives resources and the count of the instructions that matter. */
#include "codegen/gpu/toolchain_dump.h"

#include "codegen/gpu/cubin.h"
#include "codegen/gpu/gpu.h"
#include "runtime/base/file.h"

static const struct {
    uint32_t opcode;
    const char *what;
} counted[] = {{MC_GPU_HGMMA, "HGMMA"}, {MC_GPU_QGMMA, "QGMMA"},   {MC_GPU_HMMA, "HMMA"}, {MC_GPU_UTMALDG, "UTMALDG"},
               {MC_GPU_LDSM, "LDSM"},   {MC_GPU_LDGSTS, "LDGSTS"}, {MC_GPU_LDG, "LDG"},   {MC_GPU_STG, "STG"},
               {MC_GPU_LDL, "LDL"},     {MC_GPU_STL, "STL"},       {MC_GPU_MUFU, "MUFU"}, {MC_GPU_SHFL, "SHFL"}};

static void
report(const mc_gpu_source *source, const mc_gpu_built *built, mc_buf *out)
{
    mc_cubin_kernel k;
    mc_ptxas_report r = mc_ptxas_read(built->log);
    mc_buf_printf(out, "%s for %s\n", source->name, mc_gpu_arch_name(source->arch));
    if (mc_cubin_find(built->cubin, source->name, &k)) {
        mc_buf_printf(out, "%zu bytes, %zu instructions\n", built->cubin.len, k.text.len / 16);
        mc_buf_printf(out, "registers %u, stack %u bytes, static shared memory %u bytes\n", k.registers, k.frame,
                      k.shared);
        mc_buf_printf(out, "spills: %u bytes stored, %u bytes loaded%s\n", r.spill_stores, r.spill_loads,
                      r.serialised ? "; wgmma instructions are serialised" : "");
        for (size_t i = 0; i < sizeof counted / sizeof *counted; i++) {
            size_t n = mc_cubin_count(&k, counted[i].opcode);
            if (n) mc_buf_printf(out, "%-8s %zu\n", counted[i].what, n);
        }
    }
    mc_buf_printf(out, "\n%.*s", MC_FMT(built->log));
}

static bool
write(const char *directory, const mc_gpu_source *source, const char *ending, mc_str content, mc_diags *d)
{
    mc_buf path = {0};
    mc_fault fault = {{0}};
    mc_buf_printf(&path, "%s/%s.%s.%s", directory, source->name, mc_gpu_arch_name(source->arch), ending);
    bool good = mc_file_write(path.data, content.data, content.len, 0644, &fault) == MOEC_OK;
    if (!good) mc_error(d, (mc_span){0}, MC_E0910, "%s", fault.text);
    mc_buf_fini(&path);
    return good;
}

bool
mc_gpu_dump(const char *directory, const mc_gpu_source *source, mc_str ptx, const mc_gpu_built *built, mc_diags *d)
{
    mc_fault fault = {{0}};
    if (mc_make_directories(directory, &fault) != MOEC_OK) return mc_error(d, (mc_span){0}, MC_E0910, "%s", fault.text);
    mc_buf text = {0};
    report(source, built, &text);
    bool good = write(directory, source, "cu", source->text, d) &&
                write(directory, source, "txt", mc_buf_view(&text), d) &&
                (!ptx.len || write(directory, source, "ptx", ptx, d)) &&
                (!built->cubin.len || write(directory, source, "cubin", built->cubin, d));
    mc_buf_fini(&text);
    return good;
}
