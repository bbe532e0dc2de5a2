/* The interpreter's loop: a frame for each running function, one kernel call for each op, in order.
 *
 *   run ── frame of the model ── call ── frame of a layer ── moe ── frame of an expert's body, for one row
 *
 * A frame has its own arena (frames of one depth share it, one after another), so that memory is bounded by the deepest
 * path and not by the number of layers. Results are copied to the caller's arena before the frame ends. */
#include "codegen/ref/ref.h"

#include "ir/verify.h"

#include <string.h>

static mc_ref_kernel *const kernels[MC_N_OPCODES] = {
#define MC_OP(ID, text, stages, traits, infer, operands, results, attrs, doc) [MC_OP_##ID] = mc_ref_##ID,
#include "ir/ops.def"
#undef MC_OP
};

static int
find_symbol(const mc_module *m, const char *name)
{
    for (int i = 0; i < m->n_syms; i++)
        if (mc_str_is(m->syms[i].name, name)) return i;
    return -1;
}

static void
number_values(mc_ref *ref)
{
    uint32_t end = 0;
    for (int pass = 0; pass < 2; pass++) {
        if (pass) ref->local = MC_NEW_N(ref->arena, uint32_t, end);
        MC_FOR_FUNCS(f, ref->module)
        {
            uint32_t n = 0;
            for (size_t i = 0; i < f->formals.n; i++, n++)
                if (pass)
                    ref->local[f->formals.items[i]->id] = n;
                else if (f->formals.items[i]->id >= end)
                    end = f->formals.items[i]->id + 1;
            MC_FOR_OPS(op, f)
            for (int i = 0; i < op->n_results; i++, n++)
                if (pass)
                    ref->local[op->results[i].id] = n;
                else if (op->results[i].id >= end)
                    end = op->results[i].id + 1;
        }
    }
}

mc_ref *
mc_ref_create(const mc_module *module, const mc_ref_options *options, mc_diags *diags)
{
    if (!mc_module_verify(module, diags)) return NULL;
    mc_arena *arena = mc_arena_create();
    mc_ref *ref = MC_NEW(arena, mc_ref);
    *ref = (mc_ref){.module = module, .options = *options, .diags = diags, .arena = arena};
    for (int i = 0; i < MC_MAX_SYMS; i++) ref->fixed_syms[i] = MC_REF_UNBOUND;
    ref->sym_s = find_symbol(module, "S");
    ref->sym_c = find_symbol(module, "C");
    number_values(ref);
    return ref;
}

void
mc_ref_destroy(mc_ref *ref)
{
    if (!ref) return;
    for (int i = 0; i < MC_REF_MAX_DEPTH; i++) mc_arena_destroy(ref->frames[i]);
    mc_arena_destroy(ref->arena);
}

bool
mc_ref_set_symbol(mc_ref *ref, mc_str name, int64_t value)
{
    for (int i = 0; i < ref->module->n_syms; i++)
        if (mc_str_eq(ref->module->syms[i].name, name)) {
            ref->fixed_syms[i] = value;
            return true;
        }
    return false;
}

bool
mc_ref_fail(mc_ref_op *k, mc_code code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    mc_str text = mc_strfv(k->arena, format, args);
    va_end(args);
    return mc_error(k->ref->diags, k->op->span, code, "%.*s", MC_FMT(text));
}

moec_dtype
mc_ref_held(const mc_ref *ref, moec_dtype dtype)
{
    return dtype == MOEC_F32 && ref->options.precision == MC_REF_F64 ? MOEC_F64 : dtype;
}

bool
mc_ref_dims(mc_ref *ref, const mc_ref_frame *frame, const mc_type *type, mc_span span, int64_t *dims)
{
    for (int i = 0; i < type->rank; i++) {
        mc_dim d = type->dims[i];
        int64_t n = d.mul;
        for (int s = 0; s < d.n_syms; s++) {
            int64_t value = frame->syms[d.syms[s]];
            if (value == MC_REF_UNBOUND)
                return mc_error(ref->diags, span, MC_E0314, "nothing gives a value to dimension %.*s",
                                MC_FMT(ref->module->syms[d.syms[s]].name));
            if (__builtin_mul_overflow(n, value, &n)) n = -1;
        }
        if (__builtin_add_overflow(n, d.add, &n) || n < 0)
            return mc_error(ref->diags, span, MC_E0319, "axis %d of a value is too large or negative", i);
        dims[i] = n;
    }
    return true;
}

