/* The base library: arenas, vectors, maps, text, files. Element types are in test_dtype.c. */
#define _GNU_SOURCE
#include <check.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/hash.h"
#include "runtime/base/map.h"
#include "runtime/base/path.h"
#include "runtime/base/vec.h"

static mc_arena *arena;
static char folder[64];

static void
setup(void)
{
    arena = mc_arena_create();
    strcpy(folder, "/tmp/moec-base-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static int
n_files(void)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void
remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        const char *inside = mc_strf(arena, "%s/%s", path, entry->d_name).data;
        if (mc_file_is_directory(inside)) remove_folder(inside);
        unlink(inside);
    }
    if (dir) closedir(dir);
    rmdir(path);
}

static void
teardown(void)
{
    remove_folder(folder);
    mc_arena_destroy(arena);
}

static const char *
in_folder(const char *name)
{
    return mc_strf(arena, "%s/%s", folder, name).data;
}

/* ---- memory ---- */

START_TEST(arena_gives_zeroed_aligned_memory)
{
    for (int round = 0; round < 2; round++) {
        for (size_t n = 0; n < 3000; n += 7) {
            unsigned char *p = mc_arena_alloc(arena, n);
            ck_assert_uint_eq((uintptr_t)p % 16, 0);
            for (size_t i = 0; i < n; i++) ck_assert_uint_eq(p[i], 0);
            memset(p, 0xFF, n);
        }
        ck_assert_uint_gt(mc_arena_used_bytes(arena), 600000);
        mc_arena_reset(arena);
        ck_assert_uint_eq(mc_arena_used_bytes(arena), 0);
    }
    char *big = mc_arena_alloc(arena, 5 << 20);
    big[(5 << 20) - 1] = 1;
    ck_assert_mem_eq(mc_arena_copy(arena, "moe", 3), "moe", 3);
    mc_arena_destroy(NULL);
}
END_TEST

START_TEST(vectors_grow)
{
    MC_VEC(int) v = {0};
    for (int i = 0; i < 1000; i++) mc_vec_push(arena, &v, i * i);
    ck_assert_uint_eq(v.n, 1000);
    for (int i = 0; i < 1000; i++) ck_assert_int_eq(v.items[i], i * i);
}
END_TEST

START_TEST(maps_keep_the_order_of_insertion)
{
    mc_map map;
    mc_map_init(&map, arena);
    int values[2000];
    ck_assert_ptr_null(mc_map_get(&map, MC_STR("0")));
    ck_assert(!mc_map_has(&map, MC_STR("")));
    for (int i = 0; i < 2000; i++) ck_assert(mc_map_set(&map, mc_strf(arena, "%d", i * 7919 % 2000), &values[i]));
    for (int i = 0; i < 2000; i++) {
        mc_str key = mc_strf(arena, "%d", i * 7919 % 2000);
        ck_assert_ptr_eq(mc_map_get(&map, key), &values[i]);
        ck_assert(mc_str_eq(map.entries[i].key, key));
    }
    ck_assert(!mc_map_set(&map, MC_STR("0"), &values[5]));
    ck_assert_uint_eq(map.n, 2000);
    ck_assert_ptr_eq(map.entries[0].value, &values[5]);
    ck_assert(mc_map_set(&map, MC_STR(""), NULL)); /* present, with the value NULL */
    ck_assert(mc_map_has(&map, MC_STR("")) && !mc_map_get(&map, MC_STR("")));
    ck_assert(!mc_map_has(&map, MC_STR("2000")));
}
END_TEST

START_TEST(hashes_are_the_published_ones)
{
    ck_assert_uint_eq(mc_hash64("", 0, 0), 0xEF46DB3751D8E999u);
    ck_assert_uint_eq(mc_hash64("abc", 3, 0), 0x44BC2CF5AD770999u);
    ck_assert_uint_ne(mc_hash64("abc", 3, 1), mc_hash64("abc", 3, 0));
}
END_TEST

START_TEST(clocks_go_forward)
{
    double a = mc_seconds(), b = mc_thread_seconds();
    ck_assert(mc_seconds() >= a && mc_thread_seconds() >= b);
}
END_TEST

/* ---- text ---- */

