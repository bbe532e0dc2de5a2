/* Blocks of threads as fibers: see emulate.h. A fiber takes a thread that has not begun, runs it, and takes the next;
 * so a kernel whose threads never wait is a loop. Where a thread waits, its fiber is left and another goes on: first
 * those that may go on again, then those that have not begun. When there are neither, the threads wait for something
 * that can never come, which is an error of the kernel. */
#define _GNU_SOURCE
#include "tests/gpu/emulate.h"

#include "runtime/abi.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

enum {
    MAX_THREADS = 1024,
    LANES = 32,
    STACK_BYTES = SANITIZED ? 256 << 10 : 64 << 10,
    GUARD_BYTES = 64 << 10,
    /* Stacks begin at different offsets, or their first lines would all share the same few places of the cache. */
    COLOURS = 61,
    COLOUR_BYTES = 192
};

typedef struct fiber {
    struct fiber *next; /* free */
    emulate_context context;
    unsigned char *stack;
    size_t n_bytes;
    void *fake_stack; /* of the address sanitizer, while the fiber is left */
} fiber;

typedef struct copy {
    void *to;
    const void *from;
    int group;
} copy;

typedef struct warp {
    int n_lanes, n_here;
    enum mc_host_kind kind;
    void *lanes[LANES];
    int order[LANES], n_ordered; /* of its threads */
} warp;

typedef struct thread {
    fiber *fiber;
    warp *warp;
    enum mc_host_kind waits;
    struct mc_host_index index;
    int lane, group;
    copy *copies;
    size_t n_copies, copies_room;
} thread;

static struct {
    struct mc_host_state *host;
    emulate_kernel *kernel;
    const emulate_launch *launch;
    void *const *params;
    thread threads[MAX_THREADS];
    warp warps[MAX_THREADS / LANES];
    int order[MAX_THREADS], ready[MAX_THREADS];
    int n_threads, n_begun, n_done, n_at_barrier, ready_head, n_ready;
    thread *current;
    fiber main, *on, *free;
    fiber fibers[MAX_THREADS + 1];
    int n_fibers;
    uint64_t n_switches;
    bool failed;
} run;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- stacks ---------------------------------------------------------------------------------------------------- */

static void
switch_to(fiber *to)
{
    fiber *from = run.on;
    run.on = to;
    run.n_switches++;
#if SANITIZED
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->n_bytes);
#endif
    emulate_switch(&from->context, &to->context);
#if SANITIZED
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

static void fiber_main(void);

static void
fiber_begin(fiber *f)
{
    f->fake_stack = NULL;
#if SANITIZED
    __asan_unpoison_memory_region(f->stack, f->n_bytes);
#endif
    emulate_context_init(&f->context, f->stack, f->n_bytes, fiber_main);
    f->next = run.free;
    run.free = f;
}

