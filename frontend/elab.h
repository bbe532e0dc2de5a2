/* elab: the state of one elaboration, and what its files give each other.
 *
 *   items    declarations of the file, params, overrides      scope    variables; frames: functions being built
 *   eval     expressions        arith    numbers and dims      tensor_values  arithmetic on tensors, indexing
 *   call     arguments          block    inlining              stmt     statements      repeat, kinds
 *   registry weights            shapes   types and dims        builtins the ops (ops_*.c)
 *   route_stages, stage_*       moe, experts, shared           settings precision, place, train    rules_text
 */
#ifndef MC_FRONTEND_ELAB_H
#define MC_FRONTEND_ELAB_H

#include "frontend/elaborate.h"
#include "frontend/value.h"
#include "ir/build.h"
#include "ir/op.h"

typedef struct mc_elab mc_elab;
typedef struct mc_frame mc_frame;
typedef MC_VEC(mc_str) mc_strs;

enum {
    MC_MAX_EVAL_DEPTH = 1200, /* of nested expressions, over all inlined blocks */
    MC_MAX_BLOCK_DEPTH = 64,
    MC_MAX_STEPS = 1000000, /* expressions and statements evaluated in all */
    MC_MAX_REPEAT = 100000,
    MC_MAX_LIST = 65536,
    MC_MAX_USES = 64,
    MC_MAX_PARTS = 64 /* results of one op */
};
#define MC_MAX_ELEMS ((int64_t)1 << 48) /* of one weight */
#define MC_MAX_DIM ((int64_t)1 << 40)

typedef struct mc_block {
    const mc_item *item;
    bool is_prelude;
    bool has_attention;  /* sdpa, cache or a scan in its own text */
    bool uses_attention; /* ... or in that of a block it names */
} mc_block;

typedef struct mc_active {
    const mc_block *block;
    mc_span call;
} mc_active;

typedef struct mc_binding {
    mc_str name;
    mc_val value;
    mc_frame *frame; /* in whose function a tensor value was made */
    struct mc_binding *next;
} mc_binding;

typedef struct mc_scope {
    struct mc_scope *parent;
    mc_binding *first;
    bool is_block; /* nothing outside is visible but the file's own names */
    const mc_block *block;
} mc_scope;

typedef enum mc_frame_kind { MC_FRAME_MODEL, MC_FRAME_REPEAT, MC_FRAME_ROUTE, MC_FRAME_EXPERT } mc_frame_kind;

typedef struct mc_capture {
    mc_value *outer, *formal;
} mc_capture;

/* An IR function under construction. */
struct mc_frame {
    mc_frame_kind kind;
    mc_frame *parent;
    mc_func *func;
    mc_builder builder;
    size_t base;     /* labels before this one are in the scope of the function's call */
    int64_t experts; /* of an EXPERT frame */
    MC_VEC(mc_capture) captures;
    MC_VEC(mc_binding *) assigned; /* bindings of outer frames that were set here */
    mc_map roots;                  /* path -> weight op's value, for @path */
};

/* Which part of an MoE is being built: decides the role of weights. */
typedef enum mc_region { MC_REGION_PLAIN, MC_REGION_ROUTER, MC_REGION_EXPERTS, MC_REGION_SHARED } mc_region;

typedef struct mc_moe_info { /* for the checks of place and train */
    mc_span span;
    int64_t experts;
    bool has_bias;
} mc_moe_info;

typedef struct mc_setting_text {
    mc_str name, text;
    mc_span span;
} mc_setting_text;

typedef MC_VEC(mc_setting_text) mc_setting_texts;

typedef struct mc_axis_use { /* experts over = ep */
    mc_word word;
    bool of_experts;
} mc_axis_use;

typedef struct mc_axis {
    mc_str name;
    int64_t size;
    mc_span span;
} mc_axis;

struct mc_elab {
    mc_arena *arena;
    mc_sources *sources;
    mc_diags *diags;
    const mc_elab_options *options;
    mc_elab_result *out;
    mc_module *module;

    /* the file's names */
    MC_VEC(const mc_item *) items;
    mc_map names;    /* params, dims, blocks, models: name -> const mc_item *, for E0205 */
    mc_map blocks;   /* name -> mc_block *; the user's own shadow the prelude's */
    mc_map prelude;  /* name -> mc_block * */
    mc_map values;   /* params and dims: name -> mc_val * */
    mc_map defaults; /* callee -> mc_fn_arg list (mc_default *) */
    mc_map inlined;  /* names of the blocks that were run */
    void *config;    /* json_t * */
    bool reads_config;
    mc_map config_used;