START_TEST(views_compare_and_slice)
{
    mc_str s = MC_STR("experts");
    ck_assert(mc_str_eq(mc_str_slice(s, 0, 6), MC_STR("expert")));
    ck_assert_uint_eq(mc_str_slice(s, 9, 12).len, 0);
    ck_assert_uint_eq(mc_str_slice(s, 5, 2).len, 0);
    ck_assert_int_lt(mc_str_cmp(MC_STR("ab"), MC_STR("abc")), 0);
    ck_assert_int_gt(mc_str_cmp(MC_STR("b"), MC_STR("abc")), 0);
    ck_assert_int_eq(mc_str_cmp(MC_STR(""), mc_str_of(NULL)), 0);
    ck_assert(mc_str_starts(s, "exp") && !mc_str_starts(s, "experts."));
    ck_assert(mc_str_ends(s, "rts") && !mc_str_ends(MC_STR("s"), "ss"));
    mc_str copy = mc_str_dup(arena, mc_str_slice(s, 0, 3));
    ck_assert_str_eq(copy.data, "exp");
    ck_assert_str_eq(mc_strf(arena, "%d of %.*s", 8, MC_FMT(s)).data, "8 of experts");
}
END_TEST

static const struct {
    const char *a, *b;
    int max, distance;
} distances[] = {
    {"", "", 3, 0},       {"abc", "abc", 3, 0},  {"abc", "ab", 3, 1},         {"abc", "xabc", 3, 1},
    {"abc", "axc", 3, 1}, {"abc", "bac", 3, 1},  {"kitten", "sitting", 3, 3}, {"kitten", "sitting", 2, 3},
    {"", "abc", 3, 3},    {"topk", "top", 3, 1}, {"renorm", "renrom", 3, 1},  {"softmax", "sigmoid", 3, 4},
};

START_TEST(distances_are_as_counted_by_hand)
{
    mc_str a = mc_str_of(distances[_i].a), b = mc_str_of(distances[_i].b);
    ck_assert_int_eq(mc_str_distance(a, b, distances[_i].max), distances[_i].distance);
    ck_assert_int_eq(mc_str_distance(b, a, distances[_i].max), distances[_i].distance);
}
END_TEST

START_TEST(nearest_offers_only_what_is_near)
{
    const mc_str words[] = {MC_STR_INIT("softmax"), MC_STR_INIT("sigmoid"), MC_STR_INIT("top"), MC_STR_INIT("renorm")};
    ck_assert(mc_str_is(mc_str_nearest(MC_STR("sofmax"), words, 4), "softmax"));
    ck_assert(mc_str_is(mc_str_nearest(MC_STR("tpo"), words, 4), "top"));
    ck_assert_uint_eq(mc_str_nearest(MC_STR("linear"), words, 4).len, 0);
    ck_assert_uint_eq(mc_str_nearest(MC_STR("x"), words, 0).len, 0);
    char long_word[200] = {0};
    memset(long_word, 'a', sizeof long_word - 1);
    ck_assert_uint_eq(mc_str_nearest(mc_str_of(long_word), words, 4).len, 0);
}
END_TEST

START_TEST(buffers_grow)
{
    mc_buf buf = {0};
    ck_assert_uint_eq(mc_buf_view(&buf).len, 0);
    for (int i = 0; i < 1000; i++) mc_buf_printf(&buf, "%d,", i);
    ck_assert_uint_eq(buf.len, 3890);
    ck_assert_uint_eq(strlen(buf.data), buf.len);
    mc_buf_clear(&buf);
    ck_assert_uint_eq(buf.len, 0);
    mc_buf_write(&buf, "a\0b", 3);
    ck_assert_uint_eq(mc_buf_view(&buf).len, 3);
    mc_buf_fini(&buf);
    ck_assert_ptr_null(buf.data);
}
END_TEST

static void
check_double(double value)
{
    mc_buf buf = {0};
    mc_buf_double(&buf, value);
    double back = strtod(buf.data, NULL);
    ck_assert_msg(memcmp(&back, &value, sizeof value) == 0, "%s is not %.17g", buf.data, value);
    ck_assert_msg(strpbrk(buf.data, ".eni"), "%s looks like an integer", buf.data);
    mc_buf_fini(&buf);
}

