/* moec explain: the page of a diagnostic code. The pages of docs/errors travel inside moec. */
#include "driver/command.h"
#include "runtime/base/embedded.h"

#include <ctype.h>
#include <stdio.h>

extern const mc_embedded mc_error_pages[];

int
mc_cmd_explain(const mc_cli *cli)
{
    const char *word = mc_cli_one_file(cli);
    if (!word) return MC_EXIT_USAGE;
    char name[16];
    size_t n = 0;
    for (; word[n] && n + 1 < sizeof name; n++) name[n] = (char)toupper((unsigned char)word[n]);
    name[n] = 0;
    mc_code code = mc_code_find(mc_str_of(name));
    if (code == MC_N_CODES) return mc_cli_usage("no diagnostic has the code %s; docs/ERRORS.md lists them", word);
    for (const mc_embedded *page = mc_error_pages; page->name; page++) {
        if (!mc_str_is(mc_str_of(name), page->name)) continue;
        printf("%.*s", (int)page->n, (const char *)page->data);
        return MC_EXIT_OK;
    }
    printf("%s: %s: %s\n", name, mc_code_slug(code), mc_code_text(code));
    return MC_EXIT_OK;
}
