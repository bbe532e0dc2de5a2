/* moec compile: a text to an executable, a library, or any stage on the way there. */
#define _POSIX_C_SOURCE 200809L
#include "driver/backend.h"
#include "driver/command.h"
#include "driver/link.h"
#include "driver/progress.h"
#include "ir/print.h"
#include "runtime/abi_model.h"
#include "runtime/app/app.h"
#include "runtime/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum emit_kind {
    EMIT_EXE,
    EMIT_LIB,
    EMIT_IR,
    EMIT_PLAN,
    EMIT_LL,
    EMIT_ASM,
    EMIT_OBJ,
    EMIT_HEADER,
    N_EMIT
} emit_kind;
static const char *const emit_names[N_EMIT] = {"exe", "lib", "ir", "plan", "ll", "asm", "obj", "header"};

static bool
choose_emit(const mc_cli *cli, emit_kind *out)
{
    const char *word = mc_cli_value(cli, MC_OPTION_EMIT);
    bool train = mc_cli_has(cli, MC_OPTION_TRAIN);
    *out = train ? EMIT_LIB : EMIT_EXE;
    if (!word) return true;
    for (int i = 0; i < N_EMIT; i++) {
        if (strcmp(word, emit_names[i]) != 0) continue;
        *out = (emit_kind)i;
        if (*out != EMIT_EXE || !train) return true;
        mc_cli_usage("--train makes no executable: it has no weights of its own; use --emit lib, or moec train");
        return false;
    }
    mc_cli_usage("--emit is one of exe, lib, ir, plan, ll, asm, obj, header, not '%s'", word);
    return false;
}

