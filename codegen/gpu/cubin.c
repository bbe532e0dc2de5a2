/* A cubin is an ELF file of 64 bits: each kernel has a section .text.NAME, its static shared memory .nv.shared.NAME,
 * its constants .nv.constant0.NAME; .nv.info lists registers and local memory by symbol. */
#define _POSIX_C_SOURCE 200809L
#include "codegen/gpu/cubin.h"

#include <string.h>

enum {
    ELF_HEADER_BYTES = 64,
    SECTION_BYTES = 64,
    SYMBOL_BYTES = 24,
    MACHINE_CUDA = 190,
    NO_BITS = 8,
    SYMBOL_FUNCTION = 2,
    INSTRUCTION_BYTES = 16
};

/* Attributes of .nv.info: one byte of form, one of attribute, two of length (form 4 only: that many bytes follow). */
enum { FORM_SIZED = 4, INFO_FRAME_SIZE = 0x11, INFO_REGISTERS = 0x2F };

static uint64_t
read_bytes(mc_str s, size_t at, size_t n)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++) value |= (uint64_t)(unsigned char)s.data[at + i] << 8 * i;
    return value;
}

typedef struct section {
    mc_str name, bytes; /* bytes: empty when it takes no room in the file */
    uint64_t n_bytes;
} section;

typedef struct elf {
    mc_str file;
    uint64_t sections, n_sections, names; /* offset of the table; index of the section of names */
} elf;

static bool
part(mc_str s, uint64_t at, uint64_t n, mc_str *out)
{
    if (at > s.len || n > s.len - at) return false;
    *out = (mc_str){s.data + at, n};
    return true;
}

static mc_str
text_at(mc_str strings, uint64_t at)
{
    if (at >= strings.len) return (mc_str){0};
    const char *begin = strings.data + at;
    return (mc_str){begin, strnlen(begin, strings.len - at)};
}

static bool
open_elf(mc_str file, elf *e)
{
    if (file.len < ELF_HEADER_BYTES || memcmp(file.data, "\177ELF\2\1", 6) != 0) return false;
    *e = (elf){.file = file,
               .sections = read_bytes(file, 40, 8),
               .n_sections = read_bytes(file, 60, 2),
               .names = read_bytes(file, 62, 2)};
    mc_str table;
    return read_bytes(file, 18, 2) == MACHINE_CUDA && read_bytes(file, 58, 2) == SECTION_BYTES &&
           part(file, e->sections, e->n_sections * SECTION_BYTES, &table) && e->names < e->n_sections;
}

/* The bytes of a section; empty for one without bits in the file. False when it lies outside of the file. */
static bool
section_bytes(const elf *e, uint64_t index, mc_str *out, uint64_t *out_n_bytes)
{
    size_t at = e->sections + index * SECTION_BYTES;
    uint64_t n = read_bytes(e->file, at + 32, 8);
    *out_n_bytes = n;
    *out = (mc_str){0};
    return read_bytes(e->file, at + 4, 4) == NO_BITS || part(e->file, read_bytes(e->file, at + 24, 8), n, out);
}

static bool
get_section(const elf *e, uint64_t index, section *out)
{
    mc_str names;
    uint64_t unused;
    if (!section_bytes(e, e->names, &names, &unused)) return false;
    out->name = text_at(names, read_bytes(e->file, e->sections + index * SECTION_BYTES, 4));
    return section_bytes(e, index, &out->bytes, &out->n_bytes);
}

/* The section called prefix + name; SIZE_MAX when there is none. */
static size_t
find_section(const elf *e, const char *prefix, const char *name, section *out)
{
    size_t n = strlen(prefix);
    for (size_t i = 0; i < e->n_sections; i++)
        if (get_section(e, i, out) && mc_str_starts(out->name, prefix) &&
            mc_str_is(mc_str_slice(out->name, n, out->name.len), name))
            return i;
    *out = (section){0};
    return SIZE_MAX;
}

