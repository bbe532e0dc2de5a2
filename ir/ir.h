/* ir: the data structures. A module holds functions; a function is a straight list of ops in order of execution;
 * ops use and make values. No control flow: repetition is calls of one function per distinct layer kind.
 * Only ir/edit.c writes use lists and op lists. Everything lives in the module's arena. */
#ifndef MC_IR_IR_H
#define MC_IR_IR_H

#include "ir/source.h"
#include "ir/type.h"
#include "runtime/base/map.h"
#include "runtime/base/vec.h"

typedef struct mc_op mc_op;
typedef struct mc_value mc_value;
typedef struct mc_func mc_func;

typedef enum mc_opcode {
#define MC_OP(ID, text, stages, traits, infer, operands, results, attrs, doc) MC_OP_##ID,
#include "ir/ops.def"
#undef MC_OP
    MC_N_OPCODES
} mc_opcode;

/* tensor: values, one device.  dist: communication has been placed.  plan: every value has its place in memory. */
typedef enum mc_stage { MC_STAGE_TENSOR, MC_STAGE_DIST, MC_STAGE_PLAN } mc_stage;

typedef enum mc_attr_kind {
    MC_ATTR_NONE, /* absent */
    MC_ATTR_INT,
    MC_ATTR_FLOAT,
    MC_ATTR_BOOL,
    MC_ATTR_STR,
    MC_ATTR_INTS,
    MC_ATTR_FLOATS,
    MC_ATTR_DTYPE,
    MC_ATTR_FUNC
} mc_attr_kind;

typedef struct mc_attr {
    mc_attr_kind kind;
    union {
        int64_t i;
        double f;
        bool b;
        mc_str s;
        moec_dtype dtype;
        mc_func *func;
        struct {
            int64_t *items;
            size_t n;
        } ints;
        struct {
            double *items;
            size_t n;
        } floats;
    } as;
} mc_attr;

typedef struct mc_use {
    mc_value *value; /* NULL: an optional operand that is absent */
    mc_op *user;
    struct mc_use *next, **link; /* in value's use list, newest first */
} mc_use;

/* Where a value lies once plan-memory has run (stage plan).
 *   SLOT   a region of the function's frame: `index` into func->slots
 *   VIEW   inside another value `base`, `offset` elements further, rows `row_stride` elements apart (0: contiguous)
 *   ARG    the caller's value: the index-th formal    RESULT  the caller's buffer for the index-th result
 *   WEIGHT the index-th packed weight of the function STATE   the index-th state of the function
 *   CONST  nowhere: a scalar known at compile time */
typedef enum mc_place_kind {
    MC_PLACE_NONE,
    MC_PLACE_SLOT,
    MC_PLACE_VIEW,
    MC_PLACE_ARG,
    MC_PLACE_RESULT,
    MC_PLACE_WEIGHT,
    MC_PLACE_STATE,
    MC_PLACE_CONST
} mc_place_kind;

typedef struct mc_place {
    mc_place_kind kind;
    int32_t index;
    int64_t offset, row_stride;
    mc_value *base;
} mc_place;

struct mc_value {
    const mc_type *type;
    mc_op *def; /* NULL for a formal of the function */
    mc_func *func;
    mc_use *uses;   /* newest first */
    uint32_t id;    /* unique in the module, ascending in order of creation */
    uint32_t index; /* which result of def, or which formal */
    mc_str name;    /* a hint for printing; may be empty */
    mc_place place;
};

struct mc_op {
    mc_opcode opcode;
    uint16_t n_operands, n_results;
    uint32_t id;
    mc_span span; /* source it came from; fused ops keep the first */
    mc_op *prev, *next;
    mc_func *func; /* NULL while not inserted */
    mc_use *operands;
    mc_value *results;
    mc_attr *attrs; /* one per ATTRS entry of its row, in order; kind NONE = has its default */
};

/* A region of a function's frame, shared by values whose lifetimes do not overlap. Its size in bytes is the maximum
 * of the sizes (each a dim in bytes). */
typedef struct mc_slot {
    mc_dim *bytes;
    size_t n_bytes;
} mc_slot;

typedef MC_VEC(mc_value *) mc_values;

struct mc_func {
    mc_str name;
    mc_module *module;
    bool is_model; /* the entry; exactly one in a module */
    mc_span span;
    mc_values formals;
    mc_op *first, *last; /* last is `return` */
    mc_slot *slots;      /* stage plan */
    size_t n_slots;
    mc_func *next;
};

/* A property of the model that passes and backends read, e.g. "precision.router" = "f32". Keys: docs/IR.md. */
typedef struct mc_meta {
    mc_str key, value;
} mc_meta;

struct mc_module {
    mc_arena *arena;
    mc_stage stage;
    mc_func *funcs; /* in order of creation; callees before callers */
    mc_func *last_func;
    mc_symbol syms[MC_MAX_SYMS];
    int n_syms;
    MC_VEC(mc_meta) metas;
    mc_map types; /* interning: key bytes -> const mc_type * */
    uint32_t next_id;
    const mc_sources *sources; /* for spans; may be NULL */
};

mc_module *mc_module_create(const mc_sources *sources);
void mc_module_destroy(mc_module *m); /* NULL is allowed */
mc_func *mc_module_find(const mc_module *m, mc_str name);
mc_func *mc_module_model(const mc_module *m);               /* the entry function, or NULL */
mc_str mc_module_meta(const mc_module *m, const char *key); /* empty when absent */
void mc_module_set_meta(mc_module *m, mc_str key, mc_str value);

#define MC_FOR_OPS(op, func) for (mc_op *op = (func)->first; op; op = op->next)
#define MC_FOR_FUNCS(f, module) for (mc_func *f = (module)->funcs; f; f = f->next)

#endif