/* ---- symbols: formals whose dim is a multiple of one symbol give it a value; all dims must then agree ---- */

static bool
bind_dim(mc_ref *ref, mc_ref_frame *f, bool *bound, mc_dim d, int64_t n, mc_span span)
{
    if (d.n_syms != 1 || d.add != 0 || d.mul <= 0) return true;
    int sym = d.syms[0];
    mc_str name = ref->module->syms[sym].name;
    if (n % d.mul)
        return mc_error(ref->diags, span, MC_E0310, "%lld is not a multiple of %lld", (long long)n, (long long)d.mul);
    int64_t value = n / d.mul;
    if (bound[sym] && f->syms[sym] != value)
        return mc_error(ref->diags, span, MC_E0310, "%.*s is both %lld and %lld", MC_FMT(name), (long long)f->syms[sym],
                        (long long)value);
    bound[sym] = true;
    f->syms[sym] = value;
    return true;
}

static bool
bind_args(mc_ref *ref, mc_ref_frame *f, const mc_ref_tensor *args)
{
    bool bound[MC_MAX_SYMS] = {0};
    for (size_t i = 0; i < f->func->formals.n; i++) {
        const mc_type *t = f->func->formals.items[i]->type;
        if (args[i].rank != t->rank)
            return mc_error(ref->diags, f->func->span, MC_E0310, "argument %zu of '%.*s' has %d axes instead of %d", i,
                            MC_FMT(f->func->name), args[i].rank, t->rank);
        for (int d = 0; d < t->rank; d++)
            if (!bind_dim(ref, f, bound, t->dims[d], args[i].dims[d], f->func->span)) return false;
    }
    return true;
}

static bool
check_args(mc_ref *ref, const mc_ref_frame *f, const mc_ref_tensor *args)
{
    for (size_t i = 0; i < f->func->formals.n; i++) {
        const mc_type *t = f->func->formals.items[i]->type;
        int64_t dims[MC_MAX_RANK];
        if (!mc_ref_dims(ref, f, t, f->func->span, dims)) return false;
        for (int d = 0; d < t->rank; d++)
            if (dims[d] != args[i].dims[d])
                return mc_error(ref->diags, f->func->span, MC_E0310,
                                "axis %d of argument %zu of '%.*s' is %lld instead of %lld", d, i,
                                MC_FMT(f->func->name), (long long)args[i].dims[d], (long long)dims[d]);
    }
    return true;
}

static bool
check_ranges(mc_ref *ref, const mc_ref_frame *f)
{
    for (int i = 0; i < ref->module->n_syms; i++) {
        const mc_symbol *s = &ref->module->syms[i];
        int64_t value = f->syms[i];
        if (value == MC_REF_UNBOUND || i == ref->sym_c) continue;
        if (value < s->lo || (s->hi && value > s->hi))
            return mc_error(ref->diags, f->func->span, MC_E0310, "%.*s = %lld is outside %lld..%lld", MC_FMT(s->name),
                            (long long)value, (long long)s->lo, (long long)s->hi);
    }
    return true;
}

/* ---- frames ---- */

static bool
allocate_results(mc_ref_op *k)
{
    for (int i = 0; i < k->op->n_results; i++) {
        const mc_type *t = k->op->results[i].type;
        int64_t dims[MC_MAX_RANK];
        mc_opcode opcode = k->op->opcode;
        bool sizes = opcode == MC_OP_EP_ROUTE || opcode == MC_OP_EP_GATHER || opcode == MC_OP_EP_MERGE;
        if (sizes) return true; /* the op says how many rows there are, and allocates them */
        if (!mc_ref_dims(k->ref, k->frame, t, k->op->span, dims)) return false;
        bool borrows = opcode == MC_OP_WEIGHT || opcode == MC_OP_PACKED || opcode == MC_OP_CALL;
        if (!mc_ref_tensor_init(&k->out[i], mc_ref_held(k->ref, t->dtype), dims, t->rank, borrows ? NULL : k->arena))
            return mc_ref_fail(k, MC_E0319, "result %d of '%s' is too large", i, mc_op_info_of(k->op)->text);
    }
    return true;
}

