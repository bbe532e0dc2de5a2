/* The only code that writes use lists, op lists and attributes. An op counts as a user from the moment it is created,
 * so a value is never without uses while something still refers to it. */
#include "ir/edit.h"

#include <assert.h>
#include <string.h>

#include "ir/op.h"

mc_func *
mc_func_create(mc_module *m, mc_str name, mc_span span)
{
    mc_func *f = MC_NEW(m->arena, mc_func);
    f->name = mc_str_dup(m->arena, name);
    f->module = m;
    f->span = span;
    if (m->last_func) {
        m->last_func->next = f;
    } else {
        m->funcs = f;
    }
    m->last_func = f;
    return f;
}

mc_value *
mc_func_add_formal(mc_func *f, const mc_type *type, mc_str name)
{
    mc_module *m = f->module;
    mc_value *v = MC_NEW(m->arena, mc_value);
    *v = (mc_value){.type = type, .func = f, .id = m->next_id++, .index = (uint32_t)f->formals.n};
    v->name = mc_str_dup(m->arena, name);
    mc_vec_push(m->arena, &f->formals, v);
    return v;
}

void
mc_func_set_formals(mc_func *f, mc_value *const *formals, size_t n)
{
    f->formals.n = 0;
    for (size_t i = 0; i < n; i++) {
        formals[i]->index = (uint32_t)i;
        mc_vec_push(f->module->arena, &f->formals, formals[i]);
    }
}

static void
unlink_use(mc_use *use)
{
    if (!use->value) return;
    *use->link = use->next;
    if (use->next) use->next->link = use->link;
    use->value = NULL;
    use->next = NULL;
    use->link = NULL;
}

static void
link_use(mc_use *use, mc_value *value)
{
    use->value = value;
    if (!value) return;
    use->next = value->uses;
    use->link = &value->uses;
    if (value->uses) value->uses->link = &use->next;
    value->uses = use;
}

void
mc_func_remove(mc_func *f)
{
    mc_module *m = f->module;
    MC_FOR_OPS(op, f)
    {
        for (int i = 0; i < op->n_operands; i++) unlink_use(&op->operands[i]);
    }
    mc_func *before = NULL;
    for (mc_func *g = m->funcs; g != f; g = g->next) before = g;
    if (before) {
        before->next = f->next;
    } else {
        m->funcs = f->next;
    }
    if (m->last_func == f) m->last_func = before;
    f->next = NULL;
}

/* Depth first with a stack of its own: a chain of calls may be as long as the module. */
typedef struct visit {
    mc_func *func;
    mc_op *op;
    int attr;
} visit;

typedef struct sorter {
    mc_arena *arena;
    mc_map seen; /* by name */
    MC_VEC(visit) stack;
    mc_func *first, **tail;
} sorter;

static void
enter(sorter *s, mc_func *f)
{
    if (!mc_map_set(&s->seen, f->name, f)) return;
    visit v = {f, f->first, 0};
    mc_vec_push(s->arena, &s->stack, v);
}

/* One step of the function on top of the stack: enters the next function it refers to, or places it. */
static void
step(sorter *s)
{
    visit *top = &s->stack.items[s->stack.n - 1];
    for (; top->op; top->op = top->op->next, top->attr = 0) {
        int n_attrs = mc_op_info_of(top->op)->n_attrs;
        while (top->attr < n_attrs) {
            const mc_attr *attr = &top->op->attrs[top->attr++];
            if (attr->kind != MC_ATTR_FUNC || !attr->as.func || mc_map_has(&s->seen, attr->as.func->name)) continue;
            enter(s, attr->as.func);
            return;
        }
    }
    *s->tail = top->func;
    s->tail = &top->func->next;
    s->stack.n--;
}

void
mc_module_sort_funcs(mc_module *m)
{
    sorter s = {.arena = mc_arena_create()};
    mc_map_init(&s.seen, s.arena);
    MC_VEC(mc_func *) all = {0};
    MC_FOR_FUNCS(f, m) mc_vec_push(s.arena, &all, f);
    s.tail = &s.first;
    for (size_t i = 0; i < all.n; i++) {
        enter(&s, all.items[i]);
        while (s.stack.n) step(&s);
    }
    *s.tail = NULL;
    m->funcs = s.first;
    m->last_func = NULL;
    MC_FOR_FUNCS(f, m) m->last_func = f;
    mc_arena_destroy(s.arena);
}

