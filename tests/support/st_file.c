#define _GNU_SOURCE
#include "tests/support/st_file.h"

#include "runtime/base/dtype.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
st_begin(st_file *f)
{
    memset(f, 0, sizeof *f);
    f->header_len = (size_t)snprintf(f->header, sizeof f->header, "{\"__metadata__\":{\"format\":\"pt\"}");
}

void
st_add(st_file *f, const char *name, moec_dtype dtype, int rank, const int64_t *dims, const void *data)
{
    size_t n = moec_dtype_bytes(dtype), cap = sizeof f->header;
    f->header_len += (size_t)snprintf(f->header + f->header_len, cap - f->header_len,
                                      ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", name, mc_dtype_safetensors_name(dtype));
    for (int i = 0; i < rank; i++) {
        f->header_len +=
            (size_t)snprintf(f->header + f->header_len, cap - f->header_len, i ? ",%lld" : "%lld", (long long)dims[i]);
        n *= (size_t)dims[i];
    }
    f->header_len += (size_t)snprintf(f->header + f->header_len, cap - f->header_len, "],\"data_offsets\":[%zu,%zu]}",
                                      f->data_len, f->data_len + n);
    if (f->data_len + n > sizeof f->data || f->header_len > cap - 64) abort();
    if (data) memcpy(f->data + f->data_len, data, n);
    f->data_len += n;
}

void
st_add_f32(st_file *f, const char *name, moec_dtype dtype, int rank, const int64_t *dims, const float *values)
{
    size_t n = 1, at = f->data_len, size = moec_dtype_bytes(dtype);
    for (int i = 0; i < rank; i++) n *= (size_t)dims[i];
    st_add(f, name, dtype, rank, dims, NULL);
    for (size_t i = 0; i < n; i++) {
        double aligned;
        mc_store_elem(dtype, &aligned, 0, values[i]);
        memcpy(f->data + at + i * size, &aligned, size);
    }
}

void
st_write_raw(const char *path, const char *header, const void *data, size_t data_len)
{
    FILE *out = fopen(path, "wb");
    uint64_t n = strlen(header);
    if (!out || fwrite(&n, 8, 1, out) != 1 || fwrite(header, 1, n, out) != n ||
        fwrite(data, 1, data_len, out) != data_len || fclose(out) != 0)
        abort();
}

void
st_write(st_file *f, const char *path)
{
    strcpy(f->header + f->header_len, "}");
    st_write_raw(path, f->header, f->data, f->data_len);
}

const char *
test_directory(void)
{
    static char path[64];
    strcpy(path, "/tmp/moec-test-XXXXXX");
    return mkdtemp(path);
}

static int
remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

void
test_directory_remove(const char *path)
{
    nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

const char *
test_path(const char *directory, const char *name)
{
    static char buffers[4][512];
    static int next;
    char *b = buffers[next++ % 4];
    snprintf(b, sizeof buffers[0], "%s/%s", directory, name);
    return b;
}
