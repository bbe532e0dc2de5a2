/* carve-fp8: the weights that the precision block names are stored in FP8 with block scales; others stay.
 *
 *   needs     stage tensor or dist, experts expanded; meta "precision.fp8" (passes/fp8_rules.h)
 *   keeps     the stage; activations stay f32, so only the rounding of the chosen weights changes
 *   refuses   (remark R0503 counts and says why) weights not named, excepted, read by anything but a matmul, or with
 *             a pair that stays; any size will do: the last block of an axis may be ragged, as in released checkpoints
 *
 * before:  %w = weight {path = "q.weight", role = "attention"} : bf16[512, 256]
 *          %y = linear %x, %w
 *
 * after:   %w = weight {path = "q.weight", role = "attention"} : f8e4m3[512, 256]
 *          %s = weight {path = "q.weight_scale_inv", role = "attention"} : f32[4, 2]
 *          %y = linear %x, %w, _, %s
 *
 * Paths are full only at the call sites, and `except = ["layers.0.**"]` may hit one call of a function and not another.
 * So every instance of every function is visited, and a function whose instances disagree gets a version for each
 * choice.
 */
#include "passes/clone.h"
#include "passes/fp8_rules.h"
#include "passes/match.h"
#include "passes/pass.h"
#include "runtime/base/path.h"

#include <string.h>

enum { BLOCK = 128, MAX_DEPTH = 64, MAX_INSTANCES = 1 << 16, N_ROLES = 8 };

typedef enum verdict {
    NOT_COUNTED, /* no matrix */
    TO_FP8,
    IS_FP8,
    UNNAMED,
    EXCEPTED,
    NO_MATMUL,
    PAIRED,
    N_VERDICTS
} verdict;

static const char *const reasons[N_VERDICTS] = {
    [UNNAMED] = "not named in 'on'",
    [EXCEPTED] = "in 'except'",
    [NO_MATMUL] = "read by other than a matmul",
    [PAIRED] = "with a pair that stays",
};

static const char *const roles[N_ROLES] = {"embed",  "head",      "router", "experts",
                                           "shared", "attention", "dense",  "norm"};

/* Operands that take a matrix, and where its scales go. */
static const struct {
    mc_opcode opcode;
    const char *w, *scale;
} ports[] = {
    {MC_OP_LINEAR, "w", "scale"},
    {MC_OP_HEAD_LINEAR, "w", "scale"},
    {MC_OP_GROUPED_MATMUL, "w", "scale"},
    {MC_OP_MOE_FFN_DOWN, "w", "scale"},
    {MC_OP_GATED_LINEAR, "w_gate", "scale_gate"},
    {MC_OP_GATED_LINEAR, "w_up", "scale_up"},
    {MC_OP_MOE_FFN_UP, "w_gate", "scale_gate"},
    {MC_OP_MOE_FFN_UP, "w_up", "scale_up"},
};
enum { N_PORTS = sizeof ports / sizeof ports[0] };

typedef struct version version;
struct version { /* of a function: one choice for each of its weights and callees */
    mc_func *source, *func;
    verdict *verdicts;         /* by weight op, in order */
    MC_VEC(version *) callees; /* by call op, in order */
};

typedef struct carver {
    mc_pass *pass;
    mc_module *module;
    mc_fp8_rules rules;
    int *index_of;        /* by id of a weight's value: which weight op of its function */
    mc_map other_readers; /* full paths of weights that something else than a matmul reads */
    mc_map by_key;
    MC_VEC(version *) versions; /* callees first */
    int64_t counts[N_ROLES][N_VERDICTS];
    int n_instances;
} carver;

static mc_str
full_path(const carver *c, mc_str scope, const mc_op *weight)
{
    mc_str path = mc_attr_str(weight, "path");
    return mc_attr_bool(weight, "root") ? path : mc_path_join(c->pass->scratch, scope, path);
}

static int
operand_of(const mc_use *use)
{
    return (int)(use - use->user->operands);
}

/* The port through which this use reads a matrix; -1: it does something else. */
static int
port_of(const mc_use *use)
{
    for (int i = 0; i < N_PORTS; i++)
        if (ports[i].opcode == use->user->opcode && mc_operand_index(ports[i].opcode, ports[i].w) == operand_of(use))
            return i;
    return -1;
}

