/* Weights, constants, calls: the ops whose results are not computed but fetched. A weight stays in its storage dtype
 * and in the provider's memory; kernels widen elements as they read them. */
#include "codegen/ref/num.h"
#include "runtime/base/path.h"

#include <string.h>

static bool
fetch(mc_ref_op *k, const mc_ref_weight_request *want, mc_ref_tensor *out)
{
    mc_ref_tensor got = {0};
    const mc_ref_options *o = &k->ref->options;
    if (!o->weight || !o->weight(o->weight_user, want, &got))
        return mc_ref_fail(k, MC_E0901, "no weight '%.*s'", MC_FMT(want->path));
    bool same = got.rank == want->rank;
    for (int i = 0; same && i < want->rank; i++) same = got.dims[i] == want->dims[i];
    if (!same) return mc_ref_fail(k, MC_E0903, "weight '%.*s' has another shape", MC_FMT(want->path));
    mc_ref_tensor counted;
    if (!mc_ref_tensor_init(&counted, got.dtype, want->dims, want->rank, NULL))
        return mc_ref_fail(k, MC_E0319, "weight '%.*s' is too large", MC_FMT(want->path));
    got.n = counted.n;
    *out = got;
    return true;
}

static mc_str
full_path(mc_ref_op *k, mc_str path)
{
    return mc_attr_bool(k->op, "root") ? path : mc_path_join(k->arena, k->frame->scope, path);
}

static mc_ref_weight_request
request_of(mc_ref_op *k, mc_str path, int64_t experts)
{
    mc_ref_tensor *out = &k->out[0];
    mc_ref_weight_request want = {.role = mc_attr_str(k->op, "role"), .dtype = k->op->results[0].type->dtype};
    want.path = full_path(k, path);
    if (experts) want.dims[want.rank++] = experts;
    for (int i = 0; i < out->rank; i++) want.dims[want.rank++] = out->dims[i];
    return want;
}

bool
mc_ref_WEIGHT(mc_ref_op *k)
{
    int64_t experts = mc_attr_int(k->op, "experts"), expert = k->frame->expert;
    if (experts && k->out[0].rank == MC_MAX_RANK)
        return mc_ref_fail(k, MC_E0319, "a weight of experts with %d axes of its own", MC_MAX_RANK);
    mc_ref_weight_request want = request_of(k, mc_attr_str(k->op, "path"), experts);
    mc_ref_tensor got;
    if (!fetch(k, &want, &got)) return false;
    if (got.dtype != want.dtype && got.dtype != mc_ref_held(k->ref, want.dtype))
        return mc_ref_fail(k, MC_E0903, "weight '%.*s' is %s instead of %s", MC_FMT(want.path),
                           moec_dtype_name(got.dtype), moec_dtype_name(want.dtype));
    if (experts && (expert < 0 || expert >= experts))
        return mc_ref_fail(k, MC_E0407, "'%.*s' belongs to expert bodies, but expert %lld of %lld is running",
                           MC_FMT(want.path), (long long)expert, (long long)experts);
    k->out[0] = experts ? mc_ref_slice0(&got, expert) : got;
    return true;
}

/* Copies `part` into `whole` [.., N, K] from row `first` of axis -2 on. */
static void
put_rows(mc_ref_tensor *whole, const mc_ref_tensor *part, int64_t first)
{
    int r = whole->rank;
    int64_t width = whole->dims[r - 1], rows = part->dims[r - 2], all_rows = whole->dims[r - 2];
    for (int64_t i = 0; i < part->n; i++) {
        int64_t row = i / width % rows, outer = i / width / rows;
        put(whole, (outer * all_rows + first + row) * width + i % width, get(part, i));
    }
}

bool
mc_ref_PACKED(mc_ref_op *k)
{
    mc_ref_tensor *out = &k->out[0], a, b;
    mc_str path2 = mc_attr_str(k->op, "path2");
    mc_ref_weight_request want = request_of(k, mc_attr_str(k->op, "path"), 0);
    moec_dtype dtype = want.dtype; /* packing may widen vectors: the stored dtype is free */
    if (!mc_ref_tensor_init(out, dtype, out->dims, out->rank, k->arena)) return false;
    if (mc_str_is(mc_attr_str(k->op, "layout"), "grad")) { /* nobody may read a gradient */
        mc_ref_poison_from(out, 0);
        return true;
    }
    if (!path2.len) {
        if (!fetch(k, &want, &a)) return false;
        if (a.dtype == dtype)
            *out = a;
        else
            for (int64_t i = 0; i < a.n; i++) put(out, i, get(&a, i));
        return true;
    }
    if (out->rank < 2 || out->dims[out->rank - 2] % 2)
        return mc_ref_fail(k, MC_E0406, "a pair of weights needs an even number of rows");
    want.dims[out->rank - 2] /= 2;
    mc_ref_weight_request want2 = request_of(k, path2, 0);
    want2.dims[out->rank - 2] /= 2;
    if (!fetch(k, &want, &a) || !fetch(k, &want2, &b)) return false;
    put_rows(out, &a, 0);
    put_rows(out, &b, want.dims[out->rank - 2]);
    return true;
}

bool
mc_ref_ACCUMULATE(mc_ref_op *k)
{
    const mc_ref_options *o = &k->ref->options;
    if (o->accumulate) o->accumulate(o->accumulate_user, full_path(k, mc_attr_str(k->op, "path")), k->in[0]);
    return true;
}

/* Whoever records the run sees it. */
bool
mc_ref_OUTPUT(mc_ref_op *k)
{
    (void)k;
    return true;
}

bool
mc_ref_CONST(mc_ref_op *k)
{
    put(&k->out[0], 0, mc_attr_float(k->op, "value"));
    return true;
}

bool
mc_ref_CALL(mc_ref_op *k)
{
    mc_ref_tensor *args = MC_NEW_N(k->arena, mc_ref_tensor, k->n_in);
    for (int i = 0; i < k->n_in; i++) args[i] = *k->in[i];
    mc_str scope = mc_path_join(k->arena, k->frame->scope, mc_attr_str(k->op, "scope"));
    return mc_ref_invoke(k, mc_attr_func(k->op, "callee"), scope, k->frame->expert, args, k->n_in, k->out,
                         k->op->n_results);
}

bool
mc_ref_RETURN(mc_ref_op *k)
{
    k->frame->results = MC_NEW_N(k->arena, mc_ref_tensor, k->n_in);
    k->frame->n_results = k->n_in;
    for (int i = 0; i < k->n_in; i++) k->frame->results[i] = *k->in[i];
    return true;
}

bool
mc_ref_CAST(mc_ref_op *k)
{
    for (int64_t i = 0; i < k->out[0].n; i++) put(&k->out[0], i, get(k->in[0], i));
    return true;
}

bool
mc_ref_COPY(mc_ref_op *k)
{
    size_t n_bytes = (size_t)k->out[0].n * moec_dtype_bytes(k->out[0].dtype);
    if (n_bytes) memcpy(k->out[0].data, k->in[0]->data, n_bytes);
    return true;
}
