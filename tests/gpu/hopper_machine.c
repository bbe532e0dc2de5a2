/* See hopper_machine.h. Shared memory is one array that begins at an address that is no multiple of 1024, as on the
 * device; barriers live in a table by address. */
#define _GNU_SOURCE
#include "tests/gpu/hopper_machine.h"

#include "tests/gpu/emulate.h"

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

enum {
    MAX_THREADS = 384,
    LANES = 32,
    WARPGROUP = 128,
    STACK_BYTES = 256 << 10,
    SHARED_BYTES = 227 << 10,
    SHARED_BEGIN = 0x3080,
    MAX_BARRIERS = 32,
    MAX_PRODUCTS = 32,
    MAX_BOXES = 512,
    LINE = 128,
    ROOM_OF_FIFO = 4096,
    REGISTERS = 65536,
    REGISTERS_AT_ENTRY = 168 /* 65536 / 384, in eights */
};

typedef struct barrier {
    unsigned address, count, pending;
    int bytes; /* announced and not yet there */
    unsigned phase;
} barrier;

typedef struct operation { /* of a thread's copies, in order: a copy, or an arrival after the copies before it */
    unsigned to;           /* shared address, or barrier */
    const void *from;
    bool arrival;
} operation;

typedef struct box {
    unsigned to, barrier;
    struct hopper_tensor tensor;
    int at[3];
} box;

typedef struct product {
    float *d;
    int n, accumulate, is_f16, batch;
    uint64_t a, b;
} product;

enum { RUNS, AT_BARRIER, TOGETHER, ENDED };

typedef struct thread {
    emulate_context context;
    void *fake_stack;
    struct mc_host_index index;
    int lane, state;
    unsigned barrier, parity; /* AT_BARRIER */
    operation *fifo;
    int fifo_from, fifo_to;
    product products[MAX_PRODUCTS];
    int n_products, batch, registers;
    bool fenced, begun;
} thread;

typedef struct warp {
    int n_here;
    enum mc_host_kind kind;
    void *lanes[LANES];
} warp;

static struct {
    const struct hopper_launch *launch;
    struct mc_host_state *host;
    void (*body)(void *);
    void *call;
    emulate_context main;
    void *main_fake_stack;
    const void *main_stack;
    size_t main_bytes;
    unsigned char *stacks, *shared;
    thread threads[MAX_THREADS];
    warp warps[MAX_THREADS / LANES];
    int n_at_block, n_ended;
    barrier barriers[MAX_BARRIERS];
    int n_barriers;
    box boxes[MAX_BOXES];
    int n_boxes, n_copies;
    bool copied; /* somebody writes shared memory by copies of threads */
    thread *current;
    uint64_t seed;
    long long counts[3];
    bool failed;
} run;

static char error[512];

/* ---- fibers ------------------------------------------------------------------------------------------------------ */

static void
to_main(void)
{
    thread *t = run.current;
#if SANITIZED
    __sanitizer_start_switch_fiber(&t->fake_stack, run.main_stack, run.main_bytes);
#endif
    emulate_switch(&t->context, &run.main);
#if SANITIZED
    __sanitizer_finish_switch_fiber(t->fake_stack, NULL, NULL);
#endif
}

static unsigned char *
stack_of(const thread *t)
{
    return run.stacks + (size_t)(t - run.threads) * STACK_BYTES;
}

static void
to_thread(thread *t)
{
    run.current = t;
    run.host->thread = t->index;
    run.host->lane = t->lane;
#if SANITIZED
    __sanitizer_start_switch_fiber(&run.main_fake_stack, stack_of(t), STACK_BYTES);
#endif
    emulate_switch(&run.main, &t->context);
#if SANITIZED
    __sanitizer_finish_switch_fiber(run.main_fake_stack, NULL, NULL);
#endif
}

static void
thread_main(void)
{
#if SANITIZED
    __sanitizer_finish_switch_fiber(NULL, &run.main_stack, &run.main_bytes);
#endif
    run.body(run.call);
    run.current->state = ENDED;
    run.n_ended++;
    for (;;) to_main();
}