START_TEST(doubles_read_back)
{
    static const double edges[] = {0, -0.0, 1, -1, 0.1, 1e-5, 1e300, 5e-324, 1.7976931348623157e308, 65504, 1.0 / 3};
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) check_double(edges[i]);
    check_double(HUGE_VAL);
    check_double(-HUGE_VAL);
    uint64_t bits = 1;
    for (int i = 0; i < 20000; i++) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        double value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value)) check_double(value);
    }
    mc_buf buf = {0};
    mc_buf_double(&buf, 0.1);
    mc_buf_putc(&buf, ' ');
    mc_buf_double(&buf, (double)NAN);
    ck_assert_str_eq(buf.data, "0.1 nan");
    mc_buf_fini(&buf);
}
END_TEST

/* ---- paths ---- */

START_TEST(paths_join)
{
    ck_assert_str_eq(mc_path_join(arena, MC_STR("layers.3"), MC_STR("mlp.gate")).data, "layers.3.mlp.gate");
    ck_assert(mc_str_is(mc_path_join(arena, MC_STR(""), MC_STR("head")), "head"));
    ck_assert(mc_str_is(mc_path_join(arena, MC_STR("layers.3"), mc_str_of(NULL)), "layers.3"));
    ck_assert_uint_eq(mc_path_join(arena, MC_STR(""), MC_STR("")).len, 0);
}
END_TEST

static const struct {
    const char *glob, *path;
    bool matches;
} globs[] = {
    {"a.b", "a.b", true},
    {"a.b", "a", false},
    {"a", "a.b", false},
    {"*", "a", true},
    {"*", "a.b", false},
    {"a.*.c", "a.b.c", true},
    {"a.*.c", "a.b.b.c", false},
    {"**", "a.b.c", true},
    {"layers.0.**", "layers.0.q.weight", true},
    {"layers.0.**", "layers.0", true},
    {"layers.0.**", "layers.01.q", false},
    {"**.weight", "weight", true},
    {"**.weight", "a.b.weight", true},
    {"**.weight", "a.weight.b", false},
    {"**.experts.*.up*", "l.3.experts.7.up_proj", true},
    {"**.experts.*.up*", "l.3.experts.7.down_proj", false},
    {"a.**.b.**.c", "a.x.b.b.y.c", true},
    {"a.**.b.**.c", "a.x.y.c", false},
    {"l*.*_proj.w", "layers.q_proj.w", true},
    {"l*.*_proj.w", "layers.q_proj_x.w", false},
    {"", "a", false},
};

START_TEST(globs_match_paths)
{
    bool m = mc_path_matches(mc_str_of(globs[_i].glob), mc_str_of(globs[_i].path));
    ck_assert_msg(m == globs[_i].matches, "%s on %s", globs[_i].glob, globs[_i].path);
}
END_TEST

START_TEST(lists_of_globs_are_read_in_order)
{
    mc_str list = MC_STR("embed,**.norm,,head.*"), glob;
    static const char *const PARTS[] = {"embed", "**.norm", "", "head.*"};
    size_t at = 0, n = 0;
    for (; mc_path_next_glob(list, &at, &glob); n++) {
        ck_assert_uint_lt(n, 4);
        ck_assert(mc_str_is(glob, PARTS[n]));
    }
    ck_assert_uint_eq(n, 4);
    ck_assert(mc_path_matches_any(list, MC_STR("embed")) && mc_path_matches_any(list, MC_STR("head.w")));
    ck_assert(mc_path_matches_any(list, MC_STR("layers.3.norm")) && !mc_path_matches_any(list, MC_STR("embed.w")));
    ck_assert(!mc_path_matches_any(MC_STR(""), MC_STR("embed")));
}
END_TEST

/* ---- files ---- */

static void
ck_file(const char *path, const char *text)
{
    mc_buf buf = {0};
    mc_fault fault;
    ck_assert_msg(mc_file_read(path, 1 << 20, &buf, &fault) == MOEC_OK, "%s", fault.text);
    ck_assert_str_eq(buf.data ? buf.data : "", text);
    mc_buf_fini(&buf);
}