    /* where evaluation stands */
    mc_scope *scope;
    mc_frame *frame;
    mc_strs labels;
    mc_region region;
    MC_VEC(mc_active) stack; /* blocks being inlined */
    uint32_t prelude_file;
    mc_span user_span; /* the innermost call written in a file of the user's */
    int depth;
    int64_t steps;
    bool fatal;   /* a limit was hit: unwind without further reports */
    bool note_ok; /* the newest diagnostic was kept, so notes may follow */
    int n_errors;
    mc_val_list results; /* of the `return` just run, and where each stands in it */
    mc_span *result_spans;

    /* for import: what each condition came to (MC_SEEN_ bits), and the value of each config(...), by tree node */
    mc_map *seen, *config_values;

    /* products */
    uint32_t main_file; /* the text itself, not what it uses */
    mc_map func_names;
    mc_map weights;   /* path -> index + 1 into out->weights */
    mc_map kinds;     /* key of a function -> its id, see kinds.c */
    int64_t inactive; /* parameters of experts not chosen */
    bool has_cache;
    MC_VEC(mc_moe_info) moes;
    mc_setting_texts precision, place, train;
    MC_VEC(mc_axis) mesh;
    MC_VEC(mc_axis_use) axis_uses;
    bool trains;
    moec_dtype storage;
};

enum { MC_SEEN_FALSE = 1, MC_SEEN_TRUE = 2 };

/* ---- elaborate.c ---- */
void mc_elab_init(mc_elab *e, mc_arena *arena, mc_sources *sources, const mc_elab_options *options, mc_diags *diags,
                  mc_elab_result *out);
bool mc_elab_run(mc_elab *e, uint32_t file); /* without errors? The module is e->module either way */
/* Key of a tree node in the maps for import. */
mc_str mc_elab_node_key(mc_elab *e, const void *node);
void mc_elab_see(mc_elab *e, const void *node, bool truth);

/* ---- messages ---- */
/* Reports once for each place and code. Returns POISON, so that `return mc_elab_error(...)` reads well. */
mc_val mc_elab_error(mc_elab *e, mc_span span, mc_code code, const char *format, ...) MOEC_PRINTF(4, 5);
void mc_elab_warn(mc_elab *e, mc_span span, mc_code code, const char *format, ...) MOEC_PRINTF(4, 5);
void mc_elab_note(mc_elab *e, mc_span span, const char *format, ...) MOEC_PRINTF(3, 4);
/* A place in the prelude becomes the place where the user called its block. */
mc_span mc_elab_user_span(const mc_elab *e, mc_span span);
/* Says through which blocks evaluation came here. */
void mc_elab_call_notes(mc_elab *e, mc_span span);
/* The text of the source under the span, cut after 60 bytes. */
mc_str mc_elab_quote(mc_elab *e, mc_span span);
/* "a, b, c" */
mc_str mc_elab_join(mc_elab *e, const mc_str *names, size_t n);
/* " (did you mean 'x'?)" or "". */
mc_str mc_elab_hint(mc_elab *e, mc_str word, const mc_str *names, size_t n);
/* Splits "x dt A" at spaces. */
mc_strs mc_elab_words(mc_elab *e, const char *list);
/* Counts work; false (and an error, once) when there is too much of it. */
bool mc_elab_step(mc_elab *e, mc_span span);

/* ---- items.c, usage.c ---- */
bool mc_elab_collect(mc_elab *e, uint32_t file);
void mc_elab_file_values(mc_elab *e);
mc_block *mc_elab_find_block(mc_elab *e, mc_str name);
const mc_fn_arg *mc_elab_defaults(mc_elab *e, mc_str callee, size_t *out_n);
void mc_elab_usage(mc_elab *e);       /* warnings about what is never used */
void mc_elab_block_facts(mc_elab *e); /* has_attention, uses_attention, E0208 */
mc_file *mc_elab_parse_snippet(mc_elab *e, const char *what, mc_str text);

/* ---- scope.c ---- */
mc_scope *mc_scope_push(mc_elab *e, bool is_block, const mc_block *block);
void mc_scope_pop(mc_elab *e);
mc_binding *mc_scope_find(mc_elab *e, mc_str name);
void mc_scope_declare(mc_elab *e, mc_str name, mc_val value);
void mc_scope_assign(mc_elab *e, mc_str name, mc_val value);
void mc_binding_set(mc_elab *e, mc_binding *binding, mc_val value);
mc_frame *mc_frame_push(mc_elab *e, mc_frame_kind kind, mc_str name, mc_span span);
void mc_frame_pop(mc_elab *e);
/* The same value for use in the function being built: tensors of outer functions become formals. */
mc_val mc_frame_import(mc_elab *e, mc_val v, mc_span use);
mc_str mc_elab_path(mc_elab *e, size_t from, mc_str label, mc_str leaf);
bool mc_label_push(mc_elab *e, mc_str label); /* false for "_", which adds none */
void mc_label_pop(mc_elab *e, bool pushed);

