/* The text form, out. One generic syntax for all ops, driven by the op table.
 *
 * Names: a value with a hint is printed as %hint, made unique within its function by .2, .3, ...; the others are
 * numbered in order of printing. A printed name is therefore unique, so that a reader that keeps it as the hint
 * prints it again unchanged: the law print(read(print(m))) == print(m) rests on this. */
#include "ir/print.h"

#include <string.h>

#include "ir/moir.h"
#include "ir/op.h"
#include "runtime/base/map.h"

/* Names of the values of one function. */
typedef struct namer {
    mc_arena *arena;
    mc_map names; /* id bytes -> mc_str */
    mc_map taken; /* name -> the last suffix tried for it */
    int next_number;
} namer;

static mc_str
id_key(const mc_value *v)
{
    return (mc_str){(const char *)&v->id, sizeof v->id};
}

static mc_str
fresh_name(namer *n, const mc_value *v)
{
    if (!mc_moir_is_ident(v->name)) return mc_strf(n->arena, "%d", n->next_number++);
    int *last = mc_map_get(&n->taken, v->name);
    mc_str name = v->name;
    while (last) {
        name = mc_strf(n->arena, "%.*s.%d", MC_FMT(v->name), ++*last);
        if (!mc_map_has(&n->taken, name)) break;
    }
    int *suffix = MC_NEW(n->arena, int);
    *suffix = 1;
    mc_map_set(&n->taken, name, suffix);
    return name;
}

static void
name_value(namer *n, const mc_value *v)
{
    mc_str *name = MC_NEW(n->arena, mc_str);
    *name = fresh_name(n, v);
    mc_map_set(&n->names, id_key(v), name);
}

static void
name_func(namer *n, const mc_func *f)
{
    *n = (namer){.arena = mc_arena_create()};
    mc_map_init(&n->names, n->arena);
    mc_map_init(&n->taken, n->arena);
    for (size_t i = 0; i < f->formals.n; i++) name_value(n, f->formals.items[i]);
    MC_FOR_OPS(op, f)
    {
        for (int i = 0; i < op->n_results; i++) name_value(n, &op->results[i]);
    }
}

static void
print_value(const namer *n, const mc_value *v, mc_buf *out)
{
    const mc_str *name = mc_map_get(&n->names, id_key(v));
    if (name) {
        mc_buf_printf(out, "%%%.*s", MC_FMT(*name));
    } else {
        mc_buf_printf(out, "%%?%u", v->id); /* of another function: only the verifier's messages show it */
    }
}

static void
print_string(mc_str s, mc_buf *out)
{
    mc_buf_putc(out, '"');
    for (size_t i = 0; i < s.len; i++) {
        char c = s.data[i];
        if (c == '"' || c == '\\') mc_buf_putc(out, '\\');
        if (c == '\n') {
            mc_buf_puts(out, "\\n");
        } else {
            mc_buf_putc(out, c);
        }
    }
    mc_buf_putc(out, '"');
}

static void
print_attr(const mc_attr *attr, mc_buf *out)
{
    switch (attr->kind) {
    case MC_ATTR_NONE: mc_buf_putc(out, '_'); break;
    case MC_ATTR_INT: mc_buf_printf(out, "%lld", (long long)attr->as.i); break;
    case MC_ATTR_FLOAT: mc_buf_double(out, attr->as.f); break;
    case MC_ATTR_BOOL: mc_buf_puts(out, attr->as.b ? "true" : "false"); break;
    case MC_ATTR_STR: print_string(attr->as.s, out); break;
    case MC_ATTR_DTYPE: mc_buf_puts(out, moec_dtype_name(attr->as.dtype)); break;
    case MC_ATTR_FUNC:
        mc_buf_putc(out, '@');
        if (attr->as.func) mc_buf_str(out, attr->as.func->name);
        break;
    case MC_ATTR_INTS:
        mc_buf_putc(out, '[');
        for (size_t i = 0; i < attr->as.ints.n; i++) {
            mc_buf_printf(out, "%s%lld", i ? ", " : "", (long long)attr->as.ints.items[i]);
        }
        mc_buf_putc(out, ']');
        break;
    case MC_ATTR_FLOATS:
        mc_buf_putc(out, '[');
        for (size_t i = 0; i < attr->as.floats.n; i++) {
            if (i) mc_buf_puts(out, ", ");
            mc_buf_double(out, attr->as.floats.items[i]);
        }
        mc_buf_putc(out, ']');
        break;
    }
}

static bool
is_default(const mc_attr *attr, const mc_attr_info *info)
{
    if (attr->kind == MC_ATTR_NONE) return true;
    if (info->required) return false;
    switch (attr->kind) {
    case MC_ATTR_INT: return attr->as.i == (int64_t)info->number;
    case MC_ATTR_FLOAT: return memcmp(&attr->as.f, &info->number, sizeof info->number) == 0;
    case MC_ATTR_BOOL: return attr->as.b == (info->number != 0);
    case MC_ATTR_STR: return mc_str_is(attr->as.s, info->text);
    case MC_ATTR_INTS: return attr->as.ints.n == 0;
    case MC_ATTR_FLOATS: return attr->as.floats.n == 0;
    case MC_ATTR_NONE:
    case MC_ATTR_DTYPE:
    case MC_ATTR_FUNC: break;
    }
    return false;
}

static void
print_attrs(const mc_op *op, mc_buf *out)
{
    const mc_op_info *info = mc_op_info_of(op);
    bool any = false;
    for (int i = 0; i < info->n_attrs; i++) {
        if (is_default(&op->attrs[i], &info->attrs[i])) continue;
        mc_buf_printf(out, "%s%s = ", any ? ", " : " {", info->attrs[i].name);
        print_attr(&op->attrs[i], out);
        any = true;
    }
    if (any) mc_buf_putc(out, '}');
}

