#define _POSIX_C_SOURCE 200809L
#include "tests/support/nvrtc_here.h"

#include "codegen/gpu/nvrtc.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

bool
mc_nvrtc_here(void)
{
    static int known = -1;
    if (known >= 0) return known;
    const char *why;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) _exit(mc_nvrtc_get(&why) ? 0 : 1);
    int status;
    known = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return known;
}

void
mc_nvrtc_test(TCase *tc, const TTest *test)
{
    if (mc_nvrtc_here())
        tcase_add_test(tc, test);
    else
        printf("skipped, for want of an NVRTC (tools/nvrtc.sh gets one): %s\n", test->name);
}