static mc_attr
copy_attr(mc_arena *arena, mc_attr attr)
{
    if (attr.kind == MC_ATTR_STR) attr.as.s = mc_str_dup(arena, attr.as.s);
    if (attr.kind == MC_ATTR_INTS) {
        attr.as.ints.items = mc_arena_copy(arena, attr.as.ints.items, attr.as.ints.n * sizeof(int64_t));
    }
    if (attr.kind == MC_ATTR_FLOATS) {
        attr.as.floats.items = mc_arena_copy(arena, attr.as.floats.items, attr.as.floats.n * sizeof(double));
    }
    return attr;
}

mc_op *
mc_op_create(mc_module *m, mc_opcode opcode, mc_value *const *operands, int n_operands,
             const mc_type *const *result_types, int n_results, const mc_attr *attrs, mc_span span)
{
    const mc_op_info *info = &mc_op_infos[opcode];
    int n_ports = info->n_operands;
    bool any = n_ports && info->operands[n_ports - 1].arity == MC_ARITY_ANY;
    /* Absent trailing operands get their place too, so that a pass can fill them in later. */
    int n = n_operands > n_ports - any ? n_operands : n_ports - any;
    assert(n <= UINT16_MAX && n_results <= UINT16_MAX);
    mc_op *op = MC_NEW(m->arena, mc_op);
    *op = (mc_op){.opcode = opcode, .n_operands = (uint16_t)n, .n_results = (uint16_t)n_results, .span = span};
    op->id = m->next_id++;
    op->operands = MC_NEW_N(m->arena, mc_use, n);
    op->results = MC_NEW_N(m->arena, mc_value, n_results);
    op->attrs = MC_NEW_N(m->arena, mc_attr, info->n_attrs);
    for (int i = 0; i < n; i++) {
        op->operands[i].user = op;
        link_use(&op->operands[i], i < n_operands ? operands[i] : NULL);
    }
    for (int i = 0; i < n_results; i++) {
        op->results[i] = (mc_value){.type = result_types[i], .def = op, .id = m->next_id++, .index = (uint32_t)i};
    }
    for (int i = 0; attrs && i < info->n_attrs; i++) op->attrs[i] = copy_attr(m->arena, attrs[i]);
    return op;
}

void
mc_op_insert_before(mc_func *f, mc_op *position, mc_op *op)
{
    assert(!op->func && (!position || position->func == f));
    op->func = f;
    op->next = position;
    op->prev = position ? position->prev : f->last;
    if (op->prev) {
        op->prev->next = op;
    } else {
        f->first = op;
    }
    if (position) {
        position->prev = op;
    } else {
        f->last = op;
    }
    for (int i = 0; i < op->n_results; i++) op->results[i].func = f;
}

/* op->next stays, so that a loop over the ops may remove the one it stands on. */
static void
unlink_op(mc_op *op)
{
    mc_func *f = op->func;
    if (op->prev) {
        op->prev->next = op->next;
    } else {
        f->first = op->next;
    }
    if (op->next) {
        op->next->prev = op->prev;
    } else {
        f->last = op->prev;
    }
    op->func = NULL;
}

void
mc_op_move_before(mc_op *position, mc_op *op)
{
    if (position == op) return;
    mc_func *f = position->func;
    assert(op->func == f);
    unlink_op(op);
    mc_op_insert_before(f, position, op);
}

void
mc_op_remove(mc_op *op)
{
    for (int i = 0; i < op->n_results; i++) assert(!op->results[i].uses);
    for (int i = 0; i < op->n_operands; i++) unlink_use(&op->operands[i]);
    if (op->func) unlink_op(op);
}

void
mc_op_set_operand(mc_op *op, int i, mc_value *value)
{
    assert(i >= 0 && i < op->n_operands);
    unlink_use(&op->operands[i]);
    link_use(&op->operands[i], value);
}

void
mc_op_set_attr(mc_op *op, const char *name, mc_attr attr)
{
    int i = mc_attr_index(op->opcode, mc_str_of(name));
    assert(i >= 0);
    assert(attr.kind == MC_ATTR_NONE || attr.kind == mc_op_info_of(op)->attrs[i].kind);
    mc_module *m = op->func ? op->func->module : NULL;
    assert(m || (attr.kind != MC_ATTR_STR && attr.kind != MC_ATTR_INTS && attr.kind != MC_ATTR_FLOATS));
    op->attrs[i] = m ? copy_attr(m->arena, attr) : attr;
}

void
mc_value_replace_uses(mc_value *old_value, mc_value *new_value)
{
    assert(old_value != new_value);
    while (old_value->uses) {
        mc_use *use = old_value->uses;
        unlink_use(use);
        link_use(use, new_value);
    }
}
