/* ir_fixture: what a test of the IR needs around it: an arena, sources and diagnostics.
 *
 *     mc_ir_fixture x;
 *     mc_ir_setup(&x);
 *     mc_module *m = mc_ir_read(&x, "moir 1 stage=tensor\n...");
 *     ...
 *     mc_ir_teardown(&x);     destroys the modules it read, too
 */
#ifndef MC_SUPPORT_IR_FIXTURE_H
#define MC_SUPPORT_IR_FIXTURE_H

#include "ir/diag.h"
#include "ir/ir.h"

typedef struct mc_ir_fixture {
    mc_arena *arena;
    mc_sources sources;
    mc_diags diags;
    MC_VEC(mc_module *) modules;
} mc_ir_fixture;

void mc_ir_setup(mc_ir_fixture *x);
void mc_ir_teardown(mc_ir_fixture *x);
/* An empty module, destroyed by teardown. */
mc_module *mc_ir_module(mc_ir_fixture *x);
/* NULL when refused; the source is called `name`. */
mc_module *mc_ir_read_named(mc_ir_fixture *x, const char *name, mc_str text);
mc_module *mc_ir_read(mc_ir_fixture *x, const char *text);
/* In the fixture's arena. */
mc_str mc_ir_print(mc_ir_fixture *x, const mc_module *m);
mc_str mc_ir_messages(mc_ir_fixture *x); /* every diagnostic, rendered */
/* Was a diagnostic with this code given whose text contains `part`? */
bool mc_ir_said(const mc_ir_fixture *x, mc_code code, const char *part);

#endif
