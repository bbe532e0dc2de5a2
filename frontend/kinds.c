/* Kinds: which functions do the same. A function is written out as bytes in which operands are numbered by position
 * and functions it refers to by their own kind; equal bytes, equal kind. */
#include "frontend/elab.h"

#include "ir/edit.h"

typedef struct writer {
    mc_elab *e;
    mc_buf bytes;
    MC_VEC(uint32_t) ids; /* of the function's ops, ascending: an op's number is its place here */
} writer;

static void
put(writer *w, const void *data, size_t n)
{
    mc_buf_write(&w->bytes, data, n);
}

static void
put_int(writer *w, int64_t i)
{
    put(w, &i, sizeof i);
}

static void
put_pointer(writer *w, const void *p)
{
    put(w, &p, sizeof p); /* types are interned */
}

static void
put_str(writer *w, mc_str s)
{
    put_int(w, (int64_t)s.len);
    put(w, s.data, s.len);
}

static int64_t
op_number(const writer *w, uint32_t id)
{
    size_t lo = 0, hi = w->ids.n;
    while (lo + 1 < hi) {
        size_t middle = (lo + hi) / 2;
        if (w->ids.items[middle] <= id) {
            lo = middle;
        } else {
            hi = middle;
        }
    }
    return (int64_t)lo;
}

static void
put_operand(writer *w, const mc_value *v)
{
    put_int(w, !v ? -2 : v->def ? op_number(w, v->def->id) : -1);
    put_int(w, v ? v->index : 0);
}

static void
put_attr(writer *w, const mc_attr *a)
{
    put_int(w, a->kind);
    switch (a->kind) {
    case MC_ATTR_NONE: break;
    case MC_ATTR_INT: put_int(w, a->as.i); break;
    case MC_ATTR_FLOAT: put(w, &a->as.f, sizeof a->as.f); break;
    case MC_ATTR_BOOL: put_int(w, a->as.b); break;
    case MC_ATTR_STR: put_str(w, a->as.s); break;
    case MC_ATTR_INTS:
        put_int(w, (int64_t)a->as.ints.n);
        put(w, a->as.ints.items, a->as.ints.n * sizeof *a->as.ints.items);
        break;
    case MC_ATTR_FLOATS:
        put_int(w, (int64_t)a->as.floats.n);
        put(w, a->as.floats.items, a->as.floats.n * sizeof *a->as.floats.items);
        break;
    case MC_ATTR_DTYPE: put_int(w, a->as.dtype); break;
    case MC_ATTR_FUNC: put_int(w, (int64_t)mc_kind_of(w->e, a->as.func)); break;
    }
}

static void
put_op(writer *w, const mc_op *op)
{
    put_int(w, op->opcode);
    put_int(w, op->n_operands);
    for (int i = 0; i < op->n_operands; i++) put_operand(w, op->operands[i].value);
    put_int(w, op->n_results);
    for (int i = 0; i < op->n_results; i++) put_pointer(w, op->results[i].type);
    for (int i = 0; i < mc_op_info_of(op)->n_attrs; i++) put_attr(w, &op->attrs[i]);
}

/* Functions nest only as deep as repeats and experts do in the text, so the recursion is bounded by the parser. */
uintptr_t
mc_kind_of(mc_elab *e, mc_func *f)
{
    writer w = {.e = e};
    MC_FOR_OPS(op, f) mc_vec_push(e->arena, &w.ids, op->id);
    put_int(&w, (int64_t)f->formals.n);
    for (size_t i = 0; i < f->formals.n; i++) put_pointer(&w, f->formals.items[i]->type);
    MC_FOR_OPS(op, f) put_op(&w, op);
    mc_str key = mc_buf_view(&w.bytes);
    uintptr_t kind = (uintptr_t)mc_map_get(&e->kinds, key);
    if (!kind) {
        kind = e->kinds.n + 1;
        mc_map_set(&e->kinds, mc_str_dup(e->arena, key), (void *)kind);
    }
    mc_buf_fini(&w.bytes);
    return kind;
}

static bool
in_module(const mc_module *m, const mc_func *f)
{
    MC_FOR_FUNCS(g, m)
    {
        if (g == f) return true;
    }
    return false;
}

void
mc_kind_remove(mc_func *f)
{
    mc_module *m = f->module;
    mc_func_remove(f);
    MC_FOR_OPS(op, f)
    {
        for (int i = 0; i < mc_op_info_of(op)->n_attrs; i++) {
            mc_func *g = op->attrs[i].kind == MC_ATTR_FUNC ? op->attrs[i].as.func : NULL;
            if (g && in_module(m, g)) mc_kind_remove(g);
        }
    }
}
