#define _GNU_SOURCE
#include "driver/train/train_checkpoint.h"

#include "runtime/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char model_file[] = "model.safetensors", optimizer_file[] = "optimizer.safetensors";

static moec_status
no_memory(mc_fault *fault)
{
    return mc_fail(fault, MOEC_ERR_MEMORY, "out of memory for a checkpoint");
}

static moec_status
fail_errno(mc_fault *fault, const char *what, const char *path)
{
    return mc_fail(fault, errno == ENOENT ? MOEC_ERR_NOT_FOUND : MOEC_ERR_IO, "cannot %s %s: %s", what, path,
                   strerror(errno));
}

static char *
join(const char *directory, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

static char *
step_path(const char *directory, uint64_t step)
{
    char *path;
    return asprintf(&path, "%s/step-%06" PRIu64, directory, step) < 0 ? NULL : path;
}

/* "step-000200" and nothing behind it. */
static bool
step_of(const char *name, uint64_t *out)
{
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
    char *end;
    *out = strtoull(name + 5, &end, 10);
    return *end == 0;
}

uint64_t
mc_train_latest(const char *directory)
{
    uint64_t latest = 0, step;
    DIR *d = opendir(directory);
    for (const struct dirent *entry; d && (entry = readdir(d));)
        if (step_of(entry->d_name, &step) && step > latest) latest = step;
    if (d) closedir(d);
    return latest;
}

/* ---- the numbers that say where a run is ---- */

static const struct position_field {
    const char *key;
    size_t offset;
} position_fields[] = {
    {"step", offsetof(mc_train_position, step)},   {"steps", offsetof(mc_train_position, n_steps)},
    {"batch", offsetof(mc_train_position, batch)}, {"length", offsetof(mc_train_position, length)},
    {"seed", offsetof(mc_train_position, seed)},   {"accumulate", offsetof(mc_train_position, accumulate)},
    {"model", offsetof(mc_train_position, model)}, {"data", offsetof(mc_train_position, data)},
};
enum { N_FIELDS = sizeof position_fields / sizeof *position_fields, NUMBER_BYTES = 24 };

static bool
read_position(const mc_st_file *f, mc_train_position *out)
{
    for (int i = 0; i < N_FIELDS; i++) {
        mc_str text = mc_st_note_of(f, position_fields[i].key);
        char *end;
        uint64_t value = text.len ? strtoull(text.data, &end, 10) : 0;
        if (!text.len || *end || text.data[0] == '-') return false;
        memcpy((char *)out + position_fields[i].offset, &value, sizeof value);
    }
    return true;
}

/* ---- writing ---- */

typedef struct tensor_list {
    mc_st_tensor *items;
    size_t n;
    char *names; /* room for every prefix and path */
    char *at;
} tensor_list;

static bool
list_begin(tensor_list *l, const mc_train_state *state)
{
    size_t n_bytes = 1, n = 3 * state->params.n + state->routes.n_biases;
    for (size_t i = 0; i < state->params.n; i++) n_bytes += 4 * (strlen(state->params.items[i].info.path) + 8);
    *l = (tensor_list){.items = calloc(n + 1, sizeof *l->items), .names = malloc(n_bytes)};
    l->at = l->names;
    return l->items && l->names;
}

static void
list_end(tensor_list *l)
{
    free(l->items);
    free(l->names);
}

static void
list_add(tensor_list *l, const char *prefix, const moec_param_info *info, const void *data)
{
    int len = sprintf(l->at, "%s%s", prefix, info->path);
    mc_st_tensor *t = &l->items[l->n++];
    *t = (mc_st_tensor){.name = {l->at, (size_t)len}, .dtype = info->dtype, .rank = info->rank, .data = data};
    memcpy(t->dims, info->dims, info->rank * sizeof *t->dims);
    l->at += len + 1;
}

static moec_status
write_model(const char *path, const char *name, const mc_train_state *state, mc_fault *fault)
{
    char step[NUMBER_BYTES];
    tensor_list l;
    snprintf(step, sizeof step, "%" PRIu64, state->at.step);
    const mc_st_note notes[] = {
        {MC_STR("format"), MC_STR("moec")}, {MC_STR("model"), mc_str_of(name)}, {MC_STR("step"), mc_str_of(step)}};
    bool good = list_begin(&l, state);
    for (size_t i = 0; i < state->params.n && good; i++)
        list_add(&l, "", &state->params.items[i].info, state->params.items[i].value);
    moec_status s = good ? mc_st_write(path, l.items, l.n, notes, 3, fault) : no_memory(fault);
    list_end(&l);
    return s;
}

static moec_status
write_optimizer(const char *path, const mc_train_state *state, mc_fault *fault)
{
    char numbers[N_FIELDS][NUMBER_BYTES];
    mc_st_note notes[N_FIELDS + 1] = {{MC_STR("format"), MC_STR("moec-optimizer")}};
    tensor_list l;
    for (int i = 0; i < N_FIELDS; i++) {
        uint64_t value;
        memcpy(&value, (const char *)&state->at + position_fields[i].offset, sizeof value);
        snprintf(numbers[i], sizeof numbers[i], "%" PRIu64, value);
        notes[i + 1] = (mc_st_note){mc_str_of(position_fields[i].key), mc_str_of(numbers[i])};
    }
    bool good = list_begin(&l, state);
    for (size_t i = 0; i < state->params.n && good; i++) {
        const mc_train_param *p = &state->params.items[i];
        if (!p->trained) continue;
        list_add(&l, "m/", &p->info, p->m);
        list_add(&l, "v/", &p->info, p->v);
    }
    for (size_t i = 0; i < state->routes.n_biases && good; i++)
        list_add(&l, "ema/", &state->routes.biases[i].param->info, state->routes.biases[i].ema);
    moec_status s = good ? mc_st_write(path, l.items, l.n, notes, N_FIELDS + 1, fault) : no_memory(fault);
    list_end(&l);
    return s;
}

static void
remove_half_made(const char *directory)
{
    const char *const files[] = {model_file, optimizer_file};
    for (int i = 0; i < 2; i++) {
        char *path = join(directory, files[i]);
        if (path) unlink(path);
        free(path);
    }
    rmdir(directory);
}

/* The names of files are safe on disk when their directory is. */
static void
sync_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static moec_status
write_files(const char *directory, const char *name, const mc_train_state *state, mc_fault *fault)
{
    char *model = join(directory, model_file), *optimizer = join(directory, optimizer_file);
    moec_status s = model && optimizer ? write_model(model, name, state, fault) : no_memory(fault);
    if (s == MOEC_OK) s = write_optimizer(optimizer, state, fault);
    if (s == MOEC_OK) sync_directory(directory);
    free(model);
    free(optimizer);
    return s;
}

/* Of a new directory; mkdtemp makes private ones. */
static mode_t
usual_mode(void)
{
    mode_t mask = umask(0);
    umask(mask);
    return 0777 & ~mask;
}

moec_status
mc_train_checkpoint_write(const char *directory, const char *name, const mc_train_state *state, mc_fault *fault)
{
    moec_status s = mc_make_directories(directory, fault);
    if (s != MOEC_OK) return s;
    char *final = step_path(directory, state->at.step), *temporary = NULL;
    if (!final || asprintf(&temporary, "%s.tmp-XXXXXX", final) < 0) {
        free(final);
        return no_memory(fault);
    }
    if (!mkdtemp(temporary)) {
        s = fail_errno(fault, "create a directory beside", final);
    } else {
        s = write_files(temporary, name, state, fault);
        if (s == MOEC_OK && chmod(temporary, usual_mode()) != 0) s = fail_errno(fault, "set the mode of", temporary);
        if (s == MOEC_OK && rename(temporary, final) != 0) s = fail_errno(fault, "write", final);
        if (s != MOEC_OK)
            remove_half_made(temporary);
        else
            sync_directory(directory);
    }
    free(final);
    free(temporary);
    return s;
}

/* ---- reading ---- */

typedef struct opened {
    char *path;
    mc_mapping mapping;
    mc_st_file file;
} opened;

static void
close_file(opened *o)
{
    mc_st_fini(&o->file);
    mc_file_unmap(&o->mapping);
    free(o->path);
    *o = (opened){0};
}

static moec_status
open_file(const char *directory, uint64_t step, const char *name, opened *o, mc_fault *fault)
{
    char *checkpoint = step_path(directory, step);
    *o = (opened){.path = checkpoint ? join(checkpoint, name) : NULL};
    free(checkpoint);
    moec_status s = o->path ? mc_file_map(o->path, &o->mapping, fault) : no_memory(fault);
    if (s == MOEC_OK) s = mc_st_parse(o->mapping.data, o->mapping.n_bytes, o->path, &o->file, fault);
    if (s != MOEC_OK) close_file(o);
    return s;
}

static moec_status
check_position(const opened *o, uint64_t step, mc_train_position *out, mc_fault *fault)
{
    if (!mc_str_is(mc_st_note_of(&o->file, "format"), "moec-optimizer") || !read_position(&o->file, out) ||
        out->step != step)
        return mc_fail(fault, MOEC_ERR_SYNTAX, "%s does not say where its run was", o->path);
    return MOEC_OK;
}

moec_status
mc_train_checkpoint_peek(const char *directory, uint64_t step, mc_train_position *out, mc_fault *fault)
{
    opened o;
    moec_status s = open_file(directory, step, optimizer_file, &o, fault);
    if (s != MOEC_OK) return s;
    s = check_position(&o, step, out, fault);
    close_file(&o);
    return s;
}

static void
take_experts(const mc_st_tensor *t, const mc_train_param *p, char *out)
{
    size_t each = p->n_experts ? t->n_bytes / (size_t)p->n_experts : 0;
    for (int64_t s = 0; s < p->info.dims[0]; s++)
        if (p->experts[s] >= 0) memcpy(out + (size_t)s * each, t->data + (size_t)p->experts[s] * each, each);
}

/* Copies tensor prefix + path, which must be there in this shape; of a parameter with experts those of this rank. */
static moec_status
take_tensor(const opened *o, const char *prefix, const mc_train_param *p, void *out, mc_fault *fault)
{
    const moec_param_info *info = &p->info;
    size_t len = strlen(prefix);
    for (size_t i = 0; i < o->file.n_tensors; i++) {
        const mc_st_tensor *t = &o->file.tensors[i];
        if (!mc_str_starts(t->name, prefix) || !mc_str_is(mc_str_slice(t->name, len, t->name.len), info->path))
            continue;
        bool same = t->dtype == info->dtype && t->rank == info->rank;
        for (uint32_t k = 0; k < info->rank && same; k++)
            same = t->dims[k] == (k == 0 && p->experts ? p->n_experts : info->dims[k]);
        if (!same) return mc_fail(fault, MOEC_ERR_MISMATCH, "%s: %s%s has another shape", o->path, prefix, info->path);
        if (p->experts)
            take_experts(t, p, out);
        else if (t->n_bytes)
            memcpy(out, t->data, t->n_bytes);
        return MOEC_OK;
    }
    return mc_fail(fault, MOEC_ERR_MISMATCH, "%s lacks %s%s", o->path, prefix, info->path);
}

static moec_status
load_optimizer(const opened *o, mc_train_state *state, mc_fault *fault)
{
    moec_status s = check_position(o, state->at.step, &state->at, fault);
    size_t expected = state->routes.n_biases;
    for (size_t i = 0; i < state->params.n && s == MOEC_OK; i++) {
        mc_train_param *p = &state->params.items[i];
        if (!p->trained) continue;
        expected += 2;
        s = take_tensor(o, "m/", p, p->m, fault);
        if (s == MOEC_OK) s = take_tensor(o, "v/", p, p->v, fault);
    }
    for (size_t i = 0; i < state->routes.n_biases && s == MOEC_OK; i++)
        s = take_tensor(o, "ema/", state->routes.biases[i].param, state->routes.biases[i].ema, fault);
    if (s == MOEC_OK && o->file.n_tensors != expected)
        s = mc_fail(fault, MOEC_ERR_MISMATCH, "%s has tensors that this model lacks", o->path);
    return s;
}

moec_status
mc_train_checkpoint_read(const char *directory, uint64_t step, mc_train_state *state, mc_fault *fault)
{
    opened model, optimizer;
    moec_status s = open_file(directory, step, model_file, &model, fault);
    if (s != MOEC_OK) return s;
    for (size_t i = 0; i < state->params.n && s == MOEC_OK; i++)
        s = take_tensor(&model, "", &state->params.items[i], state->params.items[i].value, fault);
    if (s == MOEC_OK && model.file.n_tensors != state->params.n)
        s = mc_fail(fault, MOEC_ERR_MISMATCH, "%s has tensors that this model lacks", model.path);
    close_file(&model);
    if (s != MOEC_OK) return s;
    s = open_file(directory, step, optimizer_file, &optimizer, fault);
    if (s != MOEC_OK) return s;
    state->at.step = step;
    s = load_optimizer(&optimizer, state, fault);
    close_file(&optimizer);
    return s;
}
