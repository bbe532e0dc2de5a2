/* What select functions call: kernels by name, launches and their arguments, dims. The one idea: argument tables are
 * appended to flat arrays in the order of the calls, so a launch is three (first, count) pairs and nothing is copied.
 */
#include "codegen/plan/plan.h"

#include <assert.h>
#include <stdarg.h>
#include <string.h>

bool
mc_plan_refuse(mc_plan *p, const char *format, ...)
{
    if (!p->failed) {
        va_list args;
        va_start(args, format);
        mc_str why = mc_strfv(p->arena, format, args);
        va_end(args);
        const char *name = p->op ? mc_op_info_of(p->op)->text : "module";
        mc_error(p->diags, p->op ? p->op->span : (mc_span){0}, p->backend->refusal,
                 "the %s backend cannot compile '%s': %.*s", p->backend->name, name, MC_FMT(why));
    }
    p->failed = true;
    return false;
}

mc_plan_kernel *
mc_plan_kernel_get(mc_plan *p, mc_plan_emit_fn *emit, const int64_t *params, int n_params, const char *name_format, ...)
{
    va_list args;
    va_start(args, name_format);
    mc_str name = mc_strfv(p->arena, name_format, args);
    va_end(args);
    mc_plan_kernel *k = mc_map_get(&p->kernel_names, name);
    if (k) return k;
    k = MC_NEW(p->arena, mc_plan_kernel);
    k->name = name;
    k->emit = emit;
    for (int i = 0; i < n_params; i++) k->p[i] = params[i];
    k->index = (uint32_t)p->kernels.n;
    mc_vec_push(p->arena, &p->kernels, k);
    mc_map_set(&p->kernel_names, name, k);
    return k;
}

/* "linear self_attn.q_proj.weight", "rmsnorm x": enough to find the op in a profile. */
static uint32_t
add_label(mc_plan *p)
{
    mc_str detail = {0};
    for (int i = 0; i < p->op->n_operands && !detail.len; i++) {
        const mc_value *v = mc_operand(p->op, i);
        if (v && v->def && v->def->opcode == MC_OP_PACKED) detail = mc_attr_str(v->def, "path");
    }
    if (!detail.len && p->op->n_results) detail = p->op->results[0].name;
    mc_str text = mc_strf(p->arena, "%s%s%.*s", mc_op_info_of(p->op)->text, detail.len ? " " : "", MC_FMT(detail));
    uint32_t offset = (uint32_t)p->strings.n;
    for (size_t i = 0; i <= text.len; i++) mc_vec_push(p->arena, &p->strings, text.data[i]);
    return offset;
}

static moec_abi_launch *
open_launch(mc_plan *p)
{
    return &p->launches.items[p->launches.n - 1];
}

void
mc_plan_launch(mc_plan *p, const mc_plan_kernel *kernel)
{
    moec_abi_launch l = {.kind = MOEC_LAUNCH_KERNEL,
                         .target = kernel->index,
                         .first_ref = (uint32_t)p->refs.n,
                         .first_int = (uint32_t)p->exprs.n,
                         .first_float = (uint32_t)p->floats.n,
                         .label = add_label(p)};
    mc_vec_push(p->arena, &p->launches, l);
}

moec_abi_expr
mc_plan_expr(mc_dim d)
{
    moec_abi_expr e = {.mul = d.mul, .add = d.add};
    memset(e.syms, 0xFF, sizeof e.syms);
    for (int i = 0; i < d.n_syms; i++) e.syms[i] = d.syms[i];
    return e;
}

static void
push_ref(mc_plan *p, moec_abi_ref ref)
{
    moec_abi_launch *l = open_launch(p);
    if (l->kind == MOEC_LAUNCH_KERNEL && l->n_refs == MOEC_ABI_MAX_PTRS) {
        mc_plan_refuse(p, "it needs more than %d tensors", (int)MOEC_ABI_MAX_PTRS);
        return;
    }
    mc_vec_push(p->arena, &p->refs, ref);
    l->n_refs++;
}

/* Offsets of views are constants, so they add up while the chain of bases is walked. */
static const mc_value *
base_of(const mc_value *v, int64_t *offset_elems, bool *strided)
{
    while (v->place.kind == MC_PLACE_VIEW) {
        *offset_elems += v->place.offset;
        *strided |= v->place.row_stride != 0;
        v = v->place.base;
    }
    return v;
}

static bool
place_of(mc_plan *p, const mc_value *v, moec_abi_ref *ref)
{
    ref->index = (uint32_t)v->place.index;
    for (size_t i = 0; i < p->moved.n; i++)
        if (p->moved.items[i].value == v) ref->index = p->moved.items[i].slot;
    switch (v->place.kind) {
    case MC_PLACE_SLOT: ref->place = MOEC_ABI_SLOT; return true;
    case MC_PLACE_ARG: ref->place = MOEC_ABI_ARG; return true;
    case MC_PLACE_RESULT:
        ref->place = MOEC_ABI_ARG;
        ref->index += (uint32_t)v->func->formals.n;
        return true;
    case MC_PLACE_WEIGHT: ref->place = MOEC_ABI_WEIGHT; return true;
    case MC_PLACE_STATE: ref->place = MOEC_ABI_STATE; return true;
    case MC_PLACE_CONST: return mc_plan_refuse(p, "an operand that is a constant must be a tensor in memory here");
    default: return mc_plan_refuse(p, "a value has no place (run plan-memory first)");
    }
}

