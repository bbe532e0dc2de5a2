/* sdpa and latent_sdpa: kernels/attention.cuh, attention_fma.cuh, attention_mma.cuh. Two launches: attention itself,
 * and attend_join, which adds up the parts of items whose keys were dealt to several blocks, and has nothing to do when
 * there are many items. Operands of one 16-bit type and sizes of whole matrices go to tensor cores. Tiles are the
 * greatest that fit into the shared memory of every architecture. */
#include "codegen/gpu/attention.h"
#include "codegen/gpu/rows.h"
#include "codegen/gpu/select.h"

enum { THREADS = 128, SHARED_MOST = 98 * 1024, PARTS = 256 /* ATTEND_PARTS */, MOST_WIDTH = 576, CORES_ROWS = 16 };
enum { I_ROWS };

/* The operands of either op by their part in it. */
typedef struct parts {
    const mc_value *q, *k, *v, *sinks, *select, *q_rot, *k_rot, *o;
    int width, value, rot, group, flags;
} parts;

/* How a kernel is tiled: rows of a block, of a group with few rows, and the template's last parameters. */
typedef struct tiling {
    int tile, few;
    int64_t shared;
    mc_str text;
} tiling;

/* ---- tiles in f32 (fma_form) ----------------------------------------------------------------------------------- */

static int64_t
fma_bytes(const parts *a, int rm, int bn)
{
    int rows = 8 * rm, ws = ((a->width + 3) / 4 | 1) * 4, vs = (a->value + 63) / 64 * 64;
    int64_t values = a->rot ? 64 : (int64_t)bn * vs;
    return 4 * ((int64_t)rows * ws + (int64_t)bn * ws + values + (int64_t)rows * (bn + 4) + bn);
}

static bool
fma_tiling(mc_plan *p, const parts *a, tiling *out)
{
    static const int forms[][2] = {{8, 32}, {4, 32}, {4, 16}, {2, 16}, {1, 16}};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        int rm = forms[i][0], bn = forms[i][1], few = a->group > 8 && rm > 1 ? 2 : 1;
        if (rm * ((a->value + 63) / 64) > 16 || fma_bytes(a, rm, bn) > SHARED_MOST) continue;
        out->tile = 8 * rm;
        out->few = 8 * few;
        out->shared = fma_bytes(a, rm, bn);
        out->text = mc_strf(p->arena, "%d, %d, %d, %d", rm, bn, few, bn);
        return true;
    }
    return mc_plan_refuse(p, "heads of %d and values of %d channels do not fit into shared memory", a->width, a->value);
}

/* ---- tiles of tensor cores (mma_form) -------------------------------------------------------------------------- */

static int64_t
mma_bytes(const parts *a, int wr, int wk, int bn)
{
    int rows = 16 * wr, qs = a->width + 8, vs = a->rot ? 0 : a->value + 8;
    int64_t loop = 2 * ((int64_t)rows * qs + (int64_t)bn * qs + (int64_t)bn * vs) + 4 * bn;
    int64_t join = wk > 1 ? (int64_t)wk * rows * (a->value + 8) * 4 : 0;
    return loop > join ? loop : join;
}

/* Whether mma has a form for these operands; the tiles. */
static bool
mma_tiling(mc_plan *p, const parts *a, tiling *out)
{
    if (a->q->type->dtype == MOEC_F32 || a->width % 16 || a->rot % 8 || a->value % (a->value > 256 ? 32 : 16))
        return false;
    int wc = a->value > 256 ? 2 : 1, wr = 4 / wc, bn = a->value > 128 ? 32 : 64, wk = wc == 1 ? 4 : 2;
    while (bn > 16 && mma_bytes(a, wr, 1, bn) > SHARED_MOST) bn /= 2;
    int few_bn = 16 * wk;
    if (mma_bytes(a, 1, wk, few_bn) > SHARED_MOST) wk = 0;
    out->tile = 16 * wr;
    out->few = wk ? CORES_ROWS : 0;
    out->shared = mma_bytes(a, wr, 1, bn);
    if (wk && mma_bytes(a, 1, wk, few_bn) > out->shared) out->shared = mma_bytes(a, 1, wk, few_bn);
    out->text = mc_strf(p->arena, "%d, %d, %d, %d, %d", wr, wc, bn, wk, few_bn);
    return out->shared <= SHARED_MOST;
}

/* ---- arguments ------------------------------------------------------------------------------------------------- */

int
mc_gpu_attention_flags(const mc_op *op)
{
    int flags = 0;
    if (mc_attr_bool(op, "causal")) flags |= MC_GPU_ATTEND_CAUSAL;
    if (mc_attr_int(op, "window")) flags |= MC_GPU_ATTEND_WINDOW;
    if (mc_attr_int(op, "chunk")) flags |= MC_GPU_ATTEND_CHUNKED;
    if (mc_attr_float(op, "softcap") != 0) flags |= MC_GPU_ATTEND_SOFTCAP;
    return flags;
}

void
mc_gpu_attention_reach(mc_plan *p, const mc_op *op)
{
    static const char *const names[] = {"window", "chunk"};
    const int64_t most = 1 << 30; /* more than there are positions; sums with positions fit into 32 bits */
    for (int i = 0; i < 2; i++) {
        int64_t n = mc_attr_int(op, names[i]);
        mc_plan_const(p, n < most ? n : most);
    }
}

mc_dim
mc_gpu_fresh(mc_plan *p, mc_dim keys)
{
    if (!mc_gpu_grows(p, keys)) return keys;
    if (keys.n_syms != 1 || keys.mul != 1 || keys.add != 0)
        mc_plan_refuse(p, "the number of its keys is not that of the positions");
    for (size_t i = 0; i < p->syms.n; i++)
        if (p->syms.items[i].kind == 1) return mc_dim_sym((int)i);
    return mc_dim_const(0);
}