/* ---- eval.c, arith.c, tensor_values.c, config.c ---- */
mc_val mc_eval(mc_elab *e, const mc_expr *x);
bool mc_eval_int(mc_elab *e, const mc_expr *x, const char *what, int64_t lo, int64_t hi, int64_t *out);
bool mc_eval_condition(mc_elab *e, const mc_expr *x, bool *out);
mc_val mc_arith(mc_elab *e, mc_span span, mc_binop op, mc_val a, mc_val b);
mc_val mc_arith_negate(mc_elab *e, mc_span span, mc_val a);
mc_val mc_tensor_binary(mc_elab *e, const mc_expr *x, mc_val a, mc_val b);
mc_val mc_tensor_index(mc_elab *e, const mc_expr *x, mc_val a);
/* Any tensor or number as an operand of arithmetic: f32 (numbers become constants). NULL after an error. */
mc_value *mc_tensor_operand(mc_elab *e, mc_val v, mc_span span);
/* As it is; NULL (and an error) when v is no tensor. */
mc_value *mc_tensor_of(mc_elab *e, mc_val v, mc_span span, const char *what);
mc_value *mc_tensor_cast(mc_elab *e, mc_value *x, moec_dtype to);
/* One op at the cursor; POISON when it was refused. */
mc_val mc_emit(mc_elab *e, mc_span span, mc_opcode opcode, mc_value *const *operands, int n_operands,
               const mc_named_attr *attrs, int n_attrs);
mc_val mc_config_call(mc_elab *e, const mc_expr *x);
bool mc_config_open(mc_elab *e);
void mc_config_close(mc_elab *e);

/* ---- shapes.c ---- */
mc_str mc_shape_text(mc_elab *e, const mc_type *t); /* "[B, S, 4096]" */
bool mc_shape_dim(mc_elab *e, mc_val v, mc_span span, mc_dim *out);
/* Evaluates the dims of a type without "..."; -1 after an error. */
int mc_shape_dims(mc_elab *e, const mc_type_expr *t, mc_dim *dims);
/* The dtype word of a type; `none` when there is none. */
bool mc_shape_dtype(mc_elab *e, mc_word word, moec_dtype none, moec_dtype *out);
/* Does the tensor fit the declared type? Binds names not seen before in the innermost scope. */
bool mc_shape_bind(mc_elab *e, const mc_formal *f, mc_val v, mc_span use, mc_str callee);
bool mc_shape_check_result(mc_elab *e, const mc_formal *f, mc_val v, mc_span at, const mc_item *item);
bool mc_shape_broadcast(const mc_type *a, const mc_type *b);

/* ---- call.c, block.c ---- */
typedef struct mc_call_param {
    bool given;
    mc_val value;
    mc_span span;
} mc_call_param;

typedef struct mc_call {
    mc_span span;
    mc_str name;
    mc_word label; /* never empty: the callee's name by default */
    const mc_str *tensor_names, *param_names;
    size_t n_tensor_names, n_params;
    mc_val *tensors; /* in order; n_tensors given */
    mc_span *tensor_spans;
    size_t n_tensors;
    mc_call_param *params;
} mc_call;

mc_val mc_apply(mc_elab *e, const mc_fn *fn, mc_word label, const mc_fn_arg *args, size_t n_args, mc_span span);
/* Applies a function value to one tensor. */
mc_val mc_apply_to(mc_elab *e, mc_val fn, mc_word label, mc_val x, mc_span span);
bool mc_call_check(mc_elab *e, const mc_fn *fn, const mc_fn_arg *args, size_t n_args, mc_span span); /* names only */
mc_val mc_call_expr(mc_elab *e, const mc_expr *x);
mc_fn_arg *mc_eval_args(mc_elab *e, const mc_arg *args, size_t *out_n);
mc_val mc_fn_of(mc_elab *e, mc_str name, mc_span span); /* POISON without a report when there is none */
/* Puts arguments in their places; false after an error. call->span, name, names and numbers are set by the caller. */
bool mc_call_bind(mc_elab *e, mc_call *call, const mc_fn_arg *args, size_t n_args, bool variadic);

