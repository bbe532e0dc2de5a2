/* json_text: jansson with our kind of errors. */
#ifndef MC_RUNTIME_JSON_TEXT_H
#define MC_RUNTIME_JSON_TEXT_H

#include "runtime/base/file.h"

#include <jansson.h>

/* Parses; the caller ends *out with json_decref. Repeated keys are refused. Nesting is bounded by jansson (2048).
 * `what` begins the message: "x.json" or "x.safetensors is not a valid safetensors file".
 * Errors: SYNTAX (what: byte N: ...), MEMORY. */
moec_status mc_json_parse(const unsigned char *bytes, size_t n_bytes, const char *what, json_t **out,
                          mc_fault *error) MOEC_MUST_USE;

#endif
