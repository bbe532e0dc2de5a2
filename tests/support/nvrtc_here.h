/* nvrtc_here: tests that need an NVRTC are left out where there is none, by name.
 *
 *     mc_nvrtc_test(tc, test_compile);      tcase_add_test, or a line that says what is skipped
 */
#ifndef MC_SUPPORT_NVRTC_HERE_H
#define MC_SUPPORT_NVRTC_HERE_H

#include <check.h>
#include <stdbool.h>

/* Asked in a process of its own: this one does not load the library. */
bool mc_nvrtc_here(void);
void mc_nvrtc_test(TCase *tc, const TTest *test);

#endif