START_TEST(files_are_written_whole)
{
    const char *path = in_folder("a.bin");
    mc_fault fault = {{0}};
    struct stat st;
    umask(022);
    ck_assert_int_eq(mc_file_write(path, "first", 5, 0644, &fault), MOEC_OK);
    ck_file(path, "first");
    mc_writer *w;
    ck_assert_int_eq(mc_writer_open(path, &w, &fault), MOEC_OK);
    ck_assert_int_eq(mc_writer_write(w, "sec", 3, &fault), MOEC_OK);
    ck_file(path, "first"); /* nothing of the new text before commit */
    ck_assert_int_eq(mc_writer_write(w, "ond", 3, &fault), MOEC_OK);
    ck_assert_uint_eq(mc_writer_offset(w), 6);
    ck_assert(mc_file_exists(mc_writer_temporary(w)));
    ck_assert_int_eq(mc_writer_commit(w, 0777, &fault), MOEC_OK);
    ck_file(path, "second");
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0755);
    ck_assert_int_eq(n_files(), 1);
}
END_TEST

START_TEST(abandoned_files_leave_nothing)
{
    const char *path = in_folder("a.bin");
    mc_fault fault = {{0}};
    mc_writer *w;
    ck_assert_int_eq(mc_writer_open(path, &w, &fault), MOEC_OK);
    ck_assert_int_eq(mc_writer_write(w, "half", 4, &fault), MOEC_OK);
    ck_assert_int_eq(n_files(), 1);
    mc_writer_abandon(w);
    ck_assert_int_eq(n_files(), 0);
    mc_writer_abandon(NULL);
}
END_TEST

/* A disk that is full, as a limit on the size of files. */
START_TEST(a_full_disk_keeps_the_old_file)
{
    const char *path = in_folder("a.bin");
    mc_fault fault = {{0}};
    static char big[100000];
    ck_assert_int_eq(mc_file_write(path, "old", 3, 0644, &fault), MOEC_OK);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, small;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 4096;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    moec_status status = mc_file_write(path, big, sizeof big, 0644, &fault);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(status, MOEC_ERR_IO);
    ck_assert_msg(strstr(fault.text, "cannot write") && strstr(fault.text, path), "%s", fault.text);
    ck_file(path, "old");
    ck_assert_int_eq(n_files(), 1);
}
END_TEST

START_TEST(an_unwritable_directory_is_reported)
{
    mc_fault fault = {{0}};
    mc_writer *w = (mc_writer *)&fault;
    ck_assert_int_eq(chmod(folder, 0555), 0);
    bool is_root = geteuid() == 0; /* root may write anywhere */
    if (is_root) ck_assert_int_eq(seteuid(65534), 0);
    moec_status status = mc_writer_open(in_folder("a.bin"), &w, &fault);
    if (is_root) ck_assert_int_eq(seteuid(0), 0);
    ck_assert_int_eq(chmod(folder, 0755), 0);
    ck_assert_int_eq(status, MOEC_ERR_IO);
    ck_assert_ptr_null(w);
    ck_assert_msg(strstr(fault.text, "Permission denied"), "%s", fault.text);
    ck_assert_int_eq(n_files(), 0);
}
END_TEST

START_TEST(other_refusals_of_writing)
{
    mc_fault fault = {{0}};
    ck_assert_int_eq(mc_file_write(in_folder("none/a.bin"), "x", 1, 0644, &fault), MOEC_ERR_NOT_FOUND);
    ck_assert_int_eq(mc_file_write(folder, "x", 1, 0644, &fault), MOEC_ERR_IO); /* the name of a directory */
    ck_assert_int_eq(mc_file_write(in_folder("a.bin"), "x", 1, 0644, NULL), MOEC_OK);
    ck_assert_int_eq(mc_file_write(in_folder("a.bin/b"), "x", 1, 0644, NULL), MOEC_ERR_IO);
    ck_assert_int_eq(n_files(), 1);
}
END_TEST

START_TEST(reading_refuses)
{
    mc_buf buf = {0};
    mc_fault fault = {{0}};
    ck_assert_int_eq(mc_file_read(in_folder("none"), 10, &buf, &fault), MOEC_ERR_NOT_FOUND);
    ck_assert_int_eq(mc_file_read(folder, 10, &buf, &fault), MOEC_ERR_IO);
    ck_assert_msg(strstr(fault.text, "directory"), "%s", fault.text);
    ck_assert_int_eq(mc_file_write(in_folder("a"), "0123456789", 10, 0644, &fault), MOEC_OK);
    ck_assert_int_eq(mc_file_read(in_folder("a"), 9, &buf, &fault), MOEC_ERR_RANGE);
    mc_buf_clear(&buf);
    ck_assert_int_eq(mc_file_read(in_folder("a"), 10, &buf, &fault), MOEC_OK);
    ck_assert_uint_eq(buf.len, 10);
    mc_buf_fini(&buf);
}
END_TEST

