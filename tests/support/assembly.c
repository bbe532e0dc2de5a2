/* Reads LLVM's comments in assembly: "Depth=" marks a block inside a loop, "Spill" and "Reload" what the register
 * allocator added. */
#include "tests/support/assembly.h"

#include <check.h>
#include <string.h>

int
mc_spills_in_loops(const char *assembly, const char *label)
{
    const char *at = strstr(assembly, label), *end = at ? strstr(at, "Lfunc_end") : NULL;
    ck_assert_msg(at && end, "no %s in the assembly", label);
    int n = 0, depth = 0;
    for (; at < end; at = strchr(at, '\n') + 1) {
        const char *newline = strchr(at, '\n');
        char line[256] = {0};
        memcpy(line, at, (size_t)(newline - at) < sizeof line ? (size_t)(newline - at) : sizeof line - 1);
        if ((strstr(line, "LBB") && strchr(line, ':')) || strstr(line, "%bb.")) depth = 0;
        if (strstr(line, "Depth=")) depth = 1;
        if (depth && (strstr(line, "Spill") || strstr(line, "Reload"))) n++;
    }
    return n;
}
