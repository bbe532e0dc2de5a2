/* The surroundings of an IR test. */
#include "tests/support/ir_fixture.h"

#include <string.h>

#include "ir/print.h"
#include "tests/support/messages.h"

void
mc_ir_setup(mc_ir_fixture *x)
{
    *x = (mc_ir_fixture){.arena = mc_arena_create()};
    x->sources.arena = x->arena;
    mc_diags_init(&x->diags, x->arena, &x->sources);
}

void
mc_ir_teardown(mc_ir_fixture *x)
{
    for (size_t i = 0; i < x->modules.n; i++) mc_module_destroy(x->modules.items[i]);
    mc_arena_destroy(x->arena);
}

mc_module *
mc_ir_module(mc_ir_fixture *x)
{
    mc_module *m = mc_module_create(&x->sources);
    mc_vec_push(x->arena, &x->modules, m);
    return m;
}

mc_module *
mc_ir_read_named(mc_ir_fixture *x, const char *name, mc_str text)
{
    uint32_t file = mc_sources_add(&x->sources, mc_str_of(name), text);
    mc_module *m = mc_module_read(&x->sources, file, &x->diags);
    if (m) mc_vec_push(x->arena, &x->modules, m);
    return m;
}

mc_module *
mc_ir_read(mc_ir_fixture *x, const char *text)
{
    return mc_ir_read_named(x, "test.moir", mc_str_of(text));
}

static mc_str
take(mc_ir_fixture *x, mc_buf *text)
{
    mc_str copy = mc_str_dup(x->arena, mc_buf_view(text));
    mc_buf_fini(text);
    return copy;
}

mc_str
mc_ir_print(mc_ir_fixture *x, const mc_module *m)
{
    mc_buf text = {0};
    mc_module_print(m, &text);
    return take(x, &text);
}

mc_str
mc_ir_messages(mc_ir_fixture *x)
{
    return mc_messages(&x->diags);
}

bool
mc_ir_said(const mc_ir_fixture *x, mc_code code, const char *part)
{
    for (size_t i = 0; i < x->diags.list.n; i++) {
        const mc_diagnostic *d = &x->diags.list.items[i];
        if (d->code == code && strstr(d->text.data, part)) return true;
    }
    return false;
}