START_TEST(files_are_mapped)
{
    mc_mapping map;
    mc_fault fault = {{0}};
    ck_assert_int_eq(mc_file_write(in_folder("a"), "text", 4, 0644, &fault), MOEC_OK);
    ck_assert_int_eq(mc_file_write(in_folder("empty"), "", 0, 0644, &fault), MOEC_OK);
    ck_assert_int_eq(mc_file_map(in_folder("a"), &map, &fault), MOEC_OK);
    ck_assert_uint_eq(map.n_bytes, 4);
    ck_assert_mem_eq(map.data, "text", 4);
    mc_file_unmap(&map);
    ck_assert_ptr_null(map.data);
    ck_assert_int_eq(mc_file_map(in_folder("empty"), &map, &fault), MOEC_OK);
    ck_assert_ptr_null(map.data);
    mc_file_unmap(&map);
    ck_assert_int_eq(mc_file_map(folder, &map, &fault), MOEC_ERR_IO);
    ck_assert_int_eq(mc_file_map(in_folder("none"), &map, &fault), MOEC_ERR_NOT_FOUND);
}
END_TEST

START_TEST(directories_are_made)
{
    mc_fault fault = {{0}};
    ck_assert_int_eq(mc_make_directories(in_folder("a/b/c"), &fault), MOEC_OK);
    ck_assert(mc_file_is_directory(in_folder("a/b/c")));
    ck_assert_int_eq(mc_make_directories(in_folder("a/b/c"), &fault), MOEC_OK);
    ck_assert_int_eq(mc_file_write(in_folder("file"), "", 0, 0644, &fault), MOEC_OK);
    ck_assert(!mc_file_is_directory(in_folder("file")) && mc_file_exists(in_folder("file")));
    ck_assert_int_eq(mc_make_directories(in_folder("file/d"), &fault), MOEC_ERR_IO);
}
END_TEST

START_TEST(failures_carry_status_and_text)
{
    mc_fault fault;
    ck_assert_int_eq(mc_fail(&fault, MOEC_ERR_RANGE, "%d of %d", 9, 8), MOEC_ERR_RANGE);
    ck_assert_str_eq(fault.text, "9 of 8");
    ck_assert_int_eq(mc_fail(NULL, MOEC_ERR_RANGE, "unheard"), MOEC_ERR_RANGE);
    for (int s = MOEC_OK; s <= MOEC_ERR_INTERNAL; s++) ck_assert_str_ne(moec_status_name((moec_status)s), "unknown");
    ck_assert_str_eq(moec_status_name((moec_status)77), "unknown");
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("base");
    TCase *all = tcase_create("base");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_set_timeout(all, 60);
    tcase_add_test(all, arena_gives_zeroed_aligned_memory);
    tcase_add_test(all, vectors_grow);
    tcase_add_test(all, maps_keep_the_order_of_insertion);
    tcase_add_test(all, hashes_are_the_published_ones);
    tcase_add_test(all, clocks_go_forward);
    tcase_add_test(all, views_compare_and_slice);
    tcase_add_loop_test(all, distances_are_as_counted_by_hand, 0, (int)(sizeof distances / sizeof distances[0]));
    tcase_add_test(all, nearest_offers_only_what_is_near);
    tcase_add_test(all, buffers_grow);
    tcase_add_test(all, doubles_read_back);
    tcase_add_test(all, paths_join);
    tcase_add_loop_test(all, globs_match_paths, 0, (int)(sizeof globs / sizeof globs[0]));
    tcase_add_test(all, lists_of_globs_are_read_in_order);
    tcase_add_test(all, files_are_written_whole);
    tcase_add_test(all, abandoned_files_leave_nothing);
    tcase_add_test(all, a_full_disk_keeps_the_old_file);
    tcase_add_test(all, an_unwritable_directory_is_reported);
    tcase_add_test(all, other_refusals_of_writing);
    tcase_add_test(all, reading_refuses);
    tcase_add_test(all, files_are_mapped);
    tcase_add_test(all, directories_are_made);
    tcase_add_test(all, failures_carry_status_and_text);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
