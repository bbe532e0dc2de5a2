/* json_text: see json_text.h. jansson reports a failed allocation by an empty text, or, inside a string, as a syntax
 * error, which cannot be told from a real one. */
#include "runtime/json_text.h"

moec_status
mc_json_parse(const unsigned char *bytes, size_t n_bytes, const char *what, json_t **out, mc_fault *error)
{
    json_error_t at;
    *out = json_loadb((const char *)bytes, n_bytes, JSON_REJECT_DUPLICATES, &at);
    if (*out) return MOEC_OK;
    if (!at.text[0] || json_error_code(&at) == json_error_out_of_memory)
        return mc_fail(error, MOEC_ERR_MEMORY, "%s: out of memory", what);
    return mc_fail(error, MOEC_ERR_SYNTAX, "%s: byte %d: %s", what, at.position, at.text);
}
