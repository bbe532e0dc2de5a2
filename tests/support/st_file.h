/* st_file: safetensors files for tests, right ones and wrong ones. */
#ifndef MC_TESTS_ST_FILE_H
#define MC_TESTS_ST_FILE_H

#include "moec/base.h"

typedef struct st_file {
    char header[8192];
    unsigned char data[262144];
    size_t header_len, data_len;
} st_file;

void st_begin(st_file *f);
/* data: elements of dtype, as many as dims say; NULL: zeros. */
void st_add(st_file *f, const char *name, moec_dtype dtype, int rank, const int64_t *dims, const void *data);
/* Adds values given as f32, converted. */
void st_add_f32(st_file *f, const char *name, moec_dtype dtype, int rank, const int64_t *dims, const float *values);
void st_write(st_file *f, const char *path);
/* Any header over any data. */
void st_write_raw(const char *path, const char *header, const void *data, size_t data_len);

/* A fresh directory below the system's temporary one (a static buffer), and its removal. */
const char *test_directory(void);
void test_directory_remove(const char *path);
/* directory + "/" + name, in one of four static buffers. */
const char *test_path(const char *directory, const char *name);

#endif