static bool
is_scale(const mc_value *w)
{
    for (const mc_use *u = w->uses; u; u = u->next)
        for (int i = 0; i < N_PORTS; i++)
            if (ports[i].opcode == u->user->opcode &&
                mc_operand_index(ports[i].opcode, ports[i].scale) == operand_of(u))
                return true;
    return false;
}

static bool
is_matrix(const mc_value *w)
{
    return w->type->rank >= 2 && mc_type_is_float(w->type) && mc_value_has_uses(w) && !is_scale(w);
}

static bool
only_matmuls(const mc_value *w)
{
    for (const mc_use *u = w->uses; u; u = u->next)
        if (port_of(u) < 0) return false;
    return true;
}

static verdict
judge(carver *c, const mc_op *weight, mc_str path)
{
    const mc_value *w = &weight->results[0];
    const mc_type *t = w->type;
    if (!is_matrix(w)) return NOT_COUNTED;
    if (t->dtype == MOEC_F8E4M3 || t->dtype == MOEC_F8E5M2) return IS_FP8;
    switch (mc_fp8_rules_choose(&c->rules, mc_attr_str(weight, "role"), path)) {
    case MC_FP8_UNNAMED: return UNNAMED;
    case MC_FP8_EXCEPTED: return EXCEPTED;
    case MC_FP8_CHOSEN: break;
    }
    return mc_map_has(&c->other_readers, path) ? NO_MATMUL : TO_FP8;
}

/* A pair is packed as one weight, so both halves go or both stay. */
static void
settle_pairs(const carver *c, const mc_func *f, verdict *verdicts)
{
    for (bool again = true; again;) {
        again = false;
        MC_FOR_OPS(op, f)
        {
            if (op->opcode != MC_OP_GATED_LINEAR && op->opcode != MC_OP_MOE_FFN_UP) continue;
            const mc_value *gate = mc_operand_named(op, "w_gate"), *up = mc_operand_named(op, "w_up");
            if (!mc_def_is(gate, MC_OP_WEIGHT) || !mc_def_is(up, MC_OP_WEIGHT)) continue;
            verdict *a = &verdicts[c->index_of[gate->id]], *b = &verdicts[c->index_of[up->id]];
            if ((*a == TO_FP8) == (*b == TO_FP8)) continue;
            *(*a == TO_FP8 ? a : b) = PAIRED;
            again = true;
        }
    }
}

static int
role_index(const mc_op *weight)
{
    int i = 0;
    while (i < N_ROLES - 1 && !mc_str_is(mc_attr_str(weight, "role"), roles[i])) i++;
    return i;
}

static bool
enter(carver *c, const mc_func *f, int depth)
{
    if (depth < MAX_DEPTH && c->n_instances++ < MAX_INSTANCES) return true;
    return mc_error(c->pass->diags, f->span, MC_E0319, "more than %d calls, or calls nested more than %d deep",
                    (int)MAX_INSTANCES, (int)MAX_DEPTH);
}

static bool
note_readers(carver *c, const mc_func *f, mc_str scope, int depth)
{
    if (!enter(c, f, depth)) return false;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_WEIGHT && !only_matmuls(&op->results[0]))
            mc_map_set(&c->other_readers, full_path(c, scope, op), op);
        if (op->opcode != MC_OP_CALL) continue;
        mc_str inner = mc_path_join(c->pass->scratch, scope, mc_attr_str(op, "scope"));
        if (!note_readers(c, mc_attr_func(op, "callee"), inner, depth + 1)) return false;
    }
    return true;
}

static verdict *
judge_all(carver *c, const mc_func *f, mc_str scope)
{
    int n = 0;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_WEIGHT) c->index_of[op->results[0].id] = n++;
    }
    verdict *verdicts = MC_NEW_N(c->pass->scratch, verdict, n);
    n = 0;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_WEIGHT) verdicts[n++] = judge(c, op, full_path(c, scope, op));
    }
    settle_pairs(c, f, verdicts);
    n = 0;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_WEIGHT) c->counts[role_index(op)][verdicts[n++]]++;
    }
    return verdicts;
}

