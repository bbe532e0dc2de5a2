/* npy: see npy.h. A file is "\x93NUMPY", two version bytes, the header's length (2 bytes, from version 2 on 4), a
 * Python dict such as {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, and the elements. */
#include "runtime/npy.h"

#include <stdio.h>
#include <string.h>

enum { MAX_HEADER = 1 << 16 };

/* clang-format off */
static const struct { const char *descr; moec_dtype dtype; } types[] = { /* the first of a type is how it is written */
    {"<f4", MOEC_F32}, {"<f2", MOEC_F16}, {"<f8", MOEC_F64}, {"<i4", MOEC_I32}, {"<i8", MOEC_I64}, {"|i1", MOEC_I8},
    {"|u1", MOEC_U8},  {"|b1", MOEC_BOOL}, {"|V2", MOEC_BF16}, {"<V2", MOEC_BF16}, {"<u2", MOEC_BF16}, {"|V1", MOEC_F8E4M3},
};
/* clang-format on */
enum { N_TYPES = sizeof types / sizeof *types };

typedef struct reader {
    const char *p, *end;
    const char *path;
    mc_fault *error;
} reader;

static moec_status
malformed(const reader *r, const char *what)
{
    return mc_fail(r->error, MOEC_ERR_SYNTAX, "%s is not a valid .npy file: %s", r->path, what);
}

static void
skip_space(reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r')) r->p++;
}

static bool
take(reader *r, char c)
{
    skip_space(r);
    if (r->p == r->end || *r->p != c) return false;
    r->p++;
    return true;
}

static bool
take_text(reader *r, mc_str *out)
{
    skip_space(r);
    if (r->p == r->end || (*r->p != '\'' && *r->p != '"')) return false;
    char quote = *r->p++;
    const char *begin = r->p;
    while (r->p < r->end && *r->p != quote) r->p++;
    if (r->p == r->end) return false;
    *out = (mc_str){begin, (size_t)(r->p++ - begin)};
    return true;
}

static bool
take_word(reader *r, const char *word)
{
    size_t n = strlen(word);
    skip_space(r);
    if ((size_t)(r->end - r->p) < n || memcmp(r->p, word, n) != 0) return false;
    r->p += n;
    return true;
}

static bool
take_natural(reader *r, int64_t *out)
{
    skip_space(r);
    const char *begin = r->p;
    *out = 0;
    for (; r->p < r->end && *r->p >= '0' && *r->p <= '9'; r->p++)
        if (__builtin_mul_overflow(*out, (int64_t)10, out) || __builtin_add_overflow(*out, (int64_t)(*r->p - '0'), out))
            return false;
    return r->p > begin;
}

static moec_status
read_shape(reader *r, mc_npy *out)
{
    if (!take(r, '(')) return malformed(r, "shape is not a tuple");
    while (!take(r, ')')) {
        if (out->rank == MOEC_MAX_RANK) return malformed(r, "more than 6 dimensions");
        if (!take_natural(r, &out->dims[out->rank++])) return malformed(r, "a dimension is not a natural number");
        if (!take(r, ',') && !(r->p < r->end && *r->p == ')')) return malformed(r, "a malformed shape");
    }
    return MOEC_OK;
}

static moec_status
read_descr(reader *r, mc_npy *out)
{
    mc_str descr;
    if (!take_text(r, &descr)) return malformed(r, "descr is not a string");
    for (int i = 0; i < N_TYPES; i++)
        if (mc_str_is(descr, types[i].descr)) out->dtype = types[i].dtype;
    if (out->dtype != MOEC_DTYPE_NONE) return MOEC_OK;
    return mc_fail(r->error, MOEC_ERR_UNSUPPORTED,
                   "%s: element type %.*s is not one of f4 f2 f8 i4 i8 i1 u1 b1, little endian", r->path,
                   descr.len > 40 ? 40 : (int)descr.len, descr.data);
}

