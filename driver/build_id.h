/* build_id: which build of moec this is. */
#ifndef MC_DRIVER_BUILD_ID_H
#define MC_DRIVER_BUILD_ID_H

#include "runtime/base/str.h"

/* Bytes, not text; empty when the linker wrote none. Lives as long as the program. */
mc_str mc_build_id(void);

#endif
