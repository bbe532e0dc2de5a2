/* See hopper_machine.h: threads as fibers, and blocks. */
#define _GNU_SOURCE
#include "tests/gpu/hopper_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

struct machine machine;
static char error[512];

/* ---- fibers ------------------------------------------------------------------------------------------------------ */

void
machine_leave(void)
{
    thread *t = machine.current;
#if SANITIZED
    __sanitizer_start_switch_fiber(&t->fake_stack, machine.main_stack, machine.main_bytes);
#endif
    emulate_switch(&t->context, &machine.main);
#if SANITIZED
    __sanitizer_finish_switch_fiber(t->fake_stack, NULL, NULL);
#endif
}

static unsigned char *
stack_of(const thread *t)
{
    return machine.stacks + (size_t)(t - machine.threads) * STACK_BYTES;
}

static void
to_thread(thread *t)
{
    machine.current = t;
    machine.host->thread = t->index;
    machine.host->lane = t->lane;
#if SANITIZED
    __sanitizer_start_switch_fiber(&machine.main_fake_stack, stack_of(t), STACK_BYTES);
#endif
    emulate_switch(&machine.main, &t->context);
#if SANITIZED
    __sanitizer_finish_switch_fiber(machine.main_fake_stack, NULL, NULL);
#endif
}

static void
thread_main(void)
{
#if SANITIZED
    __sanitizer_finish_switch_fiber(NULL, &machine.main_stack, &machine.main_bytes);
#endif
    machine.body(machine.call);
    machine.current->state = ENDED;
    machine.n_ended++;
    for (;;) machine_leave();
}

void
machine_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = snprintf(error, sizeof error, "block %u, thread %u: ", machine.host->block.x, machine.host->thread.x);
    vsnprintf(error + n, sizeof error - (size_t)n, format, args);
    va_end(args);
    machine.failed = true;
    for (;;) machine_leave();
}

unsigned
machine_random_below(unsigned n)
{
    machine.seed = machine.seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((machine.seed >> 33) % n);
}

/* ---- threads together ---------------------------------------------------------------------------------------------
 */

static void
release(int from, int n)
{
    for (int i = from; i < from + n; i++)
        if (machine.threads[i].state == TOGETHER) machine.threads[i].state = RUNS;
}

static bool
block_is_together(void)
{
    return machine.n_at_block && machine.n_at_block + machine.n_ended == machine.launch->threads;
}

void
machine_together(enum mc_host_kind kind, void *mine)
{
    thread *t = machine.current;
    t->state = TOGETHER;
    if (kind == MC_HOST_SYNC_BLOCK) {
        machine.n_at_block++;
        machine_leave();
        return;
    }
    int number = (int)(t - machine.threads);
    warp *w = &machine.warps[number / LANES];
    if (w->n_here && w->kind != kind) machine_fail("threads of a warp do different things together");
    w->kind = kind;
    w->lanes[t->lane] = mine;
    if (++w->n_here < LANES) {
        machine_leave();
        return;
    }
    w->n_here = 0;
    emulate_warp_work(kind, w->lanes, LANES);
    release(number / LANES * LANES, LANES);
}

static void
plain_copy(void *to, const void *from)
{
    if (from)
        memcpy(to, from, 16);
    else
        memset(to, 0, 16);
}

static void
plain_commit(void)
{
}

static void
plain_wait(int n)
{
    (void)n;
}

static void
plain_fail(const char *what)
{
    machine_fail("%s", what);
}

/* ---- blocks -------------------------------------------------------------------------------------------------------
 */

static bool
may_go_on(const thread *t)
{
    return t->state == RUNS || (t->state == AT_BARRIER && machine_find_barrier(t->barrier)->phase != t->parity);
}

static void
release_block(void)
{
    if (!block_is_together()) return;
    machine.n_at_block = 0;
    release(0, machine.launch->threads);
}

static bool
step(void)
{
    int n = machine.launch->threads, first = (int)machine_random_below((unsigned)n);
    release_block();
    for (int i = 0; i < n; i++) {
        thread *t = &machine.threads[(first + i) % n];
        if (!may_go_on(t)) continue;
        t->state = RUNS;
        to_thread(t);
        return true;
    }
    return false;
}

static void
begin_block(int block)
{
    machine.host->block = (struct mc_host_index){(unsigned)block, 0, 0};
    machine.n_at_block = machine.n_ended = machine.n_barriers = machine.n_boxes = machine.n_copies = 0;
    machine.copied = false;
    memset(machine.shared, 0xFF, SHARED_BYTES);
    memset(machine.warps, 0, sizeof machine.warps);
    for (int i = 0; i < machine.launch->threads; i++) {
        thread *t = &machine.threads[i];
        t->index = (struct mc_host_index){(unsigned)i, 0, 0};
        t->lane = i % LANES;
        t->state = RUNS;
        t->fifo_from = t->fifo_to = t->n_products = t->batch = 0;
        t->registers = REGISTERS_AT_ENTRY;
        t->fenced = t->begun = false;
        emulate_context_init(&t->context, stack_of(t), STACK_BYTES, thread_main);
    }
}

static void
check_end(void)
{
    if (machine.n_boxes || machine.n_copies) {
        snprintf(error, sizeof error, "the block ended with copies under way");
        machine.failed = true;
    }
    int registers = 0;
    for (int i = 0; i < machine.launch->threads; i++) registers += machine.threads[i].registers;
    if (registers > REGISTERS) {
        snprintf(error, sizeof error, "%d registers", registers);
        machine.failed = true;
    }
}

static void
run_block(int block)
{
    begin_block(block);
    while (machine.n_ended < machine.launch->threads && !machine.failed) {
        if (!machine_random_below(3)) machine_finish_something();
        if (machine.failed || step()) continue;
        if (machine.n_boxes || machine.n_copies) {
            machine_finish_something();
            continue;
        }
        snprintf(error, sizeof error, "block %d: the threads wait for each other", block);
        machine.failed = true;
    }
    if (!machine.failed) check_end();
}

static bool
make_room(void)
{
    if (machine.stacks) return true;
    void *p = mmap(NULL, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    machine.shared = aligned_alloc(1024, (size_t)SHARED_BYTES + 1024 - SHARED_BYTES % 1024);
    if (p == MAP_FAILED || !machine.shared) return false;
    for (int i = 0; i < MAX_THREADS; i++) {
        machine.threads[i].fifo = malloc(ROOM_OF_FIFO * sizeof(operation));
        if (!machine.threads[i].fifo) return false;
    }
    machine.stacks = p;
    return true;
}

int
hopper_machine_run(const struct hopper_launch *launch, struct mc_host_state *host, void (*body)(void *), void *call)
{
    if (!make_room()) {
        snprintf(error, sizeof error, "no memory");
        return 0;
    }
    machine.launch = launch;
    machine.host = host;
    machine.body = body;
    machine.call = call;
    machine.seed = launch->seed;
    machine.failed = false;
    host->block_dim = (struct mc_host_index){(unsigned)launch->threads, 1, 1};
    host->grid_dim = (struct mc_host_index){(unsigned)launch->grid, 1, 1};
    host->dynamic_shared = machine.shared;
    host->together = machine_together;
    host->copy = plain_copy;
    host->commit = plain_commit;
    host->wait = plain_wait;
    host->fail = plain_fail;
    for (int block = 0; block < launch->grid && !machine.failed; block++) run_block(block);
    return !machine.failed;
}

const char *
hopper_machine_error(void)
{
    return error;
}

void
hopper_machine_counts(long long counts[3])
{
    memcpy(counts, machine.counts, sizeof machine.counts);
}