static uint64_t
find_symbol(const elf *e, const char *name)
{
    section symbols, strings;
    if (find_section(e, ".symtab", "", &symbols) == SIZE_MAX || find_section(e, ".strtab", "", &strings) == SIZE_MAX)
        return UINT64_MAX;
    for (uint64_t i = 0; i < symbols.bytes.len / SYMBOL_BYTES; i++) {
        size_t at = i * SYMBOL_BYTES;
        bool function = (read_bytes(symbols.bytes, at + 4, 1) & 15) == SYMBOL_FUNCTION;
        if (function && mc_str_is(text_at(strings.bytes, read_bytes(symbols.bytes, at, 4)), name)) return i;
    }
    return UINT64_MAX;
}

static void
read_info(const elf *e, uint64_t symbol, mc_cubin_kernel *out)
{
    section info;
    find_section(e, ".nv.info", "", &info);
    mc_str s = info.bytes;
    for (size_t at = 0; s.len - at >= 4;) {
        uint64_t form = read_bytes(s, at, 1), attribute = read_bytes(s, at + 1, 1);
        uint64_t n = form == FORM_SIZED ? read_bytes(s, at + 2, 2) : 0;
        at += 4;
        if (n > s.len - at) return;
        if (n == 8 && read_bytes(s, at, 4) == symbol) {
            if (attribute == INFO_REGISTERS) out->registers = (uint32_t)read_bytes(s, at + 4, 4);
            if (attribute == INFO_FRAME_SIZE) out->frame = (uint32_t)read_bytes(s, at + 4, 4);
        }
        at += n;
    }
}

bool
mc_cubin_find(mc_str cubin, const char *kernel, mc_cubin_kernel *out)
{
    *out = (mc_cubin_kernel){0};
    elf e;
    section text, shared, constants;
    if (!open_elf(cubin, &e) || find_section(&e, ".text.", kernel, &text) == SIZE_MAX) return false;
    uint64_t symbol = find_symbol(&e, kernel);
    if (symbol == UINT64_MAX) return false;
    find_section(&e, ".nv.shared.", kernel, &shared);
    find_section(&e, ".nv.constant0.", kernel, &constants);
    out->text = text.bytes;
    out->shared = (uint32_t)shared.n_bytes;
    out->constants = (uint32_t)constants.n_bytes;
    read_info(&e, symbol, out);
    return true;
}

size_t
mc_cubin_count(const mc_cubin_kernel *kernel, uint32_t opcode)
{
    size_t n = 0;
    for (size_t at = 0; at + INSTRUCTION_BYTES <= kernel->text.len; at += INSTRUCTION_BYTES)
        n += (read_bytes(kernel->text, at, 2) & 0xFFF) == opcode;
    return n;
}

/* ---- the compiler's log -------------------------------------------------------------------------------------- */

/* The number before `what`, as in "1496 bytes spill stores"; the greatest of all lines. */
static uint32_t
greatest_before(mc_str log, const char *what)
{
    uint32_t greatest = 0;
    size_t n = strlen(what);
    for (size_t i = 0; i + n <= log.len; i++) {
        if (memcmp(log.data + i, what, n) != 0) continue;
        size_t begin = i;
        while (begin > 0 && log.data[begin - 1] >= '0' && log.data[begin - 1] <= '9') begin--;
        uint32_t value = 0;
        for (size_t k = begin; k < i && value < UINT32_MAX / 16; k++)
            value = value * 10 + (uint32_t)(log.data[k] - '0');
        if (value > greatest) greatest = value;
    }
    return greatest;
}

static uint32_t
count_of(mc_str log, const char *what)
{
    uint32_t count = 0;
    size_t n = strlen(what);
    for (size_t i = 0; i + n <= log.len; i++) count += memcmp(log.data + i, what, n) == 0;
    return count;
}

mc_ptxas_report
mc_ptxas_read(mc_str log)
{
    return (mc_ptxas_report){.spill_stores = greatest_before(log, " bytes spill stores"),
                             .spill_loads = greatest_before(log, " bytes spill loads"),
                             .serialised =
                                 count_of(log, "C7511") || count_of(log, "C7517") || count_of(log, "serializ"),
                             .n_warnings = count_of(log, "warning")};
}