/* The version of f that this instance needs; NULL after an error. */
static version *
visit(carver *c, mc_func *f, mc_str scope, int depth)
{
    if (!enter(c, f, depth)) return NULL;
    mc_arena *scratch = c->pass->scratch;
    version *v = MC_NEW(scratch, version);
    *v = (version){.source = f, .func = f, .verdicts = judge_all(c, f, scope)};
    mc_buf key = {0};
    mc_buf_str(&key, f->name);
    int n = 0;
    bool ok = true;
    MC_FOR_OPS(op, f)
    {
        if (op->opcode == MC_OP_WEIGHT) mc_buf_putc(&key, v->verdicts[n++] == TO_FP8 ? '+' : '-');
        if (op->opcode != MC_OP_CALL) continue;
        version *callee =
            visit(c, mc_attr_func(op, "callee"), mc_path_join(scratch, scope, mc_attr_str(op, "scope")), depth + 1);
        ok = ok && callee;
        if (!ok) break;
        mc_vec_push(scratch, &v->callees, callee);
        for (size_t i = 0; i < c->versions.n; i++)
            if (c->versions.items[i] == callee) mc_buf_printf(&key, "%zu,", i);
    }
    version *known = mc_map_get(&c->by_key, mc_buf_view(&key));
    if (ok && !known) {
        mc_map_set(&c->by_key, mc_str_dup(scratch, mc_buf_view(&key)), v);
        mc_vec_push(scratch, &c->versions, v);
    }
    mc_buf_fini(&key);
    return !ok ? NULL : known ? known : v;
}

/* ---- applying ---------------------------------------------------------------------------------------------------- */

static mc_str
free_name(const mc_module *m, mc_arena *arena, mc_str base)
{
    for (int i = 2;; i++) {
        mc_str name = mc_strf(arena, "%.*s.v%d", MC_FMT(base), i);
        if (!mc_module_find(m, name)) return name;
    }
}

/* The first version of a function is the function itself; the others are copies, made before anything is changed. */
static void
make_functions(carver *c)
{
    mc_map first;
    mc_map_init(&first, c->pass->scratch);
    for (size_t i = 0; i < c->versions.n; i++) {
        version *v = c->versions.items[i];
        if (mc_map_set(&first, v->source->name, v)) continue;
        v->func = mc_clone_func(v->source, free_name(c->module, c->pass->scratch, v->source->name), c->pass->scratch);
    }
}

static mc_value *
copy_weight(const mc_op *old, const mc_type *type)
{
    mc_op *copy = mc_op_create(old->func->module, MC_OP_WEIGHT, NULL, 0, &type, 1, old->attrs, old->span);
    mc_op_insert_before(old->func, (mc_op *)old, copy);
    return &copy->results[0];
}

static void
carve(carver *c, mc_op *old)
{
    mc_module *m = c->module;
    const mc_type *t = old->results[0].type;
    mc_dim dims[MC_MAX_RANK];
    memcpy(dims, t->dims, sizeof dims);
    for (int i = t->rank - 2; i < t->rank; i++) dims[i] = mc_dim_const((t->dims[i].mul + BLOCK - 1) / BLOCK);
    mc_value *w = copy_weight(old, mc_type_with_dtype(m, t, MOEC_F8E4M3));
    mc_value *scale = copy_weight(old, mc_type_get(m, MOEC_F32, dims, t->rank));
    w->name = old->results[0].name;
    mc_str path = mc_strf(c->pass->scratch, "%.*s_scale_inv", MC_FMT(mc_attr_str(old, "path")));
    mc_op_set_attr(scale->def, "path", (mc_attr){.kind = MC_ATTR_STR, .as.s = path});
    mc_op_set_attr(scale->def, "init", (mc_attr){.kind = MC_ATTR_NONE});
    while (old->results[0].uses) {
        const mc_use *use = old->results[0].uses;
        mc_op *user = use->user;
        int i = operand_of(use), port = port_of(use);
        mc_op_set_operand(user, i, w);
        mc_op_set_operand(user, mc_operand_index(user->opcode, ports[port].scale), scale);
    }
    mc_op_remove(old);
}

static void
apply(carver *c, const version *v)
{
    int n = 0;
    size_t n_calls = 0;
    mc_op *next;
    for (mc_op *op = v->func->first; op; op = next) {
        next = op->next;
        if (op->opcode == MC_OP_CALL) {
            mc_func *callee = v->callees.items[n_calls++]->func;
            mc_op_set_attr(op, "callee", (mc_attr){.kind = MC_ATTR_FUNC, .as.func = callee});
        }
        if (op->opcode == MC_OP_WEIGHT && v->verdicts[n++] == TO_FP8) carve(c, op);
    }
}

