/* stages: what the stages of a rule do to views, and how the sources of a rule become one tensor. */
#include "runtime/view.h"

#include <stdlib.h>
#include <string.h>

static moec_status
misfit(mc_fault *error, const mc_view *v, const mc_stage *s, const char *why)
{
    char dims[128];
    mc_dims_text(v->dims, v->rank, dims, sizeof dims);
    return mc_fail(error, MOEC_ERR_MISMATCH, "stage %s does not fit a tensor %s: %s", mc_stage_name(s->kind), dims,
                   why);
}

/* Axis number `which` of a stage, negative ones counting from the end; -1: out of range. */
static int
axis_of(const mc_view *v, const mc_stage *s, int which)
{
    int64_t axis = which < s->n_ints ? s->ints[which] : 0;
    if (axis < 0) axis += v->rank;
    return axis < 0 || axis >= v->rank ? -1 : (int)axis;
}

/* Whether taking part `target` of n along the axis can be said in strides. */
static bool
divides_in_place(const mc_view *v, const mc_stage *s, int axis, int64_t part)
{
    if (v->affine || v->kind == MC_VIEW_PLAIN) return true;
    int from_end = v->rank - axis;
    bool zip = s->kind == MC_STAGE_UNZIP;
    if (v->kind == MC_VIEW_MXFP4) return from_end != 1 || (!zip && part % 32 == 0);
    return from_end > 2 || (!zip && part % v->block[2 - from_end] == 0);
}

static moec_status
divide(mc_view *v, const mc_stage *s, int target, int n, bool dry, mc_fault *error)
{
    int axis = axis_of(v, s, 0);
    if (axis < 0) return misfit(error, v, s, "no such axis");
    if (v->dims[axis] % n != 0) return misfit(error, v, s, "the axis does not divide evenly");
    int64_t part = v->dims[axis] / n;
    if (!divides_in_place(v, s, axis, part)) {
        moec_status st = mc_view_materialise(v, dry, error);
        if (st != MOEC_OK) return st;
    }
    int from_end = v->rank - axis;
    if (s->kind == MC_STAGE_UNZIP) {
        v->offset += target * v->strides[axis];
        v->scale_offset += target * v->scale_strides[axis];
        v->strides[axis] *= n;
        v->scale_strides[axis] *= n;
    } else {
        v->offset += target * part * v->strides[axis];
        int64_t blocks = v->kind == MC_VIEW_FP8 && from_end <= 2 ? part / v->block[2 - from_end] : part;
        v->scale_offset += target * blocks * v->scale_strides[axis];
    }
    v->dims[axis] = part;
    return MOEC_OK;
}

static void
swap(int64_t *a, int64_t *b)
{
    int64_t t = *a;
    *a = *b;
    *b = t;
}

static moec_status
transpose(mc_view *v, const mc_stage *s, bool dry, mc_fault *error)
{
    int a = axis_of(v, s, 0), b = axis_of(v, s, 1);
    if (a < 0 || b < 0) return misfit(error, v, s, "no such axis");
    if (a == b) return MOEC_OK;
    int near = v->rank - (a > b ? a : b), far = v->rank - (a > b ? b : a);
    bool whole_block = near == 1 && far == 2, leading = near > 2;
    if ((v->kind == MC_VIEW_MXFP4 && near == 1) || (v->kind == MC_VIEW_FP8 && !whole_block && !leading)) {
        moec_status st = mc_view_materialise(v, dry, error);
        if (st != MOEC_OK) return st;
    }
    if (v->kind == MC_VIEW_FP8 && whole_block) swap(&v->block[0], &v->block[1]);
    swap(&v->dims[a], &v->dims[b]);
    swap(&v->strides[a], &v->strides[b]);
    swap(&v->scale_strides[a], &v->scale_strides[b]);
    return MOEC_OK;
}