static void
print_place(const namer *n, const mc_place *place, mc_buf *out)
{
    switch (place->kind) {
    case MC_PLACE_NONE: return;
    case MC_PLACE_SLOT: mc_buf_printf(out, " at slot %d", (int)place->index); return;
    case MC_PLACE_ARG: mc_buf_printf(out, " at arg %d", (int)place->index); return;
    case MC_PLACE_RESULT: mc_buf_printf(out, " at result %d", (int)place->index); return;
    case MC_PLACE_WEIGHT: mc_buf_printf(out, " at weight %d", (int)place->index); return;
    case MC_PLACE_STATE: mc_buf_printf(out, " at state %d", (int)place->index); return;
    case MC_PLACE_CONST: mc_buf_puts(out, " at const"); return;
    case MC_PLACE_VIEW: break;
    }
    mc_buf_puts(out, " at view ");
    if (place->base) {
        print_value(n, place->base, out);
    } else {
        mc_buf_putc(out, '_');
    }
    if (place->offset) mc_buf_printf(out, " + %lld", (long long)place->offset);
    if (place->row_stride) mc_buf_printf(out, " stride %lld", (long long)place->row_stride);
}

static void
print_op(const namer *n, const mc_module *m, const mc_op *op, mc_buf *out)
{
    for (int i = 0; i < op->n_results; i++) {
        if (i) mc_buf_puts(out, ", ");
        print_value(n, &op->results[i], out);
    }
    mc_buf_printf(out, "%s%s", op->n_results ? " = " : "", mc_op_info_of(op)->text);
    int n_operands = op->n_operands;
    while (n_operands && !op->operands[n_operands - 1].value) n_operands--;
    for (int i = 0; i < n_operands; i++) {
        mc_buf_puts(out, i ? ", " : " ");
        if (op->operands[i].value) {
            print_value(n, op->operands[i].value, out);
        } else {
            mc_buf_putc(out, '_');
        }
    }
    print_attrs(op, out);
    for (int i = 0; i < op->n_results; i++) {
        mc_buf_puts(out, i ? ", " : " : ");
        mc_type_print(m, op->results[i].type, out);
        print_place(n, &op->results[i].place, out);
    }
}

void
mc_op_print(const mc_op *op, mc_buf *out)
{
    static const mc_func nothing = {0};
    static const mc_module nowhere = {0};
    namer n;
    name_func(&n, op->func ? op->func : &nothing);
    print_op(&n, op->func ? op->func->module : &nowhere, op, out);
    mc_arena_destroy(n.arena);
}

static void
print_slot(const mc_module *m, size_t index, const mc_slot *slot, mc_buf *out)
{
    mc_buf_printf(out, "  slot %zu: bytes [", index);
    for (size_t i = 0; i < slot->n_bytes; i++) {
        if (i) mc_buf_puts(out, ", ");
        mc_dim_print(m, slot->bytes[i], out);
    }
    mc_buf_puts(out, "]\n");
}

void
mc_func_print(const mc_func *f, mc_buf *out)
{
    const mc_module *m = f->module;
    namer n;
    name_func(&n, f);
    mc_buf_printf(out, "%s @%.*s(", f->is_model ? "model" : "func", MC_FMT(f->name));
    for (size_t i = 0; i < f->formals.n; i++) {
        if (i) mc_buf_puts(out, ", ");
        print_value(&n, f->formals.items[i], out);
        mc_buf_puts(out, ": ");
        mc_type_print(m, f->formals.items[i]->type, out);
    }
    mc_buf_puts(out, ") -> (");
    const mc_op *end = f->last && f->last->opcode == MC_OP_RETURN ? f->last : NULL;
    for (int i = 0; end && i < end->n_operands; i++) {
        if (i) mc_buf_puts(out, ", ");
        if (end->operands[i].value) mc_type_print(m, end->operands[i].value->type, out);
    }
    mc_buf_puts(out, ") {\n");
    for (size_t i = 0; i < f->n_slots; i++) print_slot(m, i, &f->slots[i], out);
    MC_FOR_OPS(op, f)
    {
        mc_buf_puts(out, "  ");
        print_op(&n, m, op, out);
        mc_buf_putc(out, '\n');
    }
    mc_buf_puts(out, "}\n");
    mc_arena_destroy(n.arena);
}

void
mc_module_print(const mc_module *m, mc_buf *out)
{
    mc_buf_printf(out, "moir %d stage=%s\n", MC_MOIR_VERSION, mc_moir_stages[m->stage]);
    for (int i = 0; i < m->n_syms; i++) {
        const mc_symbol *sym = &m->syms[i];
        mc_buf_printf(out, "dim %.*s", MC_FMT(sym->name));
        if (sym->hi) {
            mc_buf_printf(out, " in %lld..%lld", (long long)sym->lo, (long long)sym->hi);
        } else if (sym->lo > 1) {
            mc_buf_printf(out, " in %lld..", (long long)sym->lo);
        }
        mc_buf_putc(out, '\n');
    }
    for (size_t i = 0; i < m->metas.n; i++) {
        mc_buf_puts(out, "meta ");
        print_string(m->metas.items[i].key, out);
        mc_buf_puts(out, " = ");
        print_string(m->metas.items[i].value, out);
        mc_buf_putc(out, '\n');
    }
    MC_FOR_FUNCS(f, m)
    {
        mc_buf_putc(out, '\n');
        mc_func_print(f, out);
    }
}
