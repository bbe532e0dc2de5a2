/* mc_op_infos, expanded from ops.def, and access to an op's parts by name. Every array begins with an unused entry
 * because C has no empty arrays. */
#include "ir/op.h"

#include <assert.h>
#include <math.h>

#include "ir/infer_impl.h"

#define T MC_IN_TENSOR
#define D MC_IN_DIST
#define P MC_IN_PLAN
#define PURE MC_TRAIT_PURE
#define TYPED MC_TRAIT_TYPED
#define STATE MC_TRAIT_STATE
#define END MC_TRAIT_END
#define BODY MC_TRAIT_BODY

#define IN(name, cls)                                                                                                  \
    {                                                                                                                  \
#name, MC_CLASS_##cls, MC_ARITY_ONE                                                                            \
    }
#define OPT(name, cls)                                                                                                 \
    {                                                                                                                  \
#name, MC_CLASS_##cls, MC_ARITY_OPTIONAL                                                                       \
    }
#define VAR(name, cls)                                                                                                 \
    {                                                                                                                  \
#name, MC_CLASS_##cls, MC_ARITY_ANY                                                                            \
    }
#define OUT(name, cls)                                                                                                 \
    {                                                                                                                  \
#name, MC_CLASS_##cls, MC_ARITY_ONE                                                                            \
    }
#define OUTS(name, cls)                                                                                                \
    {                                                                                                                  \
#name, MC_CLASS_##cls, MC_ARITY_ANY                                                                            \
    }
#define OPERANDS(...)                                                                                                  \
    {                                                                                                                  \
        {NULL, MC_CLASS_A, MC_ARITY_ONE}, __VA_ARGS__                                                                  \
    }
#define RESULTS(...)                                                                                                   \
    {                                                                                                                  \
        {NULL, MC_CLASS_A, MC_ARITY_ONE}, __VA_ARGS__                                                                  \
    }
#define ATTRS(...)                                                                                                     \
    {                                                                                                                  \
        {NULL, MC_ATTR_NONE, false, 0, NULL}, __VA_ARGS__                                                              \
    }

#define REQ(name, kind)                                                                                                \
    {                                                                                                                  \
#name, MC_ATTR_##kind, true, 0, NULL                                                                           \
    }
#define DEF(name, kind, value)                                                                                         \
    {                                                                                                                  \
#name, MC_ATTR_##kind, false, NUMBER_##kind(value), TEXT_##kind(value)                                         \
    }
#define NUMBER_INT(value) (value)
#define NUMBER_FLOAT(value) (value)
#define NUMBER_BOOL(value) (value)
#define NUMBER_STR(value) 0
#define NUMBER_FLOATS(value) 0
#define NUMBER_DTYPE(value) 0
#define TEXT_INT(value) NULL
#define TEXT_FLOAT(value) NULL
#define TEXT_BOOL(value) NULL
#define TEXT_STR(value) (value)
#define TEXT_FLOATS(value) NULL
#define TEXT_DTYPE(value) NULL

#define MC_OP(ID, text, stages, traits, infer, operands, results, attrs, doc)                                          \
    static const mc_port_info operands_##ID[] = operands;                                                              \
    static const mc_port_info results_##ID[] = results;                                                                \
    static const mc_attr_info attrs_##ID[] = attrs;
#include "ir/ops.def"
#undef MC_OP

#define COUNT(array) (uint8_t)(sizeof(array) / sizeof((array)[0]) - 1)