static moec_status
reshape(mc_view *v, const mc_stage *s, bool dry, mc_fault *error)
{
    int64_t have = 1, want = 1;
    for (int i = 0; i < v->rank; i++) have *= v->dims[i];
    for (int i = 0; i < s->n_ints; i++)
        if (s->ints[i] <= 0 || __builtin_mul_overflow(want, s->ints[i], &want))
            return misfit(error, v, s, "a size that is impossible");
    if (have != want) return misfit(error, v, s, "another number of elements");
    if (v->kind != MC_VIEW_PLAIN || !mc_view_is_contiguous(v)) {
        moec_status st = mc_view_materialise(v, dry, error);
        if (st != MOEC_OK) return st;
    }
    v->rank = s->n_ints;
    int64_t stride = 1;
    for (int i = v->rank - 1; i >= 0; i--) {
        v->dims[i] = s->ints[i];
        v->strides[i] = stride;
        stride *= v->dims[i];
    }
    return MOEC_OK;
}

static void
affine(mc_view *v, double mul, double add)
{
    if (!v->affine) {
        v->mul = 1;
        v->add = 0;
    }
    v->affine = true;
    v->mul *= mul;
    v->add = v->add * mul + add;
}

moec_status
mc_view_stage(mc_view *v, const mc_stage *s, int target, int n_targets, bool dry, mc_fault *error)
{
    switch (s->kind) {
    case MC_STAGE_SPLIT:
    case MC_STAGE_UNZIP: return divide(v, s, target, n_targets, dry, error);
    case MC_STAGE_TRANSPOSE: return transpose(v, s, dry, error);
    case MC_STAGE_RESHAPE: return reshape(v, s, dry, error);
    case MC_STAGE_ADD: affine(v, 1, s->number); return MOEC_OK;
    case MC_STAGE_SCALE: affine(v, s->number, 0); return MOEC_OK;
    case MC_STAGE_STACK: /* these belong to tensors, below */
    case MC_STAGE_CONCAT:
    case MC_STAGE_CAST:
    case MC_STAGE_MXFP4:
    case MC_STAGE_FP8: return MOEC_OK;
    }
    return MOEC_OK;
}

/* ---- sources -------------------------------------------------------------------------------------------------- */

static void
plain_view(const mc_st_tensor *t, mc_view *v)
{
    *v = (mc_view){.kind = MC_VIEW_PLAIN, .dtype = t->dtype, .rank = (int)t->rank, .data = t->data};
    int64_t stride = 1;
    for (int i = v->rank - 1; i >= 0; i--) {
        v->dims[i] = t->dims[i];
        v->strides[i] = stride;
        stride *= t->dims[i];
    }
}

/* The tensor whose name is that of t with another ending; marks it used. */
static const mc_st_tensor *
companion(mc_checkpoint *c, mc_str name, const char *ending)
{
    char buffer[MC_ST_MAX_NAME + 32];
    uint32_t index;
    size_t n = strlen(ending);
    if (name.len + n >= sizeof buffer) return NULL;
    memcpy(buffer, name.data, name.len);
    memcpy(buffer + name.len, ending, n);
    const mc_st_tensor *t = mc_checkpoint_get(c, (mc_str){buffer, name.len + n}, &index);
    if (t) c->used[index] = true;
    return t;
}

static const mc_stage *
find_stage(const mc_rule *rule, mc_stage_kind kind)
{
    for (int i = 0; i < rule->n_stages; i++)
        if (rule->stages[i].kind == kind) return &rule->stages[i];
    return NULL;
}

static moec_status
open_fp8(mc_checkpoint *c, const mc_rule *rule, const mc_st_tensor *t, mc_view *v, mc_fault *error)
{
    const mc_stage *stage = find_stage(rule, MC_STAGE_FP8);
    const mc_st_tensor *scales = companion(c, t->name, "_scale_inv");
    char dims[128];
    if (!scales)
        return mc_fail(error, MOEC_ERR_MISMATCH, "E0905: %.*s is %s but has no %.*s_scale_inv", MC_FMT(t->name),
                       mc_dtype_safetensors_name(t->dtype), MC_FMT(t->name));
    v->kind = MC_VIEW_FP8;
    v->block[0] = stage && stage->n_ints == 2 ? stage->ints[0] : 128;
    v->block[1] = stage && stage->n_ints == 2 ? stage->ints[1] : 128;
    v->scales = scales->data;
    v->scale_dtype = scales->dtype;
    bool fits = scales->rank == t->rank && t->rank >= 2 && mc_dtype_is_float(scales->dtype) && v->block[0] > 0 &&
                v->block[1] > 0;
    int64_t stride = 1;
    for (int i = v->rank - 1; i >= 0 && fits; i--) {
        int64_t block = v->rank - i <= 2 ? v->block[2 - (v->rank - i)] : 1;
        fits = scales->dims[i] == t->dims[i] / block + (t->dims[i] % block != 0);
        v->scale_strides[i] = stride;
        stride *= scales->dims[i];
    }
    mc_dims_text(scales->dims, (int)scales->rank, dims, sizeof dims);
    if (fits) return MOEC_OK;
    return mc_fail(
        error, MOEC_ERR_MISMATCH,
        "E0905: %.*s %s has no scale for each block of %lld x %lld of its weight (other blocks: | fp8(o, i))",
        MC_FMT(scales->name), dims, (long long)v->block[0], (long long)v->block[1]);
}