const mc_call_param *mc_param(const mc_call *c, const char *name); /* NULL when absent or none */
bool mc_param_int(mc_elab *e, const mc_call *c, const char *name, int64_t lo, int64_t hi, int64_t *value);
bool mc_param_real(mc_elab *e, const mc_call *c, const char *name, double *value);
bool mc_param_bool(mc_elab *e, const mc_call *c, const char *name, bool *value);
/* Index of the word in the list "half adjacent". */
bool mc_param_word(mc_elab *e, const mc_call *c, const char *name, const char *allowed, int *value);
bool mc_param_dtype(mc_elab *e, const mc_call *c, const char *name, moec_dtype *value);
bool mc_param_needed(mc_elab *e, const mc_call *c, const char *name); /* E0307 when absent */

mc_val mc_inline_block(mc_elab *e, const mc_block *block, mc_call *call);
bool mc_run_model(mc_elab *e, const mc_item *model);

/* ---- stmt.c, repeat.c, kinds.c ---- */
typedef enum mc_run { MC_RUN_ON, MC_RUN_RETURNED, MC_RUN_FAILED } mc_run;
mc_run mc_run_body(mc_elab *e, const mc_stmt *body);
mc_run mc_run_repeat(mc_elab *e, const mc_stmt *s);
uintptr_t mc_kind_of(mc_elab *e, mc_func *f); /* equal numbers: the functions do the same */
void mc_kind_remove(mc_func *f);              /* with the functions only it refers to */

/* ---- registry.c ---- */
typedef struct mc_weight_spec {
    mc_span span;
    mc_str label, leaf; /* label empty or "_": none; leaf empty: none */
    const mc_dim *dims;
    int rank;
    const char *role;
    moec_dtype dtype; /* NONE: the storage dtype */
    mc_str init;
} mc_weight_spec;

mc_value *mc_weight_make(mc_elab *e, const mc_weight_spec *spec); /* NULL after an error */
/* What a weight made for this op begins as in training ("ones"), unless it is an older one that the text refers to. */
void mc_weight_begins(mc_value *w, const char *init);
mc_value *mc_weight_ref(mc_elab *e, mc_str path, mc_span span); /* @path */
const char *mc_weight_role(mc_elab *e, bool is_linear);         /* by where evaluation stands */
void mc_elab_totals(mc_elab *e);

/* ---- builtins.c ---- */
typedef mc_val mc_builtin_fn(mc_elab *e, mc_call *c);
typedef struct mc_builtin {
    const char *name, *tensors, *params;
    mc_builtin_fn *run;
    mc_opcode opcode;       /* of elementwise functions */
    double (*fold)(double); /* may be applied to a number, or NULL */
} mc_builtin;
extern const mc_builtin mc_builtins[];
extern const size_t mc_n_builtins;
const mc_builtin *mc_builtin_find(mc_str name);

/* ---- route_stages.c, moe.c, shared.c, experts.c ---- */
typedef struct mc_route_state {
    mc_span span;          /* of the route */
    mc_value *input;       /* [..., d] */
    mc_value *value, *key; /* [..., candidates]; value is the weights [..., k] after the choice */
    mc_value *ids;         /* [..., k] once chosen */
    mc_value *candidates;  /* ids of the candidates after hash, else NULL */
    int64_t n_experts;     /* identity experts included */
    int64_t n_candidates;  /* that top may choose from */
    int64_t k, active;     /* choices a token; counted for the active parameters */
    bool chosen, on_input, has_bias, chosen_tokens;
    const char *chosen_by; /* name of the stage */
    mc_span chosen_span;
    bool softmax_before, softmax_after;
    mc_span softmax_span;
    mc_strs training; /* texts of stages that act in training only */
} mc_route_state;

bool mc_run_route(mc_elab *e, const mc_route_stage *stages, mc_route_state *r);
mc_val mc_run_gate(mc_elab *e, const mc_route_stage *stages, mc_value *x);
mc_val mc_eval_route(mc_elab *e, const mc_expr *x);
mc_val mc_eval_moe(mc_elab *e, const mc_expr *x);
mc_val mc_apply_linear(mc_elab *e, mc_value *x, int64_t out, mc_str label, bool bias, const char *role, mc_span span);

/* An expert body as a function over rows; *out_params: of one expert. NULL after an error. */
mc_func *mc_expert_body(mc_elab *e, mc_val fn, mc_word label, int64_t experts, const mc_type *x, mc_span span,
                        const mc_type **out_type, int64_t *out_params);

typedef struct mc_shared_spec {
    const mc_clause *clause;  /* may be NULL */
    const mc_clause *combine; /* may be NULL */
} mc_shared_spec;
mc_val mc_add_shared(mc_elab *e, const mc_shared_spec *spec, mc_value *x, mc_val routed, mc_span span);

/* ---- settings.c, settings_check.c, rules_text.c ---- */
void mc_elab_settings(mc_elab *e);
void mc_elab_settings_check(mc_elab *e);
void mc_elab_rules(mc_elab *e);

#endif
