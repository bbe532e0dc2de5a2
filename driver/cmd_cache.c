/* moec cache: where compiled code and packed weights are kept, how much there is, and how to be rid of it. */
#define _POSIX_C_SOURCE 200809L
#include "driver/command.h"
#include "runtime/base/cache_dir.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const parts[] = {"code", "kernels", "weights"};

/* Counts the files of one part, or removes them. */
static int
visit(const char *directory, bool clear)
{
    DIR *d = opendir(directory);
    if (!d) return mc_command_failed(MOEC_ERR_IO, strerror(errno));
    unsigned long long n_files = 0, n_bytes = 0;
    int code = MC_EXIT_OK;
    for (struct dirent *entry; (entry = readdir(d));) {
        mc_buf path = {0};
        struct stat st;
        mc_buf_printf(&path, "%s/%s", directory, entry->d_name);
        if (lstat(path.data, &st) == 0 && S_ISREG(st.st_mode)) {
            n_files++;
            n_bytes += (unsigned long long)st.st_size;
            if (clear && unlink(path.data) < 0) {
                fprintf(stderr, "moec: cannot remove %s: %s\n", path.data, strerror(errno));
                code = MC_EXIT_FAILED;
            }
        }
        mc_buf_fini(&path);
    }
    closedir(d);
    printf("%s: %llu files, %.1f MB%s\n", directory, n_files, (double)n_bytes / 1e6, clear ? " removed" : "");
    return code;
}

int
mc_cmd_cache(const mc_cli *cli)
{
    bool clear = cli->n_files == 1 && strcmp(cli->files[0], "clear") == 0;
    if (cli->n_files > 1 || (cli->n_files == 1 && !clear))
        return mc_cli_usage("cache takes nothing, or the word clear, as in: moec cache clear");
    int worst = MC_EXIT_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        mc_buf directory = {0};
        mc_fault fault = {0};
        moec_status status = mc_cache_directory(mc_cli_value(cli, MC_OPTION_CACHE_DIR), parts[i], &directory, &fault);
        int code = status == MOEC_OK ? visit(directory.data, clear) : mc_command_failed(status, fault.text);
        if (code > worst) worst = code;
        mc_buf_fini(&directory);
    }
    return worst;
}