static moec_status
open_mxfp4(mc_checkpoint *c, const mc_st_tensor *blocks, mc_view *v, mc_fault *error)
{
    mc_str name = blocks->name;
    if (mc_str_ends(name, "_blocks")) name.len -= strlen("_blocks");
    const mc_st_tensor *scales = companion(c, name, "_scales");
    bool fits = scales && blocks->dtype == MOEC_U8 && scales->dtype == MOEC_U8 && blocks->rank >= 2 &&
                scales->rank + 1 == blocks->rank && blocks->dims[blocks->rank - 1] == 16;
    for (uint32_t i = 0; fits && i < scales->rank; i++) fits = scales->dims[i] == blocks->dims[i];
    if (!fits)
        return mc_fail(error, MOEC_ERR_MISMATCH,
                       "%.*s: mxfp4 wants U8 blocks [.., n, 16] and U8 scales [.., n] named %.*s_scales",
                       MC_FMT(blocks->name), MC_FMT(name));
    mc_st_tensor values = *blocks;
    values.rank--;
    values.dims[values.rank - 1] *= 32; /* fits: half of it is bytes of the file */
    plain_view(&values, v);
    v->kind = MC_VIEW_MXFP4;
    v->dtype = MOEC_F32;
    v->scales = scales->data;
    return MOEC_OK;
}

static moec_status
open_source(mc_checkpoint *c, const mc_rule *rule, uint32_t source, mc_view *v, mc_fault *error)
{
    const mc_st_tensor *t = c->tensors[source];
    c->used[source] = true;
    if (find_stage(rule, MC_STAGE_MXFP4)) return open_mxfp4(c, t, v, error);
    plain_view(t, v);
    if (t->dtype == MOEC_F8E4M3 || t->dtype == MOEC_F8E5M2) return open_fp8(c, rule, t, v, error);
    return MOEC_OK;
}

/* ---- several sources ------------------------------------------------------------------------------------------ */

static bool
same_shape(const mc_view *a, const mc_view *b)
{
    return a->rank == b->rank && a->dtype == b->dtype && a->kind == b->kind && a->affine == b->affine &&
           memcmp(a->block, b->block, sizeof a->block) == 0 &&
           memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims) == 0;
}

static void
keep_one(mc_tensor *t, mc_view one)
{
    for (size_t i = 0; i < t->n_parts; i++) free(t->parts[i].owned);
    t->parts[0] = one;
    t->n_parts = 1;
}

