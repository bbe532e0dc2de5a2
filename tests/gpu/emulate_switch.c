/* Going from one stack to another. A few instructions where the processor is known: ucontext makes two system calls for
 * each switch. */
#include "tests/gpu/emulate.h"

#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#if defined(__x86_64__)

__asm__(".text\n"
        ".p2align 4\n"
        ".type emulate_switch_stack, @function\n"
        "emulate_switch_stack:\n" /* rdi: where to leave the stack, rsi: the stack to take */
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emulate_switch_stack, . - emulate_switch_stack\n");
enum { SAVED_WORDS = 6, RETURN_WORD = 6, FRAME_WORDS = 8 }; /* one more: the stack is 8 off 16 at an entry */
#define OWN_SWITCH 1

#elif defined(__aarch64__)

__asm__(".text\n"
        ".p2align 4\n"
        ".type emulate_switch_stack, %function\n"
        "emulate_switch_stack:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp]\n    stp x21, x22, [sp, #16]\n    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n    stp x27, x28, [sp, #64]\n    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n    stp d10, d11, [sp, #112]\n    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n    str x9, [x0]\n    mov sp, x1\n"
        "    ldp x19, x20, [sp]\n    ldp x21, x22, [sp, #16]\n    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n    ldp x27, x28, [sp, #64]\n    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n    ldp d10, d11, [sp, #112]\n    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size emulate_switch_stack, . - emulate_switch_stack\n");
enum { SAVED_WORDS = 20, RETURN_WORD = 11, FRAME_WORDS = 20 };
#define OWN_SWITCH 1

#endif

#ifdef OWN_SWITCH

void emulate_switch_stack(void **from, void *to);

void
emulate_switch(emulate_context *from, emulate_context *to)
{
    emulate_switch_stack(&from->sp, to->sp);
}

void
emulate_context_init(emulate_context *c, void *stack, size_t n_bytes, void (*entry)(void))
{
    uintptr_t top = ((uintptr_t)stack + n_bytes) & ~(uintptr_t)15;
    void **frame = (void **)top - FRAME_WORDS;
    memset(frame, 0, FRAME_WORDS * sizeof *frame);
    memcpy(&frame[RETURN_WORD], &entry, sizeof entry);
    c->sp = frame;
}

#else

void
emulate_switch(emulate_context *from, emulate_context *to)
{
    if (!from->sp) from->sp = malloc(sizeof(ucontext_t));
    swapcontext(from->sp, to->sp);
}

void
emulate_context_init(emulate_context *c, void *stack, size_t n_bytes, void (*entry)(void))
{
    if (!c->sp) c->sp = malloc(sizeof(ucontext_t));
    ucontext_t *u = c->sp;
    getcontext(u);
    u->uc_stack.ss_sp = stack;
    u->uc_stack.ss_size = n_bytes;
    u->uc_link = NULL;
    makecontext(u, entry, 0);
}

#endif