/* NULL when there is no memory. */
static fiber *
fiber_get(void)
{
    if (!run.free) {
        size_t room = STACK_BYTES + COLOURS * COLOUR_BYTES;
        room = (room + 0xFFFF) & ~(size_t)0xFFFF;
        unsigned char *p =
            mmap(NULL, GUARD_BYTES + room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return NULL;
        mprotect(p, GUARD_BYTES, PROT_NONE);
        fiber *f = &run.fibers[run.n_fibers++];
        f->stack = p + GUARD_BYTES;
        f->n_bytes = room - (size_t)(run.n_fibers % COLOURS * COLOUR_BYTES);
        fiber_begin(f);
    }
    fiber *f = run.free;
    run.free = f->next;
    return f;
}

/* ---- the end of a launch ---------------------------------------------------------------------------------------- */

/* Back to emulate_run; the stacks of all threads are given up. */
static void
give_up(void)
{
    run.failed = true;
    switch_to(&run.main);
    abort();
}

static void
host_fail(const char *what)
{
    const struct mc_host_state *h = run.host;
    emulate_say("kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s", run.kernel->image.name, h->block.x,
                h->block.y, h->block.z, h->thread.x, h->thread.y, h->thread.z, what);
    give_up();
}

static const char *const kind_names[] = {
    [MC_HOST_NOTHING] = "nothing",
    [MC_HOST_SYNC_WARP] = "warp_sync",
    [MC_HOST_SHFL] = "shfl",
    [MC_HOST_SHFL_XOR] = "shfl_xor",
    [MC_HOST_SHFL_UP] = "shfl_up",
    [MC_HOST_SHFL_DOWN] = "shfl_down",
    [MC_HOST_BALLOT] = "ballot or any",
    [MC_HOST_LDMATRIX] = "ldmatrix_x4",
    [MC_HOST_LDMATRIX_TRANS] = "ldmatrix_x4_trans",
    [MC_HOST_MMA_BF16] = "mma_bf16",
    [MC_HOST_MMA_F16] = "mma_f16",
    [MC_HOST_MMA_TF32] = "mma_tf32",
    [MC_HOST_SYNC_BLOCK] = "block_sync",
};

static void
fail_stuck(void)
{
    const struct mc_host_state *h = run.host;
    int n[MC_HOST_SYNC_BLOCK + 1] = {0};
    char where[512] = "";
    size_t at = 0;
    for (int i = 0; i < run.n_threads; i++) n[run.threads[i].waits]++;
    for (int k = 1; k <= MC_HOST_SYNC_BLOCK; k++)
        if (n[k]) at += (size_t)snprintf(where + at, sizeof where - at, ", %d wait in %s", n[k], kind_names[k]);
    emulate_say("kernel %s, block (%u, %u, %u): not all threads come together: of %d%s, %d have ended",
                run.kernel->image.name, h->block.x, h->block.y, h->block.z, run.n_threads, where, run.n_done);
    give_up();
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

static void
set_current(thread *t)
{
    run.current = t;
    run.host->thread = t->index;
    run.host->lane = t->lane;
}

static void
finish_copies(thread *t, int before)
{
    size_t left = 0;
    for (size_t i = 0; i < t->n_copies; i++) {
        const copy *c = &t->copies[i];
        if (c->group >= before)
            t->copies[left++] = *c;
        else if (c->from)
            memcpy(c->to, c->from, 16);
        else
            memset(c->to, 0, 16);
    }
    t->n_copies = left;
}

static void
run_thread(thread *t)
{
    set_current(t);
    t->fiber = run.on;
    const moec_gpu_args *args = run.params[0];
    ((void (*)(moec_gpu_args))run.kernel->function)(*args);
    finish_copies(t, INT32_MAX);
    run.n_done++;
}

static thread *
next_ready(void)
{
    thread *t = &run.threads[run.ready[run.ready_head]];
    run.ready_head = (run.ready_head + 1) % MAX_THREADS;
    run.n_ready--;
    set_current(t);
    return t;
}

static void
fiber_main(void)
{
#if SANITIZED
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    for (;;) {
        if (!run.n_ready && run.n_begun < run.n_threads) {
            run_thread(&run.threads[run.order[run.n_begun++]]);
            continue;
        }
        if (!run.n_ready && run.n_done < run.n_threads) fail_stuck();
        fiber *me = run.on;
        me->next = run.free;
        run.free = me;
        switch_to(run.n_ready ? next_ready()->fiber : &run.main);
    }
}

/* Leaves the thread that runs, until it is released. */
static void
pause_thread(void)
{
    if (run.n_ready) {
        switch_to(next_ready()->fiber);
    } else if (run.n_begun < run.n_threads) {
        fiber *f = fiber_get();
        if (!f) host_fail("no memory for its stack");
        switch_to(f);
    } else {
        fail_stuck();
    }
}

/* These threads wait no more; the one that runs goes on at once. */
static void
release(const int *threads, int n)
{
    for (int i = 0; i < n; i++) {
        thread *t = &run.threads[threads[i]];
        t->waits = MC_HOST_NOTHING;
        if (t != run.current) run.ready[(run.ready_head + run.n_ready++) % MAX_THREADS] = threads[i];
    }
}

static void
host_block_sync(void)
{
    run.current->waits = MC_HOST_SYNC_BLOCK;
    if (++run.n_at_barrier < run.n_threads) {
        pause_thread();
        return;
    }
    run.n_at_barrier = 0;
    release(run.order, run.n_threads);
}

static void
host_together(enum mc_host_kind kind, void *mine)
{
    if (kind == MC_HOST_SYNC_BLOCK) {
        host_block_sync();
        return;
    }
    thread *t = run.current;
    warp *w = t->warp;
    if (w->n_here && w->kind != kind) {
        char what[96];
        snprintf(what, sizeof what, "is in %s while others of its warp are in %s", kind_names[kind],
                 kind_names[w->kind]);
        host_fail(what);
    }
    if (kind >= MC_HOST_LDMATRIX && w->n_lanes < LANES) host_fail("a matrix operation in a warp of less than 32");
    w->kind = kind;
    w->lanes[t->lane] = mine;
    t->waits = kind;
    if (++w->n_here < w->n_lanes) {
        pause_thread();
        return;
    }
    w->n_here = 0;
    emulate_warp_work(kind, w->lanes, w->n_lanes);
    release(w->order, w->n_lanes);
}

/* ---- copies ------------------------------------------------------------------------------------------------------ */

/* The bytes arrive as late as they may, and until then there is something else. */
static void
host_copy(void *to, const void *from)
{
    thread *t = run.current;
    if (t->n_copies == t->copies_room) {
        size_t room = t->copies_room ? 2 * t->copies_room : 16;
        copy *more = realloc(t->copies, room * sizeof *more);
        if (!more) host_fail("no memory for its copies");
        t->copies = more;
        t->copies_room = room;
    }
    memset(to, 0xFF, 16);
    t->copies[t->n_copies++] = (copy){to, from, t->group};
}

static void
host_commit(void)
{
    run.current->group++;
}

static void
host_wait(int n)
{
    finish_copies(run.current, run.current->group - n);
}

/* ---- a block ----------------------------------------------------------------------------------------------------- */

/* What nobody has written is NaN. Not memset: the sanitizer keeps room between variables, and this goes over it. */
__attribute__((no_sanitize_address)) static void
poison(unsigned char *from, const unsigned char *to)
{
    for (; from < to && (uintptr_t)from % 8; from++) *(volatile unsigned char *)from = 0xFF;
    for (; from + 8 <= to; from += 8) *(volatile uint64_t *)(void *)from = UINT64_MAX;
    for (; from < to; from++) *(volatile unsigned char *)from = 0xFF;
}

static void
order_threads(uint32_t how)
{
    int n = run.n_threads;
    for (int i = 0; i < n; i++) run.order[i] = how % 3 == 1 ? n - 1 - i : i;
    uint32_t seed = how * 2654435761u + 12345;
    for (int i = n - 1; how % 3 == 2 && i > 0; i--) {
        seed = seed * 1664525u + 1013904223u;
        int j = (int)((seed >> 8) % (uint32_t)(i + 1)), kept = run.order[i];
        run.order[i] = run.order[j];
        run.order[j] = kept;
    }
    for (int i = 0; i < MAX_THREADS / LANES; i++) run.warps[i].n_ordered = 0;
    for (int i = 0; i < n; i++) {
        warp *w = run.threads[run.order[i]].warp;
        w->order[w->n_ordered++] = run.order[i];
    }
}

static void
run_block(uint32_t how)
{
    struct mc_host_state *h = run.host;
    poison(h->shared, h->shared_end);
    poison(h->dynamic_shared, h->dynamic_shared + run.launch->shared_bytes);
    order_threads(how);
    run.n_begun = run.n_done = run.n_at_barrier = run.n_ready = 0;
    for (int i = 0; i < run.n_threads; i++) {
        run.threads[i].waits = MC_HOST_NOTHING;
        run.threads[i].group = 0;
        run.threads[i].n_copies = 0;
    }
    for (int i = 0; i < MAX_THREADS / LANES; i++) run.warps[i].n_here = 0;
    fiber *f = fiber_get();
    if (f) {
        switch_to(f);
        return;
    }
    emulate_say("kernel %s: no memory for stacks", run.kernel->image.name);
    run.failed = true;
}

static void
set_up(emulate_kernel *kernel, const emulate_launch *l, void *const *params)
{
    run.kernel = kernel;
    run.host = kernel->host;
    run.launch = l;
    run.params = params;
    run.n_threads = (int)(l->block[0] * l->block[1] * l->block[2]);
    run.failed = false;
    run.on = &run.main;
    for (int i = 0; i < run.n_threads; i++) {
        uint32_t at = (uint32_t)i, x = l->block[0], y = l->block[1];
        thread *t = &run.threads[i];
        t->index = (struct mc_host_index){at % x, at / x % y, at / x / y};
        t->lane = i % LANES;
        t->warp = &run.warps[i / LANES];
        t->warp->n_lanes = t->lane + 1;
    }
    struct mc_host_state *h = run.host;
    h->block_dim = (struct mc_host_index){l->block[0], l->block[1], l->block[2]};
    h->grid_dim = (struct mc_host_index){l->grid[0], l->grid[1], l->grid[2]};
    h->together = host_together;
    h->copy = host_copy;
    h->commit = host_commit;
    h->wait = host_wait;
    h->fail = host_fail;
}

/* Every other fiber stands somewhere in the kernel that failed: all begin anew. */
static void
reset_fibers(void)
{
    run.free = NULL;
    for (int i = 0; i < run.n_fibers; i++) fiber_begin(&run.fibers[i]);
}

#if SANITIZED
static void
find_own_stack(void)
{
    pthread_attr_t attributes;
    void *stack = NULL;
    size_t n_bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &n_bytes);
        pthread_attr_destroy(&attributes);
    }
    run.main.stack = stack;
    run.main.n_bytes = n_bytes;
}
#endif