static bool
run_op(mc_ref *ref, mc_ref_frame *f, const mc_op *op)
{
    mc_ref_op k = {.ref = ref, .frame = f, .op = op, .n_in = op->n_operands, .arena = f->arena};
    k.f64 = ref->options.precision == MC_REF_F64;
    k.in = MC_NEW_N(f->arena, const mc_ref_tensor *, op->n_operands);
    for (int i = 0; i < op->n_operands; i++) {
        const mc_value *v = mc_operand(op, i);
        k.in[i] = v ? &f->values[ref->local[v->id]] : NULL;
    }
    k.out = op->n_results ? &f->values[ref->local[op->results[0].id]] : NULL; /* results are numbered in a row */
    if (!allocate_results(&k) || !kernels[op->opcode](&k)) return false;
    if (ref->options.record) {
        mc_ref_event event = {op, f->scope, f->expert, k.out, op->n_results};
        ref->options.record(ref->options.record_user, &event);
    }
    return true;
}

static void
copy_tensor(mc_ref_tensor *to, const mc_ref_tensor *from, mc_arena *arena)
{
    *to = *from;
    to->data = mc_arena_copy(arena, from->data, (size_t)from->n * moec_dtype_bytes(from->dtype));
}

/* f has func, scope, site, expert, depth, syms. */
static bool
run_frame(mc_ref *ref, mc_ref_frame *f, const mc_ref_tensor *args, mc_arena *arena, mc_ref_tensor *results,
          int n_results)
{
    if (!ref->frames[f->depth]) ref->frames[f->depth] = mc_arena_create();
    f->arena = ref->frames[f->depth];
    size_t n = f->func->formals.n;
    MC_FOR_OPS(op, f->func) n += op->n_results;
    f->values = MC_NEW_N(f->arena, mc_ref_tensor, n);
    for (size_t i = 0; i < f->func->formals.n; i++) f->values[i] = args[i];
    bool ok = true;
    for (const mc_op *op = f->func->first; op && ok; op = op->next) ok = run_op(ref, f, op);
    if (ok && f->n_results != n_results)
        ok = mc_error(ref->diags, f->func->span, MC_E0317, "'%.*s' gives %d results, %d are wanted",
                      MC_FMT(f->func->name), f->n_results, n_results);
    for (int i = 0; ok && i < n_results; i++) copy_tensor(&results[i], &f->results[i], arena);
    mc_arena_reset(f->arena);
    return ok;
}

bool
mc_ref_invoke(mc_ref_op *k, const mc_func *callee, mc_str scope, int64_t expert, const mc_ref_tensor *args, int n_args,
              mc_ref_tensor *results, int n_results)
{
    mc_ref_frame f = {.caller = k->frame, .func = callee, .scope = scope, .expert = expert};
    f.depth = k->frame->depth + 1;
    if (f.depth >= MC_REF_MAX_DEPTH) return mc_ref_fail(k, MC_E0108, "calls nest deeper than %d", MC_REF_MAX_DEPTH);
    if ((size_t)n_args != callee->formals.n)
        return mc_ref_fail(k, MC_E0317, "'%.*s' takes %zu arguments, not %d", MC_FMT(callee->name), callee->formals.n,
                           n_args);
    f.site = mc_strf(k->arena, "%.*s/%u", MC_FMT(k->frame->site), k->op->id);
    memcpy(f.syms, k->frame->syms, sizeof f.syms);
    if (!bind_args(k->ref, &f, args) || !check_args(k->ref, &f, args)) return false;
    return run_frame(k->ref, &f, args, k->arena, results, n_results);
}

bool
mc_ref_positions(mc_ref_op *k, const mc_ref_tensor *x, int64_t *past)
{
    if (x->rank < 2 || x->dims[1] != k->ref->n_new)
        return mc_ref_fail(k, MC_E0310, "'%s' reads %lld positions, but the run has %lld new ones",
                           mc_op_info_of(k->op)->text, x->rank < 2 ? 0LL : (long long)x->dims[1],
                           (long long)k->ref->n_new);
    *past = mc_ref_state_past(k->ref->state);
    return true;
}

/* ---- the entry ---- */

