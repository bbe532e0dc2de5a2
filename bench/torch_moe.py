#!/usr/bin/env python3
"""Forward and backward of MoE layers: moec against every way PyTorch has on this CPU, in f32.

    MOEC_LIBRARY=build/release/libmoec.so python bench/torch_moe.py [--quick] [--layer E,k,D,F] [--tokens T,T] [--threads 2]

Every way computes the same layer (softmax, top k, renorm, SwiGLU) from the same tensors, gives the gradients of x and of all weights, and is
checked against the first before it is timed. Rounds interleave the ways, so that a busy machine hits all of them; times are the least of
the rounds. GFLOP/s count 18 T k D F. `peak` is the rate of a register-only loop of fused multiply-adds in the CPU time of as many threads,
measured between the rounds (the greatest). `cpu` is the time of all processors together for a step; where it is much less
than the threads times the wall clock, the machine was busy with something else.

ways   moec             the module moec.torch.MoE under autograd
       moec buffers     the same layer through moec_train_forward and _backward; gradients are added to the caller's buffers
       eager            transformers' loop over experts                     grouped_mm   transformers with torch's grouped_mm
       batched_mm       transformers, one matrix copied for each choice     padded bmm   all experts padded to the fullest, torch.bmm
       compiled NAME    torch.compile of that way
"""
import argparse
import ctypes
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import moec
import moec.torch

LAYERS = [(8, 2, 1024, 3584), (64, 8, 1024, 512)]
FMA = r"""
#include <stdint.h>
#if defined(__AVX512F__)
typedef float vec __attribute__((vector_size(64)));
#else
typedef float vec __attribute__((vector_size(32)));
#endif
/* 12 independent chains of multiply-adds in variables of their own, since an array would go through memory; returns FLOPs. */
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define BEGIN(i) vec a##i = c + (float)i;
#define TURN(i) a##i = a##i * b + c; __asm__ volatile("" : "+x"(a##i));
#define END(i) sum += a##i;
double fma_loop(int64_t turns, float *out)
{
    vec b = {0}, c = {0}, sum = {0};
    b += 0.999999f; c += 1e-9f;
    EACH(BEGIN)
    for (int64_t t = 0; t < turns; t++) { EACH(TURN) }
    EACH(END)
    *out = sum[0];
    return (double)turns * 12 * 2 * (sizeof(vec) / 4);
}
"""


