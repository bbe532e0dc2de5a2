/* golden: tests that are text files with their expected output inside.
 *
 *     # RUN: moec opt --passes=fuse-moe %s          what to do; the test decides what it means
 *     moir 1 stage=tensor
 *     ...
 *     # EXPECT
 *     #| moir 1 stage=tensor                        the expected output, line by line
 *
 *     %w = linear %x, %w  # error E0310             on an offending line of a file that must be refused
 *
 * BLESS=1 in the environment rewrites the EXPECT block with what was produced; the review is the diff. `#` begins a
 * comment in .moe and .moir alike, so that the file is its own input.
 *
 *     mc_golden_file g;
 *     if (!mc_golden_load(&g, path, &fault)) ...
 *     produce(g.text, mc_golden_run(&g), &out);
 *     if (!mc_golden_check(&g, mc_buf_view(&out), &report)) ck_abort_msg("%s", report.data);
 *     mc_golden_free(&g);
 */
#ifndef MC_SUPPORT_GOLDEN_H
#define MC_SUPPORT_GOLDEN_H

#include "ir/diag.h"
#include "runtime/base/file.h"

typedef struct mc_golden {
    mc_arena *arena;
    const char *path;
    mc_str text;   /* the whole file */
    mc_str run;    /* the words after "# RUN:"; empty when there is none */
    mc_str expect; /* the lines of the EXPECT block without "#| "; meaningful when has_expect */
    bool has_expect;
} mc_golden;

/* False when the file cannot be read; *fault says why. */
bool mc_golden_load(mc_golden *out, const char *path, mc_fault *fault);
void mc_golden_free(mc_golden *g);

/* Is `produced` the text of the EXPECT block? With BLESS=1 the block is written first (added when there is none), and
 * the answer is true. Otherwise *report gets the first line that differs, with both texts of it. */
bool mc_golden_check(const mc_golden *g, mc_str produced, mc_buf *report);

/* Do the errors and warnings in `diags` and the "# error CODE" / "# warning CODE" comments of source `file` match, code
 * and line? A line may hold several comments. Anything missing or unexpected goes to *report. */
bool mc_golden_check_diags(const mc_golden *g, const mc_diags *diags, uint32_t file, mc_buf *report);

/* The paths under `folder` (and its folders) that end with `suffix`, sorted; relative to the working directory as
 * `folder` is. Aborts the test run when the folder cannot be read: a test that finds no files must not pass. */
typedef MC_VEC(const char *) mc_paths;
mc_paths mc_golden_find(mc_arena *arena, const char *folder, const char *suffix);

#endif
