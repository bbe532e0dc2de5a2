/* An ELF object with the bytes of an image and a struct that says where they are and how many: what an assembler makes
 * of .incbin and two words, without one. The address in the struct is the linker's to fill in. */
#include "driver/link.h"

#include <elf.h>
#include <string.h>

enum { DATA = 1, WORDS, RELOCATIONS, SYMBOLS, NAMES, SECTION_NAMES, NO_STACK, N_SECTIONS, ALIGN = 64 };
enum { SYMBOL_DATA = 1, SYMBOL_STRUCT };

static const char section_names[] =
    "\0.rodata\0.data.rel.ro\0.rela.data.rel.ro\0.symtab\0.strtab\0.shstrtab\0.note.GNU-stack";

static uint32_t
section_name(const char *name)
{
    uint32_t at = 1;
    while (strcmp(section_names + at, name) != 0) at += (uint32_t)strlen(section_names + at) + 1;
    return at;
}

static void
pad(mc_buf *out, size_t align)
{
    while (out->len % align) mc_buf_putc(out, 0);
}

/* Appends the bytes as the section's content. */
static void
put(mc_buf *out, Elf64_Shdr *section, const void *data, size_t n_bytes, size_t align)
{
    pad(out, align);
    section->sh_offset = out->len;
    section->sh_size = n_bytes;
    section->sh_addralign = align;
    mc_buf_write(out, data, n_bytes);
}

static void
name_sections(Elf64_Shdr *s)
{
    s[DATA] = (Elf64_Shdr){.sh_name = section_name(".rodata"), .sh_type = SHT_PROGBITS, .sh_flags = SHF_ALLOC};
    s[WORDS] = (Elf64_Shdr){
        .sh_name = section_name(".data.rel.ro"), .sh_type = SHT_PROGBITS, .sh_flags = SHF_ALLOC | SHF_WRITE};
    s[RELOCATIONS] = (Elf64_Shdr){.sh_name = section_name(".rela.data.rel.ro"),
                                  .sh_type = SHT_RELA,
                                  .sh_flags = SHF_INFO_LINK,
                                  .sh_link = SYMBOLS,
                                  .sh_info = WORDS,
                                  .sh_entsize = sizeof(Elf64_Rela)};
    s[SYMBOLS] = (Elf64_Shdr){.sh_name = section_name(".symtab"),
                              .sh_type = SHT_SYMTAB,
                              .sh_link = NAMES,
                              .sh_info = SYMBOL_STRUCT, /* the first that others see */
                              .sh_entsize = sizeof(Elf64_Sym)};
    s[NAMES] = (Elf64_Shdr){.sh_name = section_name(".strtab"), .sh_type = SHT_STRTAB};
    s[SECTION_NAMES] = (Elf64_Shdr){.sh_name = section_name(".shstrtab"), .sh_type = SHT_STRTAB};
    s[NO_STACK] = (Elf64_Shdr){.sh_name = section_name(".note.GNU-stack"), .sh_type = SHT_PROGBITS};
}

void
mc_link_image(mc_str image, const char *name, mc_buf *out)
{
    Elf64_Shdr sections[N_SECTIONS] = {{0}};
    mc_buf names = {0};
    mc_buf_putc(&names, 0);
    mc_buf_printf(&names, "moec_gpu_image_%s", name);
    mc_buf_putc(&names, 0);
    const uint64_t words[2] = {0, image.len}; /* moec_gpu_image */
    const Elf64_Sym symbols[] = {
        {0},
        {.st_info = ELF64_ST_INFO(STB_LOCAL, STT_SECTION), .st_shndx = DATA},
        {.st_name = 1, .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT), .st_shndx = WORDS, .st_size = sizeof words}};
    const Elf64_Xword kind = mc_link_machine() == EM_AARCH64 ? R_AARCH64_ABS64 : R_X86_64_64;
    const Elf64_Rela relocation = {.r_info = ELF64_R_INFO((Elf64_Xword)SYMBOL_DATA, kind)};
    Elf64_Ehdr head = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
                       .e_type = ET_REL,
                       .e_machine = (Elf64_Half)mc_link_machine(),
                       .e_version = EV_CURRENT,
                       .e_ehsize = sizeof(Elf64_Ehdr),
                       .e_shentsize = sizeof(Elf64_Shdr),
                       .e_shnum = N_SECTIONS,
                       .e_shstrndx = SECTION_NAMES};
    name_sections(sections);
    mc_buf_clear(out);
    mc_buf_write(out, &head, sizeof head);
    put(out, &sections[DATA], image.data, image.len, ALIGN);
    put(out, &sections[WORDS], words, sizeof words, 8);
    put(out, &sections[RELOCATIONS], &relocation, sizeof relocation, 8);
    put(out, &sections[SYMBOLS], symbols, sizeof symbols, 8);
    put(out, &sections[NAMES], names.data, names.len, 1);
    put(out, &sections[SECTION_NAMES], section_names, sizeof section_names, 1);
    put(out, &sections[NO_STACK], "", 0, 1);
    pad(out, 8);
    head.e_shoff = out->len;
    memcpy(out->data, &head, sizeof head);
    mc_buf_write(out, sections, sizeof sections);
    mc_buf_fini(&names);
}
