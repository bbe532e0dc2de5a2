/* cache_dir: where things that can be made again are kept: $MOEC_CACHE, else $XDG_CACHE_HOME/moec, else ~/.cache/moec.
 */
#ifndef MC_BASE_CACHE_DIR_H
#define MC_BASE_CACHE_DIR_H

#include "runtime/base/file.h"

/* Appends "<directory>/<part>" to out and makes it (mode 0700). `option` stands for the environment when not NULL.
 * Refuses a directory that belongs to somebody else or that others may write: its files are trusted later.
 * Errors: NOT_FOUND (none is named), IO (cannot be made, or is not private). */
moec_status mc_cache_directory(const char *option, const char *part, mc_buf *out, mc_fault *fault) MOEC_MUST_USE;

#endif
