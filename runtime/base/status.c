#include "moec/base.h"

const char *
moec_status_name(moec_status status)
{
    switch (status) {
    case MOEC_OK: return "ok";
    case MOEC_ERR_ARGUMENT: return "argument";
    case MOEC_ERR_SYNTAX: return "syntax";
    case MOEC_ERR_NOT_FOUND: return "not found";
    case MOEC_ERR_MISMATCH: return "mismatch";
    case MOEC_ERR_UNSUPPORTED: return "unsupported";
    case MOEC_ERR_IO: return "io";
    case MOEC_ERR_MEMORY: return "memory";
    case MOEC_ERR_RANGE: return "range";
    case MOEC_ERR_INTERNAL: return "internal";
    case MOEC_ERR_DEVICE: return "device";
    case MOEC_ERR_COMM: return "comm";
    }
    return "unknown";
}