static void
fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = snprintf(error, sizeof error, "block %u, thread %u: ", run.host->block.x, run.host->thread.x);
    vsnprintf(error + n, sizeof error - (size_t)n, format, args);
    va_end(args);
    run.failed = true;
    for (;;) to_main();
}

static unsigned
random_below(unsigned n)
{
    run.seed = run.seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((run.seed >> 33) % n);
}

/* ---- shared memory ------------------------------------------------------------------------------------------------
 */

unsigned
hopper_machine_address(const void *p)
{
    const unsigned char *at = p;
    if (at >= run.shared && at < run.shared + SHARED_BYTES) return (unsigned)(at - run.shared) + SHARED_BEGIN;
    return (unsigned)(uintptr_t)p | 0x80000000u; /* a variable: nothing but barriers is reached this way */
}

static unsigned char *
shared_at(unsigned address, unsigned n_bytes)
{
    if (address % n_bytes || address < SHARED_BEGIN || address + n_bytes > SHARED_BEGIN + SHARED_BYTES)
        fail("shared address %x", address);
    return run.shared + (address - SHARED_BEGIN);
}

/* PTX ISA, 128-byte swizzle: of an address, bits 4 to 6 become themselves xor bits 7 to 9. */
static unsigned
swizzled(unsigned address)
{
    return address ^ ((address >> 7 & 7) << 4);
}

/* ---- barriers -----------------------------------------------------------------------------------------------------
 */

static barrier *
find_barrier(unsigned address)
{
    for (int i = 0; i < run.n_barriers; i++)
        if (run.barriers[i].address == address) return &run.barriers[i];
    fail("no barrier at %x", address);
    return NULL;
}

void
hopper_machine_barrier_init(unsigned address, unsigned arrivals)
{
    if (run.n_barriers == MAX_BARRIERS) fail("too many barriers");
    run.barriers[run.n_barriers++] = (barrier){address, arrivals, arrivals, 0, 0};
}

static void
barrier_step(barrier *b)
{
    if (b->pending || b->bytes) return;
    b->pending = b->count;
    b->phase ^= 1;
}

static void
arrive(barrier *b)
{
    if (!b->pending) fail("more arrivals at a barrier than it counts");
    b->pending--;
    barrier_step(b);
}

void
hopper_machine_arrive(unsigned address, unsigned bytes)
{
    barrier *b = find_barrier(address);
    b->bytes += (int)bytes;
    arrive(b);
}

void
hopper_machine_wait(unsigned address, unsigned parity)
{
    thread *t = run.current;
    t->fenced = false;
    t->barrier = address;
    t->parity = parity;
    if (find_barrier(address)->phase != parity && random_below(4)) return;
    t->state = AT_BARRIER;
    to_main();
}

/* ---- copies -------------------------------------------------------------------------------------------------------
 */

static void
push(operation o)
{
    thread *t = run.current;
    if (t->fifo_to == ROOM_OF_FIFO) {
        memmove(t->fifo, t->fifo + t->fifo_from, (size_t)(t->fifo_to - t->fifo_from) * sizeof *t->fifo);
        t->fifo_to -= t->fifo_from;
        t->fifo_from = 0;
        if (t->fifo_to == ROOM_OF_FIFO) fail("too many copies under way");
    }
    t->fifo[t->fifo_to++] = o;
    run.n_copies++;
}

static void
pop(thread *t)
{
    operation o = t->fifo[t->fifo_from++];
    run.n_copies--;
    if (o.arrival)
        arrive(find_barrier(o.to));
    else if (o.from)
        memcpy(shared_at(o.to, 16), o.from, 16);
    else
        memset(shared_at(o.to, 16), 0, 16);
}

void
hopper_machine_copy(unsigned shared, const void *global, int valid)
{
    if ((uintptr_t)global % 16) fail("a copy from an address that is no multiple of 16");
    memset(shared_at(shared, 16), 0xFF, 16);
    push((operation){shared, valid ? global : NULL, false});
    run.copied = true;
    run.counts[1]++;
}

