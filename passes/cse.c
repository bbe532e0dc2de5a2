/* cse: computes equal pure ops once.
 *
 *   needs     nothing; canonicalize first finds more
 *   keeps     the stage; every bit of every result
 *   refuses   ops with state or effects, and ops whose attributes, operands or result types differ at all
 *
 * before:  %a = silu %x : f32[T, 8]          after:  %a = silu %x : f32[T, 8]
 *          %b = silu %x : f32[T, 8]                  … %b replaced by %a
 *
 * An op's key is its opcode, operands, attributes and types as bytes; the first op with a key stands for all others.
 */
#include "ir/edit.h"
#include "passes/match.h"
#include "passes/pass.h"

#include <string.h>

static void
put_number(mc_buf *key, double number)
{
    mc_buf_write(key, &number, sizeof number);
}

/* An absent attribute and one that states its default are the same. */
static void
put_attr(mc_buf *key, const mc_attr *attr, const mc_attr_info *info)
{
    bool absent = attr->kind == MC_ATTR_NONE;
    mc_str text = {0};
    mc_buf_putc(key, (char)info->kind);
    switch (info->kind) {
    case MC_ATTR_NONE: break;
    case MC_ATTR_INT:
        if (absent)
            mc_buf_printf(key, "%lld", (long long)info->number);
        else
            mc_buf_printf(key, "%lld", (long long)attr->as.i);
        break;
    case MC_ATTR_FLOAT: put_number(key, absent ? info->number : attr->as.f); break;
    case MC_ATTR_BOOL: mc_buf_putc(key, (absent ? info->number != 0 : attr->as.b) ? 't' : 'f'); break;
    case MC_ATTR_STR:
        text = absent ? mc_str_of(info->text) : attr->as.s;
        mc_buf_printf(key, "%zu:", text.len);
        mc_buf_str(key, text);
        break;
    case MC_ATTR_INTS:
        if (!absent) mc_buf_write(key, attr->as.ints.items, attr->as.ints.n * sizeof(int64_t));
        break;
    case MC_ATTR_FLOATS:
        if (!absent) mc_buf_write(key, attr->as.floats.items, attr->as.floats.n * sizeof(double));
        break;
    case MC_ATTR_DTYPE: mc_buf_printf(key, "%d", absent ? 0 : (int)attr->as.dtype); break;
    case MC_ATTR_FUNC:
        if (!absent) mc_buf_str(key, attr->as.func->name);
        break;
    }
    mc_buf_putc(key, ';');
}

static void
put_type(mc_buf *key, const mc_type *t)
{
    mc_buf_printf(key, "%d[", (int)t->dtype);
    for (int i = 0; i < t->rank; i++) {
        const mc_dim *d = &t->dims[i];
        mc_buf_printf(key, "%lld", (long long)d->mul);
        for (int k = 0; k < d->n_syms; k++) mc_buf_printf(key, "*s%d", d->syms[k]);
        mc_buf_printf(key, "+%lld,", (long long)d->add);
    }
    mc_buf_putc(key, ']');
}

static mc_str
key_of(const mc_op *op, mc_buf *key)
{
    const mc_op_info *info = mc_op_info_of(op);
    mc_buf_clear(key);
    mc_buf_printf(key, "%d(", (int)op->opcode);
    int n = op->n_operands;
    while (n > 0 && !mc_operand(op, n - 1)) n--;
    for (int i = 0; i < n; i++) {
        const mc_value *v = mc_operand(op, i);
        mc_buf_printf(key, "%lld,", v ? (long long)v->id : -1LL);
    }
    mc_buf_putc(key, ')');
    for (int i = 0; i < info->n_attrs; i++) put_attr(key, &op->attrs[i], &info->attrs[i]);
    for (int i = 0; i < op->n_results; i++) put_type(key, op->results[i].type);
    return mc_buf_view(key);
}

static mc_pass_result
run(mc_pass *p, mc_func *f)
{
    mc_pass_result result = MC_UNCHANGED;
    mc_map first;
    mc_map_init(&first, p->scratch);
    mc_buf key = {0};
    mc_op *next;
    for (mc_op *op = f->first; op; op = next) {
        next = op->next;
        if (!mc_op_has(op, MC_TRAIT_PURE)) continue;
        mc_str k = key_of(op, &key);
        const mc_op *same = mc_map_get(&first, k);
        if (!same) {
            mc_map_set(&first, mc_str_dup(p->scratch, k), op);
            continue;
        }
        if (!mc_fuel(p, op)) continue;
        for (int i = 0; i < op->n_results; i++) mc_value_replace_uses(&op->results[i], &same->results[i]);
        mc_op_remove(op);
        result = MC_CHANGED;
    }
    mc_buf_fini(&key);
    return result;
}

mc_pass_result
mc_pass_cse(mc_pass *p, mc_module *m)
{
    return mc_pass_over_funcs(p, m, run);
}