static bool
take_input(mc_ref *ref, const mc_func *func, size_t i, const mc_ref_tensor *in, mc_arena *arena, mc_ref_tensor *out)
{
    moec_dtype want = func->formals.items[i]->type->dtype;
    bool same = in->dtype == want || (want == MOEC_F32 && in->dtype == MOEC_F64) ||
                (want == MOEC_F64 && in->dtype == MOEC_F32) || (want == MOEC_I32 && in->dtype == MOEC_I64);
    if (!same)
        return mc_error(ref->diags, func->span, MC_E0318, "input %zu is %s instead of %s", i,
                        moec_dtype_name(in->dtype), moec_dtype_name(want));
    int64_t n = 1;
    bool fits = mc_ref_tensor_init(out, mc_ref_held(ref, want), in->dims, in->rank, arena);
    if (!fits || out->n != in->n || (in->n && !in->data))
        return mc_error(ref->diags, func->span, MC_E0310, "input %zu has a malformed shape", i);
    for (n = 0; n < out->n; n++) mc_ref_tensor_set(out, n, mc_ref_tensor_get(in, n));
    return true;
}

static void
set_positions(mc_ref *ref, mc_ref_frame *f, const mc_ref_tensor *inputs, int n_inputs)
{
    ref->n_new = 0;
    if (ref->sym_s >= 0 && f->syms[ref->sym_s] != MC_REF_UNBOUND)
        ref->n_new = f->syms[ref->sym_s];
    else
        for (int i = 0; i < n_inputs; i++)
            if (inputs[i].rank >= 2) {
                ref->n_new = inputs[i].dims[1];
                break;
            }
    if (ref->sym_c >= 0) f->syms[ref->sym_c] = mc_ref_state_past(ref->state) + ref->n_new;
}

static bool
run_entry(mc_ref *ref, mc_ref_frame *f, const mc_ref_tensor *inputs, mc_arena *arena, mc_ref_tensor *outputs,
          int n_outputs)
{
    size_t n = f->func->formals.n;
    mc_arena *scratch = mc_arena_create();
    mc_ref_tensor *args = MC_NEW_N(scratch, mc_ref_tensor, n);
    bool ok = bind_args(ref, f, inputs);
    if (ok) set_positions(ref, f, inputs, (int)n);
    ok = ok && check_ranges(ref, f) && check_args(ref, f, inputs);
    for (size_t i = 0; ok && i < n; i++) ok = take_input(ref, f->func, i, &inputs[i], scratch, &args[i]);
    ok = ok && run_frame(ref, f, args, arena, outputs, n_outputs);
    mc_arena_destroy(scratch);
    return ok;
}

bool
mc_ref_run_func(mc_ref *ref, const mc_func *func, mc_str scope, mc_ref_state *state, const mc_ref_tensor *inputs,
                int n_inputs, mc_arena *arena, mc_ref_tensor *outputs, int n_outputs)
{
    if (n_inputs < 0 || (size_t)n_inputs != func->formals.n)
        return mc_error(ref->diags, func->span, MC_E0310, "'%.*s' takes %zu inputs, not %d", MC_FMT(func->name),
                        func->formals.n, n_inputs);
    mc_ref_state *own = state ? NULL : mc_ref_state_create();
    ref->state = state ? state : own;
    mc_ref_frame f = {.func = func, .scope = scope, .expert = -1};
    memcpy(f.syms, ref->fixed_syms, sizeof f.syms);
    bool ok = run_entry(ref, &f, inputs, arena, outputs, n_outputs);
    if (ok)
        mc_ref_state_commit(ref->state, ref->n_new);
    else
        mc_ref_state_rollback(ref->state);
    mc_ref_state_destroy(own);
    ref->state = NULL;
    return ok;
}

bool
mc_ref_run(mc_ref *ref, mc_ref_state *state, const mc_ref_tensor *inputs, int n_inputs, mc_arena *arena,
           mc_ref_tensor *outputs, int n_outputs)
{
    const mc_func *model = mc_module_model(ref->module);
    if (!model) return mc_error(ref->diags, (mc_span){0}, MC_E0407, "the module has no model function");
    return mc_ref_run_func(ref, model, (mc_str){0}, state, inputs, n_inputs, arena, outputs, n_outputs);
}
