/* app_main: the entry point of an ahead-of-time executable. What the linker did not put in has no address. */
#include "runtime/app/app.h"

int
main(int argc, char **argv)
{
    mc_app_code code = {0};
    if (moec_app_query) {
        code.has_cpu = true;
        code.cpu = moec_app_query(MOEC_ABI_VERSION);
    }
    if (&moec_app_gpu_image) {
        code.image = moec_app_gpu_image.data;
        code.image_bytes = moec_app_gpu_image.n_bytes;
    }
    return mc_app_main(&code, argc, argv);
}
