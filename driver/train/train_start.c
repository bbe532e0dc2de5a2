#include "driver/train/train_start.h"

#include "driver/train/train_init.h"
#include "runtime/bind.h"

moec_status
mc_train_start_fresh(mc_train_params *p, uint64_t seed, mc_fault *fault)
{
    moec_status s = MOEC_OK;
    for (size_t i = 0; i < p->n && s == MOEC_OK; i++) {
        const mc_train_param *item = &p->items[i];
        size_t n_slots = item->experts ? (size_t)item->info.dims[0] : 1, each = item->n / n_slots;
        size_t n_bytes = each * moec_dtype_bytes(item->info.dtype);
        for (size_t slot = 0; slot < n_slots && s == MOEC_OK; slot++) {
            uint64_t expert = item->experts && item->experts[slot] > 0 ? (uint64_t)item->experts[slot] : 0;
            s = mc_train_init(&item->info, seed, expert * each, (char *)item->value + slot * n_bytes, each, fault);
        }
    }
    return s;
}

static moec_status
read_rows(const mc_bind *bind, const mc_bound *bound, mc_train_param *p, mc_fault *fault)
{
    mc_tensor t;
    moec_status s = mc_bind_open(bind, bound, &t, fault);
    if (s != MOEC_OK) return s;
    size_t n_rows = (size_t)mc_tensor_rows(&t), n = (size_t)mc_tensor_row_elems(&t);
    bool fits = n_rows * n == p->n; /* binding has compared the shapes */
    for (size_t r = 0; r < n_rows && fits; r++) {
        if (p->info.dtype == MOEC_F32)
            mc_tensor_row_f32(&t, (int64_t)r, (float *)p->value + r * n);
        else
            fits = p->info.dtype == MOEC_I32 && mc_tensor_row_i32(&t, (int64_t)r, (int32_t *)p->value + r * n);
    }
    mc_tensor_close(&t);
    return fits ? MOEC_OK : mc_fail(fault, MOEC_ERR_MISMATCH, "%s does not fit its tensor", p->info.path);
}

moec_status
mc_train_start_from(mc_train_params *p, const moec_abi_model *abi, const char *path, const char *map, uint32_t number,
                    mc_fault *fault)
{
    mc_checkpoint checkpoint;
    mc_bind bind;
    moec_status s = mc_checkpoint_find(path, &checkpoint, fault);
    if (s != MOEC_OK) return s;
    s = mc_checkpoint_load(&checkpoint, fault);
    if (s == MOEC_OK) {
        s = mc_bind_create(abi, &checkpoint, map, true, number, &bind, fault);
        for (size_t i = 0; i < p->n && s == MOEC_OK; i++) {
            const mc_bound *bound = mc_bind_find(&bind, p->items[i].info.path);
            s = bound ? read_rows(&bind, bound, &p->items[i], fault)
                      : mc_fail(fault, MOEC_ERR_INTERNAL, "%s is not bound", p->items[i].info.path);
        }
        mc_bind_fini(&bind);
    }
    mc_checkpoint_fini(&checkpoint);
    return s;
}