class Peak:
    def __init__(self, threads):
        self.threads, self.best = threads, 0.0
        folder = tempfile.mkdtemp()
        source, library = os.path.join(folder, "fma.c"), os.path.join(folder, "fma.so")
        with open(source, "w") as f:
            f.write(FMA)
        subprocess.run(["cc", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", source, "-o", library], check=True)
        self.loop = ctypes.CDLL(library).fma_loop
        self.loop.restype, self.loop.argtypes = ctypes.c_double, [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]

    def measure(self):
        rates = [0.0] * self.threads

        def work(i):
            begin = time.thread_time()
            rates[i] = self.loop(2_000_000, ctypes.byref(ctypes.c_float())) / (time.thread_time() - begin)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(self.threads)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        self.best = max(self.best, sum(rates))


# ---- the ways: each gives a function that does a step and returns (y, gradient of x, gradients of the weights) ----------------

def module_way(module, x, dy):
    params = list(module.parameters())

    def step():
        for p in params:
            p.grad = None
        x.grad = None
        y = module(x)
        y.backward(dy)
        return y, x.grad, [p.grad for p in params]

    return step


def transformers_way(block, implementation):
    def make(x, dy):
        block.experts.config._experts_implementation = implementation
        step = module_way(block, x, dy)

        def run():
            block.experts.config._experts_implementation = implementation
            return step()

        return run

    return make


def compiled_way(block, implementation):
    def make(x, dy):
        block.experts.config._experts_implementation = implementation
        torch._dynamo.reset()
        compiled = torch.compile(block)
        params = list(block.parameters())

        def run():
            block.experts.config._experts_implementation = implementation
            for p in params:
                p.grad = None
            x.grad = None
            y = compiled(x)
            y.backward(dy)
            return y, x.grad, [p.grad for p in params]

        return run

    return make


class Padded(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.gate, self.experts, self.k = block.gate, block.experts, block.top_k

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        _, gates, ids = self.gate(x)
        flat = ids.reshape(-1)
        experts = self.experts.down_proj.shape[0]
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=experts)
        starts = counts.cumsum(0) - counts
        width = int(counts.max())
        e = flat[order]
        place = e * width + torch.arange(len(flat)) - starts[e]
        rows = x.new_zeros(experts * width, x.shape[1]).index_copy(0, place, x[order // self.k]).view(experts, width, -1)
        g, u = torch.bmm(rows, self.experts.gate_up_proj.transpose(1, 2)).chunk(2, -1)
        out = torch.bmm(torch.nn.functional.silu(g) * u, self.experts.down_proj.transpose(1, 2)).flatten(0, 1)
        out = out[place] * gates.reshape(-1)[order, None]
        return torch.zeros_like(x).index_add(0, order // self.k, out).view(shape)


def buffers_way(block, threads):
    def make(x, dy):
        module = moec.torch.MoE.from_transformers(block)
        layer = moec.torch._find(module._plan).layer
        tokens = x.shape[0] * x.shape[1]
        symbols = {"T": tokens}
        sizes = layer.sizes(threads, **symbols)
        call = layer.take_call()
        call.shape(symbols)
        saved, workspace = torch.empty(sizes.saved, dtype=torch.uint8), torch.empty(sizes.workspace, dtype=torch.uint8)
        params = [getattr(holder, name) for holder, name, _ in module._slots]
        order = [next(i for i, q in enumerate(params) if q is p) for p in block.parameters()]
        grads = [torch.zeros_like(p) for p in params]
        y, dx = torch.empty_like(x), torch.empty_like(x)
        outputs = [y] + [torch.empty(spec.shape(symbols)) for spec in layer.outputs[1:]]
        call.inputs[0].data = x.data_ptr()
        for i, p in enumerate(params):
            call.params[i], call.param_grads[i] = p.data_ptr(), grads[i].data_ptr()
        for t, o in zip(call.outputs, outputs):
            t.data = o.data_ptr()
        call.cotangents[0].data = dy.data_ptr()
        call.input_grads[0].data = dx.data_ptr()
        call.buffers(moec._lib.threads(threads), saved.data_ptr(), saved.numel(), workspace.data_ptr(), workspace.numel())
        keep = (saved, workspace, outputs, module)

        def step():
            assert keep
            call.forward()
            call.backward(call.input_grads, 1, False)
            return y, dx, [grads[i] for i in order]

        def check():
            for g in grads:
                g.zero_()
            return step()

        step.check = check
        return step

    return make


def ways(block, threads, choices, d, f):
    yield "moec", lambda x, dy: module_way(moec.torch.MoE.from_transformers(block), x, dy)
    yield "moec buffers", buffers_way(block, threads)
    yield "eager", transformers_way(block, "eager")
    yield "grouped_mm", transformers_way(block, "grouped_mm")
    if choices * 3 * d * f * 4 * 2 < 8 << 30:
        yield "batched_mm", transformers_way(block, "batched_mm")
    yield "padded bmm", lambda x, dy: module_way(Padded(block), x, dy)
    yield "compiled grouped_mm", compiled_way(block, "grouped_mm")
    yield "compiled eager", compiled_way(block, "eager")


# ---- measuring ---------------------------------------------------------------------------------------------------------------

def different(a, b):
    return max(float((p - q).detach().abs().max() / q.detach().abs().max().clamp_min(1e-30)) for p, q in zip([a[0], a[1], *a[2]], [b[0], b[1], *b[2]]))


def bench(layer, tokens, a, peak):
    experts, k, d, f = layer
    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=d, intermediate_size=f, num_local_experts=experts, num_experts_per_tok=k)
    config._experts_implementation = "eager"
    block = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(0, 0.02)
    x, dy = torch.randn(1, tokens, d).requires_grad_(), torch.randn(1, tokens, d)
    flops = 18 * tokens * k * d * f
    print(f"\nE={experts} k={k} D={d} F={f} T={tokens}: {flops / 1e9:.1f} GFLOP forward and backward")
    truth = [t.detach().clone() if torch.is_tensor(t) else [g.clone() for g in t] for t in transformers_way(block, "eager")(x, dy)()]
    steps, notes = {}, {}
    for name, make in ways(block, a.threads, tokens * k, d, f):
        if a.only and not any(word in name for word in a.only.split(",")):
            continue
        try:
            begin = time.perf_counter()
            step = make(x, dy)
            got = getattr(step, "check", step)()
            notes[name] = f"first step {time.perf_counter() - begin:.2f} s"
            error = different(got, truth)
            if error > 1e-4:
                notes[name] += f", WRONG by {error:.1e}"
            steps[name] = step
        except Exception as e:
            lines = str(e).strip().splitlines() or [type(e).__name__]
            print(f"  {name}: does not run here ({lines[0][:100]})")
    times = {name: [] for name in steps}
    for _ in range(a.rounds):
        for name, step in steps.items():
            peak.measure()
            begin, used = time.perf_counter(), time.process_time()
            step()
            times[name].append((time.perf_counter() - begin, time.process_time() - used))
    best = {name: min(wall for wall, _ in t) for name, t in times.items()}
    cpu = {name: min(used for _, used in t) for name, t in times.items()}
    other = min((t for name, t in best.items() if not name.startswith("moec")), default=None)
    for name, t in sorted(best.items(), key=lambda item: item[1]):
        ratio = f"  {other / t:5.2f}x the best of PyTorch" if other and name.startswith("moec") else ""
        print(f"  {name:20} {1000 * t:9.1f} ms  cpu {1000 * cpu[name]:9.1f} ms  {flops / t / 1e9:7.1f} GFLOP/s  {100 * flops / t / peak.best:5.1f} % of peak"
              f"  ({notes[name]}){ratio}", flush=True)
    memory(layer, tokens, a)


def resident(field):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def child(sizes):
    """In a process of its own: how much a step makes it grow at most."""
    experts, k, d, f, tokens, threads, recompute = sizes
    torch.set_num_threads(threads)
    layer = moec.torch.MoE(d, f, experts, k, recompute=bool(recompute))
    x, dy = torch.randn(tokens, d).requires_grad_(), torch.randn(tokens, d)
    moec.torch.MoE(16, 16, 4, 2)(torch.randn(64, 16)).sum().backward()  # what the first step of any layer brings along
    before = resident("VmRSS")
    layer(x).backward(dy)
    print(resident("VmHWM") - before)


def memory(layer, tokens, a):
    """What a step takes beyond x and the weights, against the sizes that are known before anything runs (moec mem): kept for backward,
    workspace, gradients; and y and the gradient of x."""
    experts, k, d, f = layer
    for recompute in (0, 1):
        made = moec.layer(moec.texts.moe(d, f, experts, k), recompute=bool(recompute))
        sizes = made.sizes(a.threads, T=tokens)
        gradients = 4 * sum(math.prod(p.shape) for p in made.params)
        formula = sizes.saved + sizes.workspace + gradients + 2 * 4 * tokens * d
        line = ",".join(str(v) for v in (*layer, tokens, a.threads, recompute))
        done = subprocess.run([sys.executable, os.path.abspath(__file__), "--child", line], capture_output=True, text=True)
        grown = int(done.stdout.split()[-1]) if done.returncode == 0 else 0
        print(f"  memory of a step{' with recompute' if recompute else '':15} kept {sizes.saved / tokens:9,.0f} bytes a token, workspace "
              f"{sizes.workspace / 2**20:6.1f} MiB, gradients {gradients / 2**20:6.1f} MiB, together {formula / 2**20:7.1f} MiB; "
              f"measured {grown / 2**20:7.1f} MiB ({100 * grown / formula - 100:+.1f} %)", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    p.add_argument("--layer", action="append", help="E,k,D,F instead of the default ones; may be repeated")
    p.add_argument("--tokens", default="512,2048")
    p.add_argument("--only", help="ways whose name contains one of these words, separated by commas")
    p.add_argument("--child", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        child([int(v) for v in a.child.split(",")])
        return
    torch.set_num_threads(a.threads)
    layers = [tuple(int(v) for v in text.split(",")) for text in a.layer] if a.layer else [(4, 2, 64, 96)] if a.quick else LAYERS
    peak = Peak(a.threads)
    for _ in range(5):
        peak.measure()
    with open("/proc/cpuinfo") as f:
        cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "?")
    print(f"{cpu}, {a.threads} threads, torch {torch.__version__}, moec {moec.__version__} ({moec.library_path()})")
    for layer in layers:
        for tokens in [40] if a.quick else [int(t) for t in a.tokens.split(",")]:
            bench(layer, tokens, a, peak)
    print(f"\npeak: {peak.best / 1e9:.1f} GFLOP/s of fused multiply-adds; greatest resident size "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()