const mc_op_info mc_op_infos[MC_N_OPCODES] = {
#define MC_OP(ID, text, stages, traits, infer, operands, results, attrs, doc)                                          \
    {#ID,                                                                                                              \
     text,                                                                                                             \
     doc,                                                                                                              \
     stages,                                                                                                           \
     traits,                                                                                                           \
     mc_infer_##infer,                                                                                                 \
     operands_##ID + 1,                                                                                                \
     results_##ID + 1,                                                                                                 \
     attrs_##ID + 1,                                                                                                   \
     COUNT(operands_##ID),                                                                                             \
     COUNT(results_##ID),                                                                                              \
     COUNT(attrs_##ID)},
#include "ir/ops.def"
#undef MC_OP
};

const mc_op_info *
mc_op_info_of(const mc_op *op)
{
    return &mc_op_infos[op->opcode];
}

mc_opcode
mc_opcode_find(mc_str text)
{
    int opcode = 0;
    while (opcode < MC_N_OPCODES && !mc_str_is(text, mc_op_infos[opcode].text)) opcode++;
    return (mc_opcode)opcode;
}

bool
mc_op_has(const mc_op *op, unsigned trait)
{
    return (mc_op_infos[op->opcode].traits & trait) != 0;
}

mc_value *
mc_operand(const mc_op *op, int i)
{
    return i >= 0 && i < op->n_operands ? op->operands[i].value : NULL;
}

mc_value *
mc_operand_named(const mc_op *op, const char *name)
{
    const mc_op_info *info = mc_op_info_of(op);
    for (int i = 0; i < info->n_operands; i++) {
        if (mc_str_is(mc_str_of(name), info->operands[i].name)) return mc_operand(op, i);
    }
    assert(!"the table has no operand of this name");
    return NULL;
}

mc_value *
mc_result(const mc_op *op, int i)
{
    return i >= 0 && i < op->n_results ? &op->results[i] : NULL;
}

int
mc_attr_index(mc_opcode opcode, mc_str name)
{
    const mc_op_info *info = &mc_op_infos[opcode];
    for (int i = 0; i < info->n_attrs; i++) {
        if (mc_str_is(name, info->attrs[i].name)) return i;
    }
    return -1;
}

const mc_attr *
mc_attr_get(const mc_op *op, const char *name)
{
    int i = mc_attr_index(op->opcode, mc_str_of(name));
    assert(i >= 0);
    return &op->attrs[i];
}

/* The default as an attribute; kind NONE for what has none. */
static mc_attr
default_of(const mc_attr_info *info)
{
    mc_attr attr = {.kind = info->kind};
    switch (info->kind) {
    case MC_ATTR_INT: attr.as.i = (int64_t)info->number; break;
    case MC_ATTR_FLOAT: attr.as.f = info->number; break;
    case MC_ATTR_BOOL: attr.as.b = info->number != 0; break;
    case MC_ATTR_STR: attr.as.s = mc_str_of(info->text); break;
    case MC_ATTR_INTS:
    case MC_ATTR_FLOATS: break;
    case MC_ATTR_NONE:
    case MC_ATTR_DTYPE:
    case MC_ATTR_FUNC: attr.kind = MC_ATTR_NONE; break;
    }
    return attr;
}

mc_attr
mc_attr_at(mc_opcode opcode, const mc_attr *attrs, const char *name, mc_attr_kind kind)
{
    int i = mc_attr_index(opcode, mc_str_of(name));
    assert(i >= 0 && mc_op_infos[opcode].attrs[i].kind == kind);
    (void)kind;
    return attrs[i].kind == MC_ATTR_NONE ? default_of(&mc_op_infos[opcode].attrs[i]) : attrs[i];
}

int64_t
mc_attr_int(const mc_op *op, const char *name)
{
    return mc_attr_at(op->opcode, op->attrs, name, MC_ATTR_INT).as.i;
}

double
mc_attr_float(const mc_op *op, const char *name)
{
    return mc_attr_at(op->opcode, op->attrs, name, MC_ATTR_FLOAT).as.f;
}

bool
mc_attr_bool(const mc_op *op, const char *name)
{
    return mc_attr_at(op->opcode, op->attrs, name, MC_ATTR_BOOL).as.b;
}

mc_str
mc_attr_str(const mc_op *op, const char *name)
{
    return mc_attr_at(op->opcode, op->attrs, name, MC_ATTR_STR).as.s;
}

moec_dtype
mc_attr_dtype(const mc_op *op, const char *name)
{
    return mc_attr_at(op->opcode, op->attrs, name, MC_ATTR_DTYPE).as.dtype;
}

mc_func *
mc_attr_func(const mc_op *op, const char *name)
{
    return mc_attr_at(op->opcode, op->attrs, name, MC_ATTR_FUNC).as.func;
}

bool
mc_value_has_uses(const mc_value *v)
{
    return v->uses != NULL;
}

bool
mc_value_has_one_use(const mc_value *v)
{
    return v->uses && !v->uses->next;
}