uint64_t
emulate_switches(void)
{
    return run.n_switches;
}

bool
emulate_run(emulate_kernel *kernel, const emulate_launch *l, void *const *params)
{
    void *shared = NULL;
    if ((uint64_t)l->block[0] * l->block[1] * l->block[2] - 1 >= kernel->image.n_threads) {
        emulate_say("kernel %s: a block of %u x %u x %u threads", kernel->image.name, l->block[0], l->block[1],
                    l->block[2]);
        return false;
    }
    if (l->shared_bytes && posix_memalign(&shared, 128, l->shared_bytes) != 0) {
        emulate_say("kernel %s: no memory for %u bytes of shared memory", kernel->image.name, l->shared_bytes);
        return false;
    }
    pthread_mutex_lock(&lock);
#if SANITIZED
    find_own_stack();
#endif
    set_up(kernel, l, params);
    run.host->dynamic_shared = shared;
    uint64_t n = (uint64_t)l->grid[0] * l->grid[1] * l->grid[2];
    for (uint64_t i = 0; i < n && !run.failed; i++) {
        run.host->block = (struct mc_host_index){(uint32_t)(i % l->grid[0]), (uint32_t)(i / l->grid[0] % l->grid[1]),
                                                 (uint32_t)(i / l->grid[0] / l->grid[1])};
        run_block((uint32_t)i + l->order);
    }
    bool good = !run.failed;
    if (!good) reset_fibers();
    pthread_mutex_unlock(&lock);
    free(shared);
    return good;
}