/* The output's name without an extension: that of --output, or of the input in the present directory. */
static mc_str
stem_of(const mc_cli *cli, mc_arena *arena, const char *input)
{
    const char *given = mc_cli_value(cli, MC_OPTION_OUTPUT);
    mc_str path = mc_str_of(given ? given : input);
    if (!given) {
        const char *slash = strrchr(input, '/');
        path = mc_str_of(slash ? slash + 1 : input);
    }
    static const char *const endings[] = {".moe", ".moir", ".so", ".a", ".h", ".o"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (mc_str_ends(path, endings[i]) && path.len > strlen(endings[i])) {
            path.len -= strlen(endings[i]);
            break;
        }
    return mc_str_dup(arena, path);
}

static int
write_text_stage(const mc_cli *cli, mc_unit *u, emit_kind kind)
{
    mc_buf text = {0};
    mc_backend_target target;
    bool good = true;
    if (kind == EMIT_IR || kind == EMIT_PLAN) {
        mc_module_print(u->module, &text);
    } else {
        mc_progress_step("generating code");
        good = mc_backend_find(u, &target) &&
               mc_backend_emit(u, &target, kind == EMIT_LL ? MC_CODE_LLVM : MC_CODE_ASSEMBLY, &text);
    }
    mc_progress_end();
    mc_unit_deliver(u);
    int code = good ? mc_command_write(cli, mc_buf_view(&text)) : mc_command_exit_code(mc_unit_status(u));
    mc_buf_fini(&text);
    return code;
}

static bool
front(const mc_cli *cli, mc_unit *u, const char *path, emit_kind kind)
{
    mc_pass_options passes;
    mc_backend_target target = {0};
    u->gpu = !mc_unit_wants_cpu(u->options);
    if (!mc_unit_load(u, path) || !mc_unit_elaborate(u)) return false;
    if (kind == EMIT_IR) return true;
    if (!u->gpu && !mc_backend_find(u, &target)) return false;
    if (!mc_command_pass_options(cli, u->arena, &passes)) return false;
    mc_pass_setting nr = {MC_STR("nr"), target.nr};
    if (!u->gpu) {
        passes.settings = &nr;
        passes.n_settings = 1;
    }
    return mc_unit_passes(u, &passes);
}

static int
write_artefact(const char *path, moec_artefact kind, const mc_link_input *code)
{
    mc_fault fault = {0};
    if (kind != MOEC_HEADER && kind != MOEC_OBJECT) {
        mc_progress_begin();
        mc_progress_step("linking");
    }
    moec_status status = mc_link(code, kind, path, &fault);
    mc_progress_end();
    if (status != MOEC_OK) return mc_command_failed(status, fault.text);
    printf("wrote %s\n", path);
    return MC_EXIT_OK;
}

static int
write_header(const char *path, const mc_unit *u, const char *name)
{
    mc_fault fault = {0};
    mc_buf header = {0};
    mc_write_header(name, !u->gpu, u->options->gpu != NULL, &header);
    moec_status status = mc_file_write(path, header.data, header.len, 0644, &fault);
    mc_buf_fini(&header);
    if (status != MOEC_OK) return mc_command_failed(status, fault.text);
    printf("wrote %s\n", path);
    return MC_EXIT_OK;
}

static moec_status
pack_rank(const char *checkpoint, const char *map, mc_str path, const moec_model *model, moec_comm *comm,
          moec_error *error)
{
    moec_weights *weights = NULL;
    int percent = -1;
    moec_weights_options options = {.packed_path = path.data, .map = map, .comm = comm};
    if (isatty(STDERR_FILENO)) {
        options.progress = mc_app_show_packing;
        options.progress_context = &percent;
    }
    moec_status status = moec_weights_open(model, checkpoint, &options, &weights, error);
    if (status == MOEC_OK)
        printf("wrote %s (%.1f MB)\n", moec_weights_file(weights), (double)moec_weights_bytes(weights) / 1e6);
    moec_weights_close(weights);
    return status;
}

/* Takes the model, whose opening went as `opened` and `error` say. One for several ranks has a file for each number of
 * those that share the experts; here somebody plays them all. */
static int
pack_model(const char *checkpoint, const char *map, mc_str path, moec_model *model, moec_status opened,
           moec_error *error)
{
    const struct moec_abi_ep *ep = opened == MOEC_OK ? model->abi->ep : NULL;
    uint32_t n = ep ? mc_ranks_needed(model->abi) : 0;
    moec_comm **comms = calloc(n + 1, sizeof *comms);
    moec_status status = comms ? opened : MOEC_ERR_MEMORY;
    if (!comms) snprintf(error->text, sizeof error->text, "out of memory");
    if (status == MOEC_OK && ep) status = moec_comm_threads(n, NULL, comms, error);
    uint32_t n_files = ep ? ep->n_ranks : 1;
    for (uint32_t i = 0; i < n_files && status == MOEC_OK; i++)
        status = pack_rank(checkpoint, map, path, model, comms[i], error);
    for (uint32_t i = 0; i < n && comms; i++) moec_comm_close(comms[i]);
    free(comms);
    moec_model_destroy(model);
    return status == MOEC_OK ? MC_EXIT_OK : mc_command_failed(status, error->text);
}

/* Packs a checkpoint beside the executable, where it looks by itself: for each kind of code its own file. The CPU's
 * tables are read by loading the code here, so the target must be this processor. */
static int
pack_weights(mc_arena *arena, const char *checkpoint, const char *map, const char *executable,
             const mc_link_input *code)
{
    mc_loaded *loaded = NULL;
    const moec_abi_model *abi;
    moec_model *model = NULL;
    moec_error error = {0};
    mc_fault fault = {0};
    int exit_code = MC_EXIT_OK;
    if (code->object.len) {
        moec_status status = mc_backend_load(code->object.data, code->object.len, code->name, &loaded, &abi, &fault);
        if (status != MOEC_OK) return mc_command_failed(status, fault.text);
        status = moec_model_from_abi(abi, &model, &error);
        exit_code = pack_model(checkpoint, map, mc_strf(arena, "%s.weights", executable), model, status, &error);
        mc_backend_unload(loaded);
    }
    if (!exit_code && code->image.len) {
        moec_status status = moec_model_from_image(code->image.data, code->image.len, &model, &error);
        exit_code = pack_model(checkpoint, map, mc_strf(arena, "%s.gpu-weights", executable), model, status, &error);
    }
    return exit_code;
}

static int
write_all(const mc_cli *cli, mc_unit *u, emit_kind kind, mc_str stem, const mc_link_input *code)
{
    const char *given = mc_cli_value(cli, MC_OPTION_OUTPUT), *checkpoint = mc_cli_value(cli, MC_OPTION_WEIGHTS);
    int exit_code = MC_EXIT_OK;
    switch (kind) {
    case EMIT_EXE:
        exit_code = write_artefact(given ? given : stem.data, MOEC_EXECUTABLE, code);
        if (!exit_code && checkpoint)
            exit_code = pack_weights(u->arena, checkpoint, u->options->map, given ? given : stem.data, code);
        break;
    case EMIT_OBJ:
        exit_code = write_artefact(given ? given : mc_strf(u->arena, "%s.o", stem.data).data, MOEC_OBJECT, code);
        break;
    case EMIT_LIB:
        exit_code = write_artefact(mc_strf(u->arena, "%s.so", stem.data).data, MOEC_SHARED_LIBRARY, code);
        if (!exit_code) exit_code = write_artefact(mc_strf(u->arena, "%s.a", stem.data).data, MOEC_ARCHIVE, code);
        if (!exit_code) exit_code = write_artefact(mc_strf(u->arena, "%s.h", stem.data).data, MOEC_HEADER, code);
        break;
    case EMIT_HEADER:
        exit_code = write_header(given ? given : mc_strf(u->arena, "%s.h", stem.data).data, u, code->name);
        break;
    case EMIT_IR:
    case EMIT_PLAN:
    case EMIT_LL:
    case EMIT_ASM:
    case N_EMIT: break;
    }
    return exit_code;
}

/* GPU code when u has become CPU code. The status that its own reports amount to. */
static moec_status
emit_gpu_beside(const mc_cli *cli, const mc_unit *cpu, mc_buf *image)
{
    mc_unit u;
    mc_pass_options passes;
    bool good = mc_unit_begin_gpu(&u, cpu) && mc_command_pass_options(cli, u.arena, &passes) &&
                mc_unit_passes(&u, &passes) && mc_backend_gpu_emit(&u, image);
    moec_status status = good || mc_unit_status(&u) != MOEC_OK ? mc_unit_status(&u) : MOEC_ERR_INTERNAL;
    mc_progress_end();
    mc_unit_deliver(&u);
    mc_unit_fini(&u);
    return status;
}

static int
write_artefacts(const mc_cli *cli, mc_unit *u, emit_kind kind, const char *input)
{
    mc_backend_target target;
    mc_buf object = {0}, image = {0};
    mc_str name = mc_str_dup(u->arena, mc_unit_name(u)), stem = stem_of(cli, u->arena, input);
    mc_progress_step("generating code");
    bool good = true, code = kind != EMIT_HEADER;
    if (code && !u->gpu) good = mc_backend_find(u, &target) && mc_backend_emit(u, &target, MC_CODE_OBJECT, &object);
    if (good && code && u->gpu) good = mc_backend_gpu_emit(u, &image);
    moec_status status = mc_unit_status(u);
    if (good && code && u->options->gpu && !u->gpu) {
        status = emit_gpu_beside(cli, u, &image);
        good = status == MOEC_OK;
    }
    mc_progress_end();
    mc_unit_deliver(u);
    mc_link_input parts = {mc_buf_view(&object), mc_buf_view(&image), name.data};
    int exit_code = good ? write_all(cli, u, kind, stem, &parts) : mc_command_exit_code(status);
    if (!exit_code) {
        mc_str summary = mc_unit_summary(u);
        printf("%.*s\n", MC_FMT(summary));
    }
    mc_buf_fini(&object);
    mc_buf_fini(&image);
    return exit_code;
}

int
mc_cmd_compile(const mc_cli *cli)
{
    moec_compile_options options;
    emit_kind kind;
    if (!mc_command_options(cli, &options) || !choose_emit(cli, &kind)) return MC_EXIT_USAGE;
    if (options.gpu && !options.target && (kind == EMIT_LL || kind == EMIT_ASM))
        return mc_cli_usage("--emit %s is of CPU code: add --target, or see the GPU's with --dump-dir",
                            emit_names[kind]);
    const char *path = mc_cli_one_file(cli);
    if (!path) return MC_EXIT_USAGE;
    mc_unit u;
    mc_unit_init(&u, &options);
    int code;
    if (!mc_cli_has(cli, MC_OPTION_TIME_PASSES) && !mc_cli_has(cli, MC_OPTION_PRINT_CHANGED)) mc_progress_begin();
    if (!front(cli, &u, path, kind)) {
        mc_progress_end();
        mc_unit_deliver(&u);
        code = u.diags.n_errors ? mc_command_exit_code(mc_unit_status(&u)) : MC_EXIT_USAGE;
    } else if (kind == EMIT_IR || kind == EMIT_PLAN || kind == EMIT_LL || kind == EMIT_ASM) {
        code = write_text_stage(cli, &u, kind);
    } else {
        code = write_artefacts(cli, &u, kind, path);
    }
    mc_unit_fini(&u);
    return code;
}