void
mc_plan_ptr_at(mc_plan *p, const mc_value *v, mc_dim offset_bytes)
{
    int64_t elems = 0;
    bool strided = false;
    const mc_value *base = base_of(v, &elems, &strided);
    moec_abi_ref ref = {0};
    int64_t bytes;
    if (strided) {
        mc_plan_refuse(p, "views with gaps between rows are not supported");
    } else if (__builtin_mul_overflow(elems, (int64_t)moec_dtype_bytes(v->type->dtype), &bytes) ||
               (bytes && !mc_dim_is_const(offset_bytes))) {
        mc_plan_refuse(p, "the offset of a view leaves the form of a dimension");
    } else if (place_of(p, base, &ref)) {
        offset_bytes.add += bytes;
        ref.offset = mc_plan_expr(offset_bytes);
    }
    push_ref(p, ref);
}

void
mc_plan_ptr(mc_plan *p, const mc_value *v)
{
    if (v) {
        mc_plan_ptr_at(p, v, mc_dim_const(0));
    } else {
        moec_abi_ref ref = {.place = MOEC_ABI_NULL, .offset = mc_plan_expr(mc_dim_const(0))};
        push_ref(p, ref);
    }
}

bool
mc_plan_owns_state(const mc_op *op)
{
    return mc_op_has(op, MC_TRAIT_STATE) && op->opcode != MC_OP_CALL;
}

void
mc_plan_ptr_state(mc_plan *p)
{
    moec_abi_ref ref = {.place = MOEC_ABI_STATE, .offset = mc_plan_expr(mc_dim_const(0))};
    MC_FOR_OPS(op, p->op->func)
    {
        if (op == p->op) break;
        ref.index += mc_plan_owns_state(op);
    }
    push_ref(p, ref);
}

void
mc_plan_int(mc_plan *p, mc_dim value)
{
    moec_abi_launch *l = open_launch(p);
    if (l->n_ints == MOEC_ABI_MAX_INTS) {
        mc_plan_refuse(p, "it needs more than %d sizes", (int)MOEC_ABI_MAX_INTS);
        return;
    }
    mc_vec_push(p->arena, &p->exprs, mc_plan_expr(value));
    l->n_ints++;
}

void
mc_plan_const(mc_plan *p, int64_t value)
{
    mc_plan_int(p, mc_dim_const(value));
}

void
mc_plan_float(mc_plan *p, double value)
{
    moec_abi_launch *l = open_launch(p);
    if (l->n_floats == MOEC_ABI_MAX_FLOATS) {
        mc_plan_refuse(p, "it needs more than %d numbers", (int)MOEC_ABI_MAX_FLOATS);
        return;
    }
    mc_vec_push(p->arena, &p->floats, value);
    l->n_floats++;
}

void
mc_plan_scratch(mc_plan *p, uint64_t n_bytes)
{
    if (n_bytes > p->scratch_bytes) p->scratch_bytes = n_bytes;
}

void
mc_plan_scratch_dim(mc_plan *p, mc_dim n_bytes)
{
    mc_vec_push(p->arena, &p->scratches, mc_plan_expr(n_bytes));
}

uint32_t
mc_plan_slot(mc_plan *p, mc_dim n_bytes)
{
    moec_abi_slot slot = {.first_expr = (uint32_t)p->exprs.n, .n_exprs = 1};
    mc_vec_push(p->arena, &p->exprs, mc_plan_expr(n_bytes));
    mc_vec_push(p->arena, &p->slots, slot);
    return (uint32_t)p->slots.n - 1 - p->first_slot;
}

void
mc_plan_ptr_slot(mc_plan *p, uint32_t slot)
{
    moec_abi_ref ref = {.place = MOEC_ABI_SLOT, .index = slot, .offset = mc_plan_expr(mc_dim_const(0))};
    push_ref(p, ref);
}

void
mc_plan_move(mc_plan *p, const mc_value *v, uint32_t slot)
{
    assert(v->place.kind == MC_PLACE_SLOT);
    mc_vec_push(p->arena, &p->moved, ((mc_plan_home){v, slot}));
}

bool
mc_plan_is_const(const mc_value *v, double *out)
{
    int64_t elems = 0;
    bool strided = false;
    const mc_value *base = base_of(v, &elems, &strided);
    if (base->place.kind != MC_PLACE_CONST) return false;
    *out = mc_attr_float(base->def, "value");
    return true;
}

bool
mc_plan_in_state(const mc_value *v)
{
    int64_t elems = 0;
    bool strided = false;
    return base_of(v, &elems, &strided)->place.kind == MC_PLACE_STATE;
}

bool
mc_plan_in_gradient(const mc_value *v)
{
    int64_t elems = 0;
    bool strided = false;
    const mc_value *base = base_of(v, &elems, &strided);
    return base->place.kind == MC_PLACE_WEIGHT && mc_str_is(mc_attr_str(base->def, "layout"), "grad");
}

mc_dim
mc_plan_times(mc_plan *p, mc_dim a, mc_dim b)
{
    mc_dim out;
    if (mc_dim_mul(a, b, &out)) return out;
    mc_plan_refuse(p, "a size is not a number times at most three symbols");
    return mc_dim_const(0);
}

mc_dim
mc_plan_product(mc_plan *p, const mc_type *t, int from, int to)
{
    mc_dim n = mc_dim_const(1);
    for (int i = from; i < to; i++) n = mc_plan_times(p, n, t->dims[i]);
    return n;
}

mc_dim
mc_plan_rows(mc_plan *p, const mc_type *t)
{
    return mc_plan_product(p, t, 0, t->rank - 1);
}

mc_dim
mc_plan_count(mc_plan *p, const mc_type *t)
{
    return mc_plan_product(p, t, 0, t->rank);
}

int64_t
mc_plan_need_const(mc_plan *p, mc_dim d, const char *what)
{
    if (mc_dim_is_const(d)) return d.n_syms ? d.add : d.mul + d.add;
    mc_plan_refuse(p, "%s must be a constant size", what);
    return 0;
}