void
hopper_machine_arrive_copies(unsigned address)
{
    push((operation){address, NULL, true});
}

void
hopper_machine_copies_wait(void)
{
    thread *t = run.current;
    while (t->fifo_from < t->fifo_to) pop(t);
}

/* The address of 16-byte chunk `chunk` of line `line` of a box. */
static unsigned
box_address(const box *b, int line, int chunk)
{
    return swizzled(b->to + (unsigned)(line * LINE + chunk * 16));
}

void
hopper_machine_tensor(unsigned shared, const void *map, int x, int y, int z, unsigned address)
{
    box b = {.to = shared, .barrier = address, .at = {x, y, z < 0 ? 0 : z}};
    memcpy(&b.tensor, map, sizeof b.tensor);
    const struct hopper_tensor *t = &b.tensor;
    if (t->rank != (z < 0 ? 2 : 3)) fail("coordinates of another rank than the map's");
    if (t->box[0] * 2 != LINE) fail("a box whose rows are not as long as the swizzle");
    if (shared % 128) fail("a box at an address that is no multiple of 128");
    if (t->dims[0] % 8 || (uintptr_t)t->base % 16) fail("a tensor that no map can describe");
    if (run.n_boxes == MAX_BOXES) fail("too many boxes under way");
    for (int line = 0; line < t->box[1]; line++)
        for (int chunk = 0; chunk < 8; chunk++) memset(shared_at(box_address(&b, line, chunk), 16), 0xFF, 16);
    run.boxes[run.n_boxes++] = b;
    run.counts[2]++;
}

static void
finish_box(int number)
{
    box b = run.boxes[number];
    run.boxes[number] = run.boxes[--run.n_boxes];
    const struct hopper_tensor *t = &b.tensor;
    const uint16_t *base = t->base;
    for (int line = 0; line < t->box[1]; line++)
        for (int e = 0; e < t->box[0]; e++) {
            int64_t x = b.at[0] + e, y = b.at[1] + line, z = b.at[2];
            bool inside = x < t->dims[0] && y < t->dims[1] && (t->rank == 2 || z < t->dims[2]);
            uint16_t value = inside ? base[(z * t->dims[1] + y) * t->dims[0] + x] : 0;
            memcpy(shared_at(box_address(&b, line, e / 8), 16) + e % 8 * 2, &value, 2);
        }
    barrier *at = find_barrier(b.barrier);
    at->bytes -= t->box[0] * t->box[1] * 2;
    barrier_step(at);
}

/* Something that is under way may be done. */
static void
finish_something(void)
{
    if (run.n_boxes && (random_below(2) || !run.n_copies)) {
        finish_box((int)random_below((unsigned)run.n_boxes));
        return;
    }
    if (!run.n_copies) return;
    unsigned first = random_below(MAX_THREADS);
    for (unsigned i = 0; i < MAX_THREADS; i++) {
        thread *t = &run.threads[(first + i) % MAX_THREADS];
        if (t->fifo_from == t->fifo_to) continue;
        for (unsigned n = 1 + random_below(12); n && t->fifo_from < t->fifo_to; n--) pop(t);
        return;
    }
}

/* ---- registers and wgmma ------------------------------------------------------------------------------------------
 */

void
hopper_machine_registers(int n, int more)
{
    thread *t = run.current;
    if (n % 8 || n < 24 || n > 256) fail("setmaxnreg of %d", n);
    if (more != (n > t->registers)) fail("setmaxnreg %s to %d from %d", more ? "up" : "down", n, t->registers);
    t->registers = n;
}

void
hopper_machine_fence_async(void)
{
    run.current->fenced = true;
}

static void together(enum mc_host_kind kind, void *mine);

/* This and the next ones are .sync.aligned: the warp does them as one. */
void
hopper_machine_wgmma_begin(void)
{
    together(MC_HOST_SYNC_WARP, NULL);
    run.current->begun = true;
}