/* Copies all parts into one dense tensor, joined along `axis`. Stacking is joining parts [1, ...]. */
static moec_status
join(mc_tensor *t, int axis, bool dry, mc_fault *error)
{
    mc_view first = t->parts[0], dense = {.dtype = first.dtype, .rank = first.rank};
    int64_t total = 0, outer = 1, inner = 1;
    for (size_t i = 0; i < t->n_parts; i++) {
        moec_status s = mc_view_materialise(&t->parts[i], dry, error);
        if (s != MOEC_OK) return s;
        const mc_view *v = &t->parts[i];
        bool fits = v->rank == first.rank && v->dtype == t->parts[0].dtype;
        for (int d = 0; d < first.rank && fits; d++) fits = d == axis || v->dims[d] == first.dims[d];
        if (!fits) return mc_fail(error, MOEC_ERR_MISMATCH, "tensors to be joined differ in shape or type");
        if (__builtin_add_overflow(total, v->dims[axis], &total))
            return mc_fail(error, MOEC_ERR_MEMORY, "a tensor is larger than memory");
    }
    dense.dtype = t->parts[0].dtype;
    size_t size = moec_dtype_bytes(dense.dtype), bytes = size;
    for (int64_t d = first.rank - 1, stride = 1; d >= 0; d--) {
        dense.dims[d] = d == axis ? total : first.dims[d];
        dense.strides[d] = stride;
        stride *= dense.dims[d];
        if (d > axis) inner *= dense.dims[d];
        if (d < axis) outer *= dense.dims[d];
        if (__builtin_mul_overflow(bytes, (size_t)dense.dims[d], &bytes))
            return mc_fail(error, MOEC_ERR_MEMORY, "a tensor is larger than memory");
    }
    if (!dry) {
        unsigned char *copy = malloc(bytes ? bytes : 1), *out = copy;
        if (!copy) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory (%zu bytes to join tensors)", bytes);
        for (int64_t o = 0; o < outer; o++)
            for (size_t i = 0; i < t->n_parts; i++) {
                size_t run = (size_t)(t->parts[i].dims[axis] * inner) * size;
                if (run) memcpy(out, t->parts[i].data + (size_t)o * run, run);
                out += run;
            }
        dense.data = dense.owned = copy;
    }
    keep_one(t, dense);
    return MOEC_OK;
}

static moec_status
stack(mc_tensor *t, bool dry, mc_fault *error)
{
    for (size_t i = 0; i < t->n_parts; i++) {
        mc_view *v = &t->parts[i];
        moec_status s = mc_view_materialise(v, dry, error);
        if (s != MOEC_OK) return s;
        if (v->rank == MC_VIEW_RANK) return mc_fail(error, MOEC_ERR_MISMATCH, "too many dimensions to stack");
        memmove(v->dims + 1, v->dims, (size_t)v->rank * sizeof *v->dims);
        memmove(v->strides + 1, v->strides, (size_t)v->rank * sizeof *v->strides);
        v->dims[0] = 1;
        v->strides[0] = 0;
        v->rank++;
    }
    return join(t, 0, dry, error);
}

static moec_status
run_stage(mc_tensor *t, const mc_rule *rule, int index, int target, bool dry, mc_fault *error)
{
    const mc_stage *s = &rule->stages[index];
    if (s->kind == MC_STAGE_CAST) t->cast = true;
    if (s->kind == MC_STAGE_STACK && index + 1 < rule->n_stages) return stack(t, dry, error);
    if (s->kind == MC_STAGE_CONCAT) {
        int axis = axis_of(&t->parts[0], s, 0);
        return axis < 0 ? misfit(error, &t->parts[0], s, "no such axis") : join(t, axis, dry, error);
    }
    moec_status st = MOEC_OK;
    for (size_t i = 0; i < t->n_parts && st == MOEC_OK; i++)
        st = mc_view_stage(&t->parts[i], s, target, rule->n_targets, dry, error);
    return st;
}

static moec_status
finish(mc_tensor *t, const mc_rule *rule, bool dry, mc_fault *error)
{
    const mc_view *first = &t->parts[0];
    t->stacked = rule->stacked.len && !find_stage(rule, MC_STAGE_CONCAT) &&
                 (!find_stage(rule, MC_STAGE_STACK) || rule->stages[rule->n_stages - 1].kind == MC_STAGE_STACK);
    for (size_t i = 1; i < t->n_parts; i++)
        if (!same_shape(first, &t->parts[i]))
            return mc_fail(error, MOEC_ERR_MISMATCH, "tensors to be stacked differ in shape or type");
    if (t->stacked && first->rank == 0) { /* rows need an axis to run along */
        moec_status s = stack(t, dry, error);
        if (s != MOEC_OK) return s;
        t->stacked = false;
    }
    t->rank = first->rank + t->stacked;
    if (t->rank > MC_VIEW_RANK) return mc_fail(error, MOEC_ERR_MISMATCH, "too many dimensions to stack");
    if (t->stacked) t->dims[0] = (int64_t)t->n_parts;
    memcpy(t->dims + t->stacked, first->dims, (size_t)first->rank * sizeof *t->dims);
    return MOEC_OK;
}

