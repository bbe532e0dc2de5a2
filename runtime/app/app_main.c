/* app_main: the entry point of an ahead-of-time executable. */
#include "runtime/app/app.h"

int
main(int argc, char **argv)
{
    return mc_app_main(moec_app_query(MOEC_ABI_VERSION), argc, argv);
}