static float
widen(uint16_t bits, int is_f16)
{
    uint32_t all = (uint32_t)bits << 16;
    if (is_f16) {
        uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3FF;
        if (!exponent) return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
        all = sign | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | fraction << 13;
    }
    float x;
    memcpy(&x, &all, sizeof x);
    return x;
}

/* 16 k of row `row` of a K-major operand in the 128-byte swizzle. PTX ISA, matrix descriptor: groups of 8 rows lie the
 * stride apart, rows of a group 128 bytes; what the swizzle works on is the address. */
static void
operand_row(uint64_t descriptor, int row, int is_f16, float out[16])
{
    unsigned start = (unsigned)(descriptor & 0x3FFF) << 4, stride = (unsigned)(descriptor >> 32 & 0x3FFF) << 4;
    if (descriptor >> 62 != 1) fail("a descriptor of another swizzle");
    if (descriptor >> 49 & 7) fail("a descriptor with a base offset");
    unsigned at = start + (unsigned)(row / 8) * stride + (unsigned)(row % 8) * LINE;
    for (unsigned chunk = 0; chunk < 2; chunk++) {
        uint16_t values[8];
        memcpy(values, shared_at(swizzled(at + chunk * 16), 16), 16);
        for (int i = 0; i < 8; i++) out[chunk * 8 + (unsigned)i] = widen(values[i], is_f16);
    }
}

/* This thread's part of the 64 x n result. PTX ISA, "WGMMA .m64nNk16 register fragment layout for accumulator": warp w
 * of the warpgroup has rows 16 w on; lane l has columns 2 (l % 4) and the next one of every 8, in rows l / 4 and l / 4
 * + 8. */
static void
multiply(const product *p)
{
    int lane = run.current->lane, rows = (int)run.current->index.x % WARPGROUP / LANES * 16;
    float a[2][16], b[16];
    for (int half = 0; half < 2; half++) operand_row(p->a, rows + lane / 4 + half * 8, p->is_f16, a[half]);
    for (int column = 0; column < p->n / 4; column++) {
        operand_row(p->b, column / 2 * 8 + lane % 4 * 2 + column % 2, p->is_f16, b);
        for (int half = 0; half < 2; half++) {
            float *d = &p->d[column / 2 * 4 + half * 2 + column % 2], sum = p->accumulate ? *d : 0;
            for (int k = 0; k < 16; k++) sum += a[half][k] * b[k];
            *d = sum;
        }
    }
    run.counts[0]++;
}

void
hopper_machine_wgmma(float *d, int n, unsigned long long a, unsigned long long b, int accumulate, int is_f16)
{
    thread *t = run.current;
    if (!t->begun) fail("a wgmma without wgmma.fence before it");
    if (run.copied && !t->fenced) fail("a wgmma reads what threads copied, without fence.proxy.async");
    if (t->n_products == MAX_PRODUCTS) fail("too many wgmma under way");
    product p = {d, n, accumulate, is_f16, t->batch, a, b};
    if (run.launch->late)
        t->products[t->n_products++] = p;
    else
        multiply(&p);
}

void
hopper_machine_wgmma_commit(void)
{
    run.current->batch++;
    run.current->begun = false;
}

void
hopper_machine_wgmma_wait(int n)
{
    thread *t = run.current;
    int left = 0;
    for (int i = 0; i < t->n_products; i++) {
        if (t->products[i].batch < t->batch - n)
            multiply(&t->products[i]);
        else
            t->products[left++] = t->products[i];
    }
    t->n_products = left;
    together(MC_HOST_SYNC_WARP, NULL);
}

/* ---- threads together ---------------------------------------------------------------------------------------------
 */

static void
release(int from, int n)
{
    for (int i = from; i < from + n; i++)
        if (run.threads[i].state == TOGETHER) run.threads[i].state = RUNS;
}

static bool
block_is_together(void)
{
    return run.n_at_block && run.n_at_block + run.n_ended == run.launch->threads;
}

