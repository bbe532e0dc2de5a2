/* The build id that the linker wrote into whatever holds this code (the command or the library): it changes with every
 * change of the program, so the cache never serves code of another moec that calls itself by the same version. */
#define _GNU_SOURCE
#include "driver/build_id.h"

#include <elf.h>
#include <link.h>
#include <string.h>

typedef struct search {
    uintptr_t inside; /* an address of ours */
    const unsigned char *id;
    size_t n_bytes;
} search;

static void
look_in_note(search *s, const unsigned char *note, size_t n_bytes)
{
    while (n_bytes >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) head;
        memcpy(&head, note, sizeof head);
        size_t name_bytes = (head.n_namesz + 3u) & ~3u, size = sizeof head + name_bytes + ((head.n_descsz + 3u) & ~3u);
        if (size > n_bytes) return;
        if (head.n_type == NT_GNU_BUILD_ID && head.n_namesz == 4 && memcmp(note + sizeof head, "GNU", 4) == 0) {
            s->id = note + sizeof head + name_bytes;
            s->n_bytes = head.n_descsz;
            return;
        }
        note += size;
        n_bytes -= size;
    }
}

static int
look(struct dl_phdr_info *info, size_t size, void *user)
{
    search *s = user;
    bool ours = false;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t begin = (uintptr_t)(info->dlpi_addr + p->p_vaddr);
        if (p->p_type == PT_LOAD && s->inside >= begin && s->inside < begin + p->p_memsz) ours = true;
    }
    if (!ours) return 0;
    for (int i = 0; i < info->dlpi_phnum && !s->id; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_NOTE)
            look_in_note(s, (const unsigned char *)(uintptr_t)(info->dlpi_addr + p->p_vaddr), p->p_memsz);
    }
    return 1;
}

mc_str
mc_build_id(void)
{
    search s = {.inside = (uintptr_t)mc_build_id};
    dl_iterate_phdr(look, &s);
    return (mc_str){(const char *)s.id, s.n_bytes};
}