static moec_status
read_dict(reader *r, mc_npy *out)
{
    int seen = 0;
    if (!take(r, '{')) return malformed(r, "no dict");
    while (!take(r, '}')) {
        mc_str key;
        if (!take_text(r, &key) || !take(r, ':')) return malformed(r, "a malformed dict");
        moec_status s = MOEC_OK;
        int bit = mc_str_is(key, "descr") ? 1 : mc_str_is(key, "fortran_order") ? 2 : mc_str_is(key, "shape") ? 4 : 0;
        if (!bit || (seen & bit)) return malformed(r, "an unknown or repeated key");
        seen |= bit;
        if (bit == 1) s = read_descr(r, out);
        if (bit == 4) s = read_shape(r, out);
        if (bit == 2 && !take_word(r, "False"))
            s = take_word(r, "True") ? mc_fail(r->error, MOEC_ERR_UNSUPPORTED,
                                               "%s is in Fortran order; save it with numpy.ascontiguousarray", r->path)
                                     : malformed(r, "fortran_order is neither True nor False");
        if (s != MOEC_OK) return s;
        take(r, ',');
    }
    return seen == 7 ? MOEC_OK : malformed(r, "a key is missing");
}

moec_status
mc_npy_parse(const unsigned char *bytes, size_t n_bytes, const char *path, mc_npy *out, mc_fault *error)
{
    reader r = {NULL, NULL, path, error};
    *out = (mc_npy){0};
    if (n_bytes < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0 || bytes[6] < 1 || bytes[6] > 3)
        return malformed(&r, "no header of version 1 to 3");
    size_t at = bytes[6] == 1 ? 10 : 12, header = (size_t)bytes[8] | (size_t)bytes[9] << 8;
    if (bytes[6] > 1) header |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (header > MAX_HEADER || header > n_bytes - at) return malformed(&r, "the header is longer than the file");
    r.p = (const char *)bytes + at;
    r.end = r.p + header;
    moec_status s = read_dict(&r, out);
    if (s != MOEC_OK) return s;
    size_t need = moec_dtype_bytes(out->dtype);
    for (uint32_t i = 0; i < out->rank; i++)
        if (__builtin_mul_overflow(need, (size_t)out->dims[i], &need))
            return malformed(&r, "the shape is larger than memory");
    if (need != n_bytes - at - header) return malformed(&r, "its length does not fit its shape");
    s = mc_pages_alloc(need, path, &out->data, error);
    if (s == MOEC_OK && need) memcpy(out->data.data, bytes + at + header, need);
    return s;
}

moec_status
mc_npy_read(const char *path, mc_npy *out, mc_fault *error)
{
    mc_mapping m;
    *out = (mc_npy){0};
    moec_status s = mc_file_map(path, &m, error);
    if (s != MOEC_OK) return s;
    s = mc_npy_parse(m.data, m.n_bytes, path, out, error);
    mc_file_unmap(&m);
    return s;
}

void
mc_npy_fini(mc_npy *npy)
{
    mc_pages_free(&npy->data);
    *npy = (mc_npy){0};
}

size_t
mc_npy_header(moec_dtype dtype, uint32_t rank, const int64_t *dims, unsigned char *out)
{
    char *text = (char *)out;
    const char *descr = "|V1";
    for (int i = N_TYPES - 1; i >= 0; i--)
        if (types[i].dtype == dtype) descr = types[i].descr;
    memcpy(text, "\x93NUMPY\x01\x00\x00\x00", 10);
    int len = 10 + snprintf(text + 10, 100, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (uint32_t i = 0; i < rank && i < MOEC_MAX_RANK; i++)
        len += snprintf(text + len, 24, rank == 1 ? "%lld," : i ? ", %lld" : "%lld", (long long)dims[i]);
    len += snprintf(text + len, 8, "), }");
    while ((len + 1) % 64) text[len++] = ' ';
    text[len++] = '\n';
    out[8] = (unsigned char)((len - 10) & 0xFF);
    out[9] = (unsigned char)((len - 10) >> 8);
    return (size_t)len;
}

moec_status
mc_npy_write(const char *path, moec_dtype dtype, uint32_t rank, const int64_t *dims, const void *data, mc_fault *error)
{
    unsigned char header[MC_NPY_HEADER_BYTES];
    size_t n_bytes = moec_dtype_bytes(dtype), n_header = mc_npy_header(dtype, rank, dims, header);
    for (uint32_t i = 0; i < rank; i++) n_bytes *= (size_t)dims[i];
    mc_writer *w;
    moec_status s = mc_writer_open(path, &w, error);
    if (s != MOEC_OK) return s;
    s = mc_writer_write(w, header, n_header, error);
    if (s == MOEC_OK) s = mc_writer_write(w, data, n_bytes, error);
    if (s == MOEC_OK) return mc_writer_commit(w, 0644, error);
    mc_writer_abandon(w);
    return s;
}
