/* See hopper_machine.h: shared memory, which is one array that begins at an address that is no multiple of 1024, as on
 * the device; barriers, in a table by address; copies that are done later. */
#include "tests/gpu/hopper_state.h"

#include <string.h>

/* ---- shared memory ------------------------------------------------------------------------------------------------
 */

unsigned
hopper_machine_address(const void *p)
{
    const unsigned char *at = p;
    if (at >= machine.shared && at < machine.shared + SHARED_BYTES)
        return (unsigned)(at - machine.shared) + SHARED_BEGIN;
    return (unsigned)(uintptr_t)p | 0x80000000u; /* a variable: nothing but barriers is reached this way */
}

unsigned char *
machine_shared_at(unsigned address, unsigned n_bytes)
{
    if (address % n_bytes || address < SHARED_BEGIN || address + n_bytes > SHARED_BEGIN + SHARED_BYTES)
        machine_fail("shared address %x", address);
    return machine.shared + (address - SHARED_BEGIN);
}

/* PTX ISA, 128-byte swizzle: of an address, bits 4 to 6 become themselves xor bits 7 to 9. */
unsigned
machine_swizzled(unsigned address)
{
    return address ^ ((address >> 7 & 7) << 4);
}

/* ---- barriers -----------------------------------------------------------------------------------------------------
 */

barrier *
machine_find_barrier(unsigned address)
{
    for (int i = 0; i < machine.n_barriers; i++)
        if (machine.barriers[i].address == address) return &machine.barriers[i];
    machine_fail("no barrier at %x", address);
    return NULL;
}

void
hopper_machine_barrier_init(unsigned address, unsigned arrivals)
{
    if (machine.n_barriers == MAX_BARRIERS) machine_fail("too many barriers");
    machine.barriers[machine.n_barriers++] = (barrier){address, arrivals, arrivals, 0, 0};
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
    if (!b->pending) machine_fail("more arrivals at a barrier than it counts");
    b->pending--;
    barrier_step(b);
}

void
hopper_machine_arrive(unsigned address, unsigned bytes)
{
    barrier *b = machine_find_barrier(address);
    b->bytes += (int)bytes;
    arrive(b);
}

void
hopper_machine_wait(unsigned address, unsigned parity)
{
    thread *t = machine.current;
    t->fenced = false;
    t->barrier = address;
    t->parity = parity;
    if (machine_find_barrier(address)->phase != parity && machine_random_below(4)) return;
    t->state = AT_BARRIER;
    machine_leave();
}

/* ---- copies -------------------------------------------------------------------------------------------------------
 */

static void
push(operation o)
{
    thread *t = machine.current;
    if (t->fifo_to == ROOM_OF_FIFO) {
        memmove(t->fifo, t->fifo + t->fifo_from, (size_t)(t->fifo_to - t->fifo_from) * sizeof *t->fifo);
        t->fifo_to -= t->fifo_from;
        t->fifo_from = 0;
        if (t->fifo_to == ROOM_OF_FIFO) machine_fail("too many copies under way");
    }
    t->fifo[t->fifo_to++] = o;
    machine.n_copies++;
}

static void
pop(thread *t)
{
    operation o = t->fifo[t->fifo_from++];
    machine.n_copies--;
    if (o.arrival)
        arrive(machine_find_barrier(o.to));
    else if (o.from)
        memcpy(machine_shared_at(o.to, 16), o.from, 16);
    else
        memset(machine_shared_at(o.to, 16), 0, 16);
}

void
hopper_machine_copy(unsigned shared, const void *global, int valid)
{
    if ((uintptr_t)global % 16) machine_fail("a copy from an address that is no multiple of 16");
    memset(machine_shared_at(shared, 16), 0xFF, 16);
    push((operation){shared, valid ? global : NULL, false});
    machine.copied = true;
    machine.counts[1]++;
}

void
hopper_machine_arrive_copies(unsigned address)
{
    push((operation){address, NULL, true});
}

void
hopper_machine_copies_wait(void)
{
    thread *t = machine.current;
    while (t->fifo_from < t->fifo_to) pop(t);
}

/* The address of 16-byte chunk `chunk` of line `line` of a box. */
static unsigned
box_address(const box *b, int line, int chunk)
{
    return machine_swizzled(b->to + (unsigned)(line * LINE + chunk * 16));
}

void
hopper_machine_tensor(unsigned shared, const void *map, int x, int y, int z, unsigned address)
{
    box b = {.to = shared, .barrier = address, .at = {x, y, z < 0 ? 0 : z}};
    memcpy(&b.tensor, map, sizeof b.tensor);
    const struct hopper_tensor *t = &b.tensor;
    if (t->rank != (z < 0 ? 2 : 3)) machine_fail("coordinates of another rank than the map's");
    if (t->box[0] * 2 != LINE) machine_fail("a box whose rows are not as long as the swizzle");
    if (shared % 128) machine_fail("a box at an address that is no multiple of 128");
    if (t->dims[0] % 8 || (uintptr_t)t->base % 16) machine_fail("a tensor that no map can describe");
    if (machine.n_boxes == MAX_BOXES) machine_fail("too many boxes under way");
    for (int line = 0; line < t->box[1]; line++)
        for (int chunk = 0; chunk < 8; chunk++) memset(machine_shared_at(box_address(&b, line, chunk), 16), 0xFF, 16);
    machine.boxes[machine.n_boxes++] = b;
    machine.counts[2]++;
}

static void
finish_box(int number)
{
    box b = machine.boxes[number];
    machine.boxes[number] = machine.boxes[--machine.n_boxes];
    const struct hopper_tensor *t = &b.tensor;
    const uint16_t *base = t->base;
    for (int line = 0; line < t->box[1]; line++)
        for (int e = 0; e < t->box[0]; e++) {
            int64_t x = b.at[0] + e, y = b.at[1] + line, z = b.at[2];
            bool inside = x < t->dims[0] && y < t->dims[1] && (t->rank == 2 || z < t->dims[2]);
            uint16_t value = inside ? base[(z * t->dims[1] + y) * t->dims[0] + x] : 0;
            memcpy(machine_shared_at(box_address(&b, line, e / 8), 16) + e % 8 * 2, &value, 2);
        }
    barrier *at = machine_find_barrier(b.barrier);
    at->bytes -= t->box[0] * t->box[1] * 2;
    barrier_step(at);
}

/* Something that is under way may be done. */
void
machine_finish_something(void)
{
    if (machine.n_boxes && (machine_random_below(2) || !machine.n_copies)) {
        finish_box((int)machine_random_below((unsigned)machine.n_boxes));
        return;
    }
    if (!machine.n_copies) return;
    unsigned first = machine_random_below(MAX_THREADS);
    for (unsigned i = 0; i < MAX_THREADS; i++) {
        thread *t = &machine.threads[(first + i) % MAX_THREADS];
        if (t->fifo_from == t->fifo_to) continue;
        for (unsigned n = 1 + machine_random_below(12); n && t->fifo_from < t->fifo_to; n--) pop(t);
        return;
    }
}