static void
together(enum mc_host_kind kind, void *mine)
{
    thread *t = run.current;
    t->state = TOGETHER;
    if (kind == MC_HOST_SYNC_BLOCK) {
        run.n_at_block++;
        to_main();
        return;
    }
    int number = (int)(t - run.threads);
    warp *w = &run.warps[number / LANES];
    if (w->n_here && w->kind != kind) fail("threads of a warp do different things together");
    w->kind = kind;
    w->lanes[t->lane] = mine;
    if (++w->n_here < LANES) {
        to_main();
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
    fail("%s", what);
}

/* ---- blocks -------------------------------------------------------------------------------------------------------
 */

static bool
may_go_on(const thread *t)
{
    return t->state == RUNS || (t->state == AT_BARRIER && find_barrier(t->barrier)->phase != t->parity);
}

static void
release_block(void)
{
    if (!block_is_together()) return;
    run.n_at_block = 0;
    release(0, run.launch->threads);
}

static bool
step(void)
{
    int n = run.launch->threads, first = (int)random_below((unsigned)n);
    release_block();
    for (int i = 0; i < n; i++) {
        thread *t = &run.threads[(first + i) % n];
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
    run.host->block = (struct mc_host_index){(unsigned)block, 0, 0};
    run.n_at_block = run.n_ended = run.n_barriers = run.n_boxes = run.n_copies = 0;
    run.copied = false;
    memset(run.shared, 0xFF, SHARED_BYTES);
    memset(run.warps, 0, sizeof run.warps);
    for (int i = 0; i < run.launch->threads; i++) {
        thread *t = &run.threads[i];
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
    if (run.n_boxes || run.n_copies) {
        snprintf(error, sizeof error, "the block ended with copies under way");
        run.failed = true;
    }
    int registers = 0;
    for (int i = 0; i < run.launch->threads; i++) registers += run.threads[i].registers;
    if (registers > REGISTERS) {
        snprintf(error, sizeof error, "%d registers", registers);
        run.failed = true;
    }
}

static void
run_block(int block)
{
    begin_block(block);
    while (run.n_ended < run.launch->threads && !run.failed) {
        if (!random_below(3)) finish_something();
        if (run.failed || step()) continue;
        if (run.n_boxes || run.n_copies) {
            finish_something();
            continue;
        }
        snprintf(error, sizeof error, "block %d: the threads wait for each other", block);
        run.failed = true;
    }
    if (!run.failed) check_end();
}

static bool
make_room(void)
{
    if (run.stacks) return true;
    void *p = mmap(NULL, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    run.shared = aligned_alloc(1024, (size_t)SHARED_BYTES + 1024 - SHARED_BYTES % 1024);
    if (p == MAP_FAILED || !run.shared) return false;
    for (int i = 0; i < MAX_THREADS; i++) {
        run.threads[i].fifo = malloc(ROOM_OF_FIFO * sizeof(operation));
        if (!run.threads[i].fifo) return false;
    }
    run.stacks = p;
    return true;
}

int
hopper_machine_run(const struct hopper_launch *launch, struct mc_host_state *host, void (*body)(void *), void *call)
{
    if (!make_room()) {
        snprintf(error, sizeof error, "no memory");
        return 0;
    }
    run.launch = launch;
    run.host = host;
    run.body = body;
    run.call = call;
    run.seed = launch->seed;
    run.failed = false;
    host->block_dim = (struct mc_host_index){(unsigned)launch->threads, 1, 1};
    host->grid_dim = (struct mc_host_index){(unsigned)launch->grid, 1, 1};
    host->dynamic_shared = run.shared;
    host->together = together;
    host->copy = plain_copy;
    host->commit = plain_commit;
    host->wait = plain_wait;
    host->fail = plain_fail;
    for (int block = 0; block < launch->grid && !run.failed; block++) run_block(block);
    return !run.failed;
}

const char *
hopper_machine_error(void)
{
    return error;
}

void
hopper_machine_counts(long long counts[3])
{
    memcpy(counts, run.counts, sizeof run.counts);
}
