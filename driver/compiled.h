/* compiled: what the commands may see of a moec_compiled that its public interface does not show. */
#ifndef MC_DRIVER_COMPILED_H
#define MC_DRIVER_COMPILED_H

#include "moec/compiler.h"
#include "runtime/abi.h"
#include "runtime/base/file.h"

/* Links the CPU code into this process (once) and gives its descriptor, which lives inside `compiled`. */
moec_status mc_compiled_abi(moec_compiled *compiled, const moec_abi_model **out_abi, mc_fault *fault) MOEC_MUST_USE;

#endif
