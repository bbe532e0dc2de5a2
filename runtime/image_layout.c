#include "runtime/image_layout.h"

#define TEXT(type, field)                                                                                              \
    {                                                                                                                  \
        MC_IMAGE_TEXT, offsetof(type, field), 0, NULL                                                                  \
    }
#define LIST(type, field, n, record)                                                                                   \
    {                                                                                                                  \
        MC_IMAGE_LIST, offsetof(type, field), offsetof(type, n), &(record)                                             \
    }
#define RECORD(type, list)                                                                                             \
    {                                                                                                                  \
        sizeof(type), list, sizeof(list) / sizeof(list)[0]                                                             \
    }
#define PLAIN(type)                                                                                                    \
    {                                                                                                                  \
        sizeof(type), NULL, 0                                                                                          \
    }

static const mc_image_field sym_fields[] = {TEXT(moec_abi_sym, name)};
static const mc_image_field tensor_fields[] = {TEXT(moec_abi_tensor, name)};
static const mc_image_field weight_fields[] = {TEXT(moec_abi_weight, path), TEXT(moec_abi_weight, path2),
                                               TEXT(moec_abi_weight, role), TEXT(moec_abi_weight, scale_of),
                                               TEXT(moec_abi_weight, init)};
static const mc_image_field state_fields[] = {TEXT(moec_abi_state, name)};
static const mc_image_field func_fields[] = {TEXT(moec_abi_func, name)};
static const mc_image_field code_fields[] = {
    {MC_IMAGE_CUBIN, offsetof(moec_abi_gpu_code, cubin), offsetof(moec_abi_gpu_code, n_bytes), NULL}};

static const mc_image_record syms = RECORD(moec_abi_sym, sym_fields), tensors = RECORD(moec_abi_tensor, tensor_fields),
                             weights = RECORD(moec_abi_weight, weight_fields),
                             states = RECORD(moec_abi_state, state_fields), funcs = RECORD(moec_abi_func, func_fields),
                             codes = RECORD(moec_abi_gpu_code, code_fields), launches = PLAIN(moec_abi_launch),
                             slots = PLAIN(moec_abi_slot), refs = PLAIN(moec_abi_ref), exprs = PLAIN(moec_abi_expr),
                             floats = PLAIN(double), indices = PLAIN(uint32_t);

static const mc_image_field gpu_fields[] = {TEXT(moec_abi_gpu, archs), LIST(moec_abi_gpu, codes, n_codes, codes)};
static const mc_image_record gpu = RECORD(moec_abi_gpu, gpu_fields);

static const mc_image_field ep_fields[] = {TEXT(moec_abi_ep, plan)};
static const mc_image_record ep = RECORD(moec_abi_ep, ep_fields);

static const mc_image_field model_fields[] = {
    TEXT(moec_abi_model, name),
    TEXT(moec_abi_model, compiler),
    TEXT(moec_abi_model, target),
    TEXT(moec_abi_model, cpu),
    TEXT(moec_abi_model, features),
    TEXT(moec_abi_model, rules),
    TEXT(moec_abi_model, meta),
    LIST(moec_abi_model, syms, n_syms, syms),
    LIST(moec_abi_model, inputs, n_inputs, tensors),
    LIST(moec_abi_model, outputs, n_outputs, tensors),
    LIST(moec_abi_model, weights, n_weights, weights),
    LIST(moec_abi_model, states, n_states, states),
    LIST(moec_abi_model, funcs, n_funcs, funcs),
    LIST(moec_abi_model, launches, n_launches, launches),
    LIST(moec_abi_model, slots, n_slots, slots),
    LIST(moec_abi_model, refs, n_refs, refs),
    LIST(moec_abi_model, exprs, n_exprs, exprs),
    LIST(moec_abi_model, floats, n_floats, floats),
    {MC_IMAGE_NOTHING, offsetof(moec_abi_model, kernels), 0, NULL},
    {MC_IMAGE_TEXTS, offsetof(moec_abi_model, kernel_names), offsetof(moec_abi_model, n_kernels), NULL},
    {MC_IMAGE_LABELS, offsetof(moec_abi_model, strings), offsetof(moec_abi_model, n_launches), NULL},
    LIST(moec_abi_model, saved, n_saved, tensors),
    LIST(moec_abi_model, cotangents, n_cotangents, indices),
    LIST(moec_abi_model, input_grads, n_input_grads, indices),
    {MC_IMAGE_ONE, offsetof(moec_abi_model, gpu), 0, &gpu},
    {MC_IMAGE_ONE, offsetof(moec_abi_model, ep), 0, &ep},
};
const mc_image_record mc_image_model = RECORD(moec_abi_model, model_fields);
