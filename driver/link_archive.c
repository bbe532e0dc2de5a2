/* Archives in the System V format, with no dates or owners, so that they are reproducible. */
#include "driver/link.h"

#include <stdio.h>

static moec_status
archive_member(mc_writer *w, const char *name, const void *data, size_t n_bytes, mc_fault *fault)
{
    char header[61], field[17];
    snprintf(field, sizeof field, "%s/", name);
    snprintf(header, sizeof header, "%-16s%-12s%-6s%-6s%-8s%-10zu`\n", field, "0", "0", "0", "644", n_bytes);
    moec_status status = mc_writer_write(w, header, 60, fault);
    if (status == MOEC_OK) status = mc_writer_write(w, data, n_bytes, fault);
    if (status == MOEC_OK && n_bytes % 2) status = mc_writer_write(w, "\n", 1, fault);
    return status;
}

static void
put_be32(mc_buf *b, uint32_t x)
{
    for (int shift = 24; shift >= 0; shift -= 8) mc_buf_putc(b, (char)(x >> shift));
}

/* A member: what a caller can refer to in it comes before it in the index. */
typedef struct member {
    const char *name;
    mc_str data;
    const char *const *symbols;
    size_t n_symbols;
} member;

enum { MAX_MEMBERS = 3 };

static uint32_t
padded(size_t n_bytes)
{
    return (uint32_t)(60 + n_bytes + n_bytes % 2);
}

/* The symbol index that linkers want lists, for each global name, the member that defines it. */
static void
write_index(const member *members, size_t n, mc_buf *out)
{
    mc_buf names = {0};
    size_t n_symbols = 0;
    for (size_t i = 0; i < n; i++) {
        n_symbols += members[i].n_symbols;
        for (size_t j = 0; j < members[i].n_symbols; j++) {
            mc_buf_puts(&names, members[i].symbols[j]);
            mc_buf_putc(&names, 0);
        }
    }
    uint32_t at = 8 + padded(4 + 4 * n_symbols + names.len);
    put_be32(out, (uint32_t)n_symbols);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < members[i].n_symbols; j++) put_be32(out, at);
        at += padded(members[i].data.len);
    }
    mc_buf_write(out, names.data, names.len);
    mc_buf_fini(&names);
}

static moec_status
write_members(const member *members, size_t n, const char *path, mc_fault *fault)
{
    mc_writer *w;
    mc_buf index = {0};
    moec_status status = mc_writer_open(path, &w, fault);
    if (status != MOEC_OK) return status;
    write_index(members, n, &index);
    status = mc_writer_write(w, "!<arch>\n", 8, fault);
    if (status == MOEC_OK) status = archive_member(w, "", index.data, index.len, fault);
    for (size_t i = 0; status == MOEC_OK && i < n; i++)
        status = archive_member(w, members[i].name, members[i].data.data, members[i].data.len, fault);
    mc_buf_fini(&index);
    if (status == MOEC_OK) return mc_writer_commit(w, 0644, fault);
    mc_writer_abandon(w);
    return status;
}

moec_status
mc_link_archive(const mc_link_input *code, mc_str image, mc_str runtime, const char *path, mc_fault *fault)
{
    static const char *const api[] = {
#define MC_EXPORT(symbol) #symbol,
#include "driver/exports.def"
#undef MC_EXPORT
    };
    mc_buf query = {0}, gpu = {0};
    mc_buf_printf(&query, "moec_abi_query_%s", code->name);
    mc_buf_printf(&gpu, "moec_gpu_image_%s", code->name);
    const char *const cpu_symbols[] = {query.data}, *const gpu_symbols[] = {gpu.data};
    member members[MAX_MEMBERS];
    size_t n = 0;
    if (code->object.len) members[n++] = (member){"model.o", code->object, cpu_symbols, 1};
    if (image.len) members[n++] = (member){"image.o", image, gpu_symbols, 1};
    members[n++] = (member){"runtime.o", runtime, api, sizeof api / sizeof *api};
    moec_status status = write_members(members, n, path, fault);
    mc_buf_fini(&query);
    mc_buf_fini(&gpu);
    return status;
}