void
mc_gpu_history(mc_plan *p, mc_dim keys)
{
    mc_gpu_int(p, mc_gpu_fresh(p, keys));
    mc_plan_const(p, mc_gpu_grows(p, keys));
}

static parts
parts_of(mc_plan *p, const mc_op *op)
{
    parts a = {.q = mc_operand(op, 0), .k = mc_operand(op, 1), .select = mc_operand(op, 4), .o = mc_result(op, 0)};
    a.flags = mc_gpu_attention_flags(op);
    mc_dim group = a.q->type->dims[2];
    if (op->opcode == MC_OP_LATENT_SDPA) {
        a.v = a.k;
        a.q_rot = mc_operand(op, 2);
        a.k_rot = mc_operand(op, 3);
        a.rot = (int)mc_plan_need_const(p, mc_type_last(a.k_rot->type), "the width of a rotated key");
    } else {
        a.v = mc_operand(op, 2);
        a.sinks = mc_operand(op, 3);
        mc_dim_div(group, a.k->type->dims[2], &group);
    }
    if (a.sinks) a.flags |= MC_GPU_ATTEND_SINKS;
    if (a.select) a.flags |= MC_GPU_ATTEND_SELECT;
    a.width = (int)mc_plan_need_const(p, mc_type_last(a.q->type), "the width of a head") + a.rot;
    a.value = (int)mc_plan_need_const(p, mc_type_last(a.v->type), "the width of a value");
    a.group = (int)mc_plan_need_const(p, group, "the number of heads");
    return a;
}

static bool
check_types(mc_plan *p, const parts *a)
{
    const mc_value *floats[] = {a->k, a->v, a->q_rot, a->k_rot};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        if (floats[i] && floats[i]->type->dtype != a->q->type->dtype)
            return mc_plan_refuse(p, "its queries, keys and values are not of one type");
    if (!mc_gpu_is_float(a->q->type->dtype) || !mc_gpu_is_float(a->o->type->dtype))
        return mc_plan_refuse(p, "its operands are neither f32 nor bf16 nor f16");
    if (a->sinks && a->sinks->type->dtype != MOEC_F32) return mc_plan_refuse(p, "its sinks are not f32");
    if (a->width > MOST_WIDTH || a->value > MOST_WIDTH)
        return mc_plan_refuse(p, "a head has more than %d channels", (int)MOST_WIDTH);
    return true;
}

static void
give_arguments(mc_plan *p, const mc_op *op, const parts *a)
{
    const mc_value *pointers[] = {a->q, a->k, a->v, a->o, a->sinks, a->select, a->q_rot, a->k_rot};
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) mc_gpu_value(p, pointers[i]);
    mc_gpu_int(p, mc_plan_product(p, a->q->type, 0, 3));
    for (int i = 0; i < 2; i++) mc_gpu_int(p, a->q->type->dims[i]);
    mc_gpu_int(p, a->k_rot ? mc_dim_const(1) : a->k->type->dims[2]);
    mc_gpu_history(p, a->k->type->dims[1]);
    mc_gpu_attention_reach(p, op);
    mc_plan_const(p, mc_plan_in_state(a->k));
    mc_plan_const(p, mc_plan_in_state(a->v));
    mc_gpu_int(p, a->select ? a->select->type->dims[2] : mc_dim_const(0));
    mc_plan_const(p, a->k_rot && mc_plan_in_state(a->k_rot));
    mc_plan_float(p, mc_attr_float(op, "scale"));
    mc_plan_float(p, mc_attr_float(op, "softcap"));
}

void
mc_gpu_select_attention(mc_plan *p, const mc_op *op)
{
    parts a = parts_of(p, op);
    tiling t;
    if (p->failed || !check_types(p, &a)) return;
    bool cores = mma_tiling(p, &a, &t);
    if (!cores && !fma_tiling(p, &a, &t)) return;
    mc_str spec = mc_strf(p->arena, "attention<%s, %s, %d, %d, %d, %d, %d, %d, %d>", mc_gpu_type(a.q->type->dtype),
                          mc_gpu_type(a.o->type->dtype), a.width, a.value, a.rot, a.group, a.flags, t.tile, t.few);

    mc_gpu_code code = {.file = cores ? "attention_mma.cuh" : "attention_fma.cuh", .threads = THREADS, .blocks = 2};
    code.shared = (uint32_t)t.shared;
    code.spills_allowed = a.width > 256 || a.value > 256;
    code.call =
        mc_strf(p->arena, "%s<%.*s, %.*s>(a);", cores ? "attend_cores" : "attend_fma", MC_FMT(spec), MC_FMT(t.text));
    code.grid[0] = (moec_abi_grid_axis){.from = I_ROWS, .div = (uint32_t)t.tile, .add = PARTS};
    mc_plan_launch(p, mc_gpu_kernel_of(p, &code));
    give_arguments(p, op, &a);

    mc_gpu_code join = {.file = "attention.cuh", .threads = THREADS, .per_sm = 4};
    join.call = mc_strf(p->arena, "attend_join<%.*s>(a);", MC_FMT(spec));
    mc_gpu_grid(&join, 0, I_ROWS, 1);
    mc_plan_launch(p, mc_gpu_kernel_of(p, &join));
    give_arguments(p, op, &a);
    mc_plan_scratch_dim(p, mc_dim_const((int64_t)PARTS * t.tile * (a.value + 2) * (int64_t)sizeof(float)));
}