/* ---- telling ----------------------------------------------------------------------------------------------------- */

static void
tell(const carver *c, mc_span span)
{
    mc_buf text = {0};
    int64_t n_fp8 = 0, n_all = 0;
    const char *comma = " (";
    mc_buf in = {0}, out = {0};
    for (int r = 0; r < N_ROLES; r++) {
        int64_t fp8 = c->counts[r][TO_FP8] + c->counts[r][IS_FP8], all = 0;
        for (int v = NOT_COUNTED + 1; v < N_VERDICTS; v++) all += c->counts[r][v];
        if (fp8) {
            mc_buf_printf(&in, "%s%s %lld of %lld", comma, roles[r], (long long)fp8, (long long)all);
            comma = ", ";
        }
        for (int v = UNNAMED; v < N_VERDICTS; v++)
            if (c->counts[r][v])
                mc_buf_printf(&out, "%s %lld %s %s", out.len ? "," : "; others stay:", (long long)c->counts[r][v],
                              roles[r], reasons[v]);
        n_fp8 += fp8;
        n_all += all;
    }
    mc_buf_printf(&text, "%lld of %lld matrices are in FP8", (long long)n_fp8, (long long)n_all);
    if (in.len) mc_buf_printf(&text, "%.*s)", MC_FMT(mc_buf_view(&in)));
    mc_buf_str(&text, mc_buf_view(&out));
    mc_remark(c->pass->diags, span, MC_R0503, "%.*s", MC_FMT(mc_buf_view(&text)));
    for (size_t i = 0; i < c->rules.lines.n; i++)
        for (size_t k = 0; k < c->rules.lines.items[i].not_paths.n; k++) {
            const mc_fp8_glob *glob = &c->rules.lines.items[i].not_paths.items[k];
            if (!glob->used) mc_note(c->pass->diags, span, "'except' \"%.*s\" matches no weight", MC_FMT(glob->text));
        }
    mc_buf_fini(&text);
    mc_buf_fini(&in);
    mc_buf_fini(&out);
}

static bool
is_expanded(const mc_module *m, mc_diags *d)
{
    MC_FOR_FUNCS(f, m)
    {
        MC_FOR_OPS(op, f)
        {
            if (!mc_op_has(op, MC_TRAIT_BODY)) continue;
            return mc_error(d, op->span, MC_E0502, "'carve-fp8' finds '%s': run 'expand-moe' before it",
                            mc_op_info_of(op)->text);
        }
    }
    return true;
}

mc_pass_result
mc_pass_carve_fp8(mc_pass *p, mc_module *m)
{
    mc_func *model = mc_module_model(m);
    carver c = {.pass = p, .module = m, .index_of = MC_NEW_N(p->scratch, int, m->next_id)};
    mc_map_init(&c.other_readers, p->scratch);
    mc_map_init(&c.by_key, p->scratch);
    if (!is_expanded(m, p->diags)) return MC_FAILED;
    if (!mc_fp8_rules_parse(mc_module_meta(m, "precision.fp8"), p->scratch, p->diags, &c.rules)) return MC_FAILED;
    if (!model) return MC_UNCHANGED;
    if (c.rules.lines.n == 0) {
        mc_remark(p->diags, model->span, MC_R0503,
                  "no fp8 line in the precision block: weights keep their element types");
        return MC_UNCHANGED;
    }
    if (!note_readers(&c, model, (mc_str){0}, 0)) return MC_FAILED;
    c.n_instances = 0;
    if (!visit(&c, model, (mc_str){0}, 0)) return MC_FAILED;
    tell(&c, model->span);
    int64_t n_chosen = 0;
    for (int r = 0; r < N_ROLES; r++) n_chosen += c.counts[r][TO_FP8];
    if (n_chosen == 0 || !mc_fuel(p, model->first)) return MC_UNCHANGED;
    make_functions(&c);
    for (size_t i = 0; i < c.versions.n; i++) apply(&c, c.versions.items[i]);
    mc_module_sort_funcs(m);
    return MC_CHANGED;
}
