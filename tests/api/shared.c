/* Two shared libraries, opened at run time: each keeps its own runtime. */
#include "first.h"

#include "common.h"

#include <dlfcn.h>

typedef const struct moec_abi_model *query_fn(uint32_t version);

/* Through the library's own functions would be ideal; common.h calls them by name, so the runtime of this program (from
 * first.a) runs the description of the library. The library's own runtime is asked for its name and version too. */
static int
run_library(const char *path, const char *symbol)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    moec_model *model = NULL;
    moec_error error;
    float out[N_ROWS * N_COLUMNS];
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    query_fn *query;
    void *address = dlsym(library, symbol), *own = dlsym(library, "moec_model_from_abi");
    memcpy(&query, &address, sizeof query);
    int failed = !query || !own || own == (void *)(uintptr_t)moec_model_from_abi || query(999) != NULL ||
                 moec_model_from_abi(query(4), &model, &error) != MOEC_OK || run_once(model, 2, out);
    if (!failed) print_bits(moec_model_name(model), out);
    moec_model_destroy(model);
    dlclose(library);
    return failed;
}

int
main(void)
{
    return run_library("./first.so", "moec_abi_query_first") || run_library("./second.so", "moec_abi_query_second");
}