moec_status
mc_tensor_open(mc_checkpoint *c, const mc_rule *rule, int target, const uint32_t *sources, size_t n_sources, bool dry,
               mc_tensor *out, mc_fault *error)
{
    *out = (mc_tensor){.parts = calloc(n_sources ? n_sources : 1, sizeof *out->parts)};
    if (!out->parts) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    moec_status s = MOEC_OK;
    for (size_t i = 0; i < n_sources && s == MOEC_OK; i++) {
        out->n_parts = i + 1;
        s = open_source(c, rule, sources[i], &out->parts[i], error);
    }
    for (int i = 0; i < rule->n_stages && s == MOEC_OK; i++) s = run_stage(out, rule, i, target, dry, error);
    if (s == MOEC_OK) s = finish(out, rule, dry, error);
    if (s != MOEC_OK) mc_tensor_close(out);
    return s;
}

void
mc_tensor_close(mc_tensor *t)
{
    for (size_t i = 0; i < t->n_parts; i++) free(t->parts[i].owned);
    for (size_t i = 0; i < t->n_whole; i++) free(t->whole[i].owned);
    free(t->parts);
    free(t->whole);
    *t = (mc_tensor){0};
}

/* ---- a part of axis 0 ----------------------------------------------------------------------------------------- */

/* Number `index` along axis 0, without that axis. */
static mc_view
without_axis_0(const mc_view *v, int64_t index)
{
    mc_view one = *v;
    one.offset += index * v->strides[0];
    one.scale_offset += index * v->scale_strides[0];
    one.rank--;
    memmove(one.dims, one.dims + 1, sizeof one.dims - sizeof *one.dims);
    memmove(one.strides, one.strides + 1, sizeof one.strides - sizeof *one.strides);
    memmove(one.scale_strides, one.scale_strides + 1, sizeof one.scale_strides - sizeof *one.scale_strides);
    return one;
}

/* A vector stays one row: its elements are copied. */
static moec_status
pick_elements(mc_tensor *t, const int64_t *picks, int64_t n, mc_fault *error)
{
    moec_status s = mc_view_materialise(&t->parts[0], false, error);
    if (s != MOEC_OK) return s;
    mc_view *v = &t->parts[0];
    size_t size = moec_dtype_bytes(v->dtype);
    unsigned char *copy = malloc((size_t)n * size);
    if (!copy) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    for (int64_t i = 0; i < n; i++) memcpy(copy + (size_t)i * size, v->data + (size_t)picks[i] * size, size);
    free(v->owned);
    v->data = v->owned = copy;
    v->dims[0] = t->dims[0] = n;
    return MOEC_OK;
}

moec_status
mc_tensor_pick(mc_tensor *t, const int64_t *picks, int64_t n, mc_fault *error)
{
    if (t->rank == 0 || (!t->stacked && t->n_parts != 1))
        return mc_fail(error, MOEC_ERR_MISMATCH, "its tensor has no axis for experts");
    if (t->rank == 1) return pick_elements(t, picks, n, error);
    if (!t->stacked && t->parts[0].kind == MC_VIEW_FP8 && t->rank == 2) { /* blocks run across axis 0 */
        moec_status s = mc_view_materialise(&t->parts[0], false, error);
        if (s != MOEC_OK) return s;
    }
    mc_view *parts = calloc((size_t)n, sizeof *parts);
    if (!parts) return mc_fail(error, MOEC_ERR_MEMORY, "out of memory");
    for (int64_t i = 0; i < n; i++) {
        parts[i] = t->stacked ? t->parts[picks[i]] : without_axis_0(&t->parts[0], picks[i]);
        parts[i].owned = NULL;
    }
    t->whole = t->parts;
    t->n_whole = t->n_parts;
    t->parts = parts;
    t->n_parts = (size_t)n;
    t->stacked = true;
    t->dims[0] = n;
    return MOEC_OK;
}
