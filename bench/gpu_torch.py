#!/usr/bin/env python3
"""MoE layers on a GPU by PyTorch, at the shapes of bench/gpu_shapes.def, in bf16: what moec's bench (gpu_layer.c) is set beside.

    python bench/gpu_torch.py [--train] [--peak] [--ways eager,compiled,transformers] [NAME...]

--peak prints one line first, "peak N": TFLOP/s of an 8192 x 8192 x 8192 bf16 product on random data, the best of some rounds.
Ways: eager is index_select, torch's grouped_mm, SwiGLU, grouped_mm, index_add; compiled is torch.compile of it; transformers is Qwen3-MoE's block
with its grouped_mm experts. All use the same random routing as their input gives. The layer is timed whole (router, top-k, sort,
products, combine), in CUDA graphs where it can be captured, by events; least and median of the rounds. Work: 6 T K D F forward, 18 with
backward. Every way's result is compared with a loop over the experts in f32 first (relative Frobenius error).
"""
import argparse
import os
import re
import statistics
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS = 15


def shapes():
    text = open(os.path.join(HERE, "gpu_shapes.def")).read()
    return [(n, *map(int, numbers)) for n, *numbers in re.findall(r'^GPU_SHAPE\("([^"]+)", *(\d+), *(\d+), *(\d+), *(\d+), *(\d+)\)', text, re.M)]


class Layer(torch.nn.Module):
    def __init__(self, d, f, e, k):
        super().__init__()
        new = lambda *s: torch.nn.Parameter(torch.randn(*s, device="cuda", dtype=torch.bfloat16) / s[-1] ** 0.5)
        self.k, self.experts = k, e
        self.router, self.gate, self.up, self.down = new(e, d), new(e, f, d), new(e, f, d), new(e, d, f)

    def route(self, x):
        p = F.linear(x.float(), self.router.float()).softmax(-1)
        w, ids = p.topk(self.k, -1)
        return w / w.sum(-1, keepdim=True), ids

    def forward(self, x):
        w, ids = self.route(x)
        order = ids.reshape(-1).argsort(stable=True)
        tokens = order // self.k
        counts = torch.zeros(self.experts, device=x.device, dtype=torch.int32).scatter_add_(
            0, ids.reshape(-1), torch.ones_like(ids.reshape(-1), dtype=torch.int32))
        offsets = counts.cumsum(0).to(torch.int32)
        rows = x.index_select(0, tokens)
        grouped = getattr(F, "grouped_mm", None) or torch._grouped_mm
        h = F.silu(grouped(rows, self.gate.transpose(1, 2), offs=offsets)) * grouped(rows, self.up.transpose(1, 2), offs=offsets)
        y = grouped(h, self.down.transpose(1, 2), offs=offsets) * w.reshape(-1)[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add_(0, tokens, y)

    def loop(self, x):
        w, ids = self.route(x)
        out = torch.zeros(x.shape, device=x.device)
        for e in range(self.experts):
            t, j = (ids == e).nonzero(as_tuple=True)
            if len(t):
                r = x[t].float()
                h = F.silu(r @ self.gate[e].float().T) * (r @ self.up[e].float().T)
                out.index_add_(0, t, (h @ self.down[e].float().T) * w[t, j, None])
        return out


def transformers_layer(layer, d, f, e, k):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
    config = Qwen3MoeConfig(hidden_size=d, moe_intermediate_size=f, num_experts=e, num_experts_per_tok=k, norm_topk_prob=True)
    config._experts_implementation = "grouped_mm"
    block = Qwen3MoeSparseMoeBlock(config).to("cuda", torch.bfloat16)
    with torch.no_grad():
        block.gate.weight.copy_(layer.router)
        block.experts.gate_up_proj.copy_(torch.cat([layer.gate, layer.up], 1))
        block.experts.down_proj.copy_(layer.down)

    def run(x):
        y = block(x[None])
        return (y[0] if isinstance(y, tuple) else y)[0]

    return run, block


def timed(step, graph):
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    if graph:
        try:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()
            run = captured.replay
        except Exception:
            torch.cuda.synchronize()
            run = step
    else:
        run = step
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times, repeats = [], 1
    for i in range(-2, ROUNDS):
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        ms = begin.elapsed_time(end) / repeats
        if i == -2:
            repeats = max(1, min(2000, int(300 / ROUNDS / max(ms, 1e-3))))
        elif i >= 0:
            times.append(ms)
    return min(times), statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--ways", default="eager,compiled,transformers")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_torch: torch sees no GPU")
    torch.manual_seed(0)
    if options.peak:
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        print(f"peak {2 * 8192 ** 3 / timed(lambda: a @ b, False)[0] / 1e9:.1f}", flush=True)
        if not options.names and options.ways == "":
            return
    for name, t, d, f, e, k in shapes():
        if options.names and not any(n in name for n in options.names):
            continue
        layer = Layer(d, f, e, k)
        x = torch.randn(t, d, device="cuda", dtype=torch.bfloat16, requires_grad=options.train)
        dy = torch.randn_like(x)
        with torch.no_grad():
            want = layer.loop(x)
        for way in filter(None, options.ways.split(",")):
            try:
                module = layer
                run = layer
                if way == "compiled":
                    run = torch.compile(layer, dynamic=False)
                elif way == "transformers":
                    run, module = transformers_layer(layer, d, f, e, k)
                with torch.no_grad():
                    error = ((run(x).float() - want).norm() / want.norm()).item()

                def step():
                    if not options.train:
                        with torch.no_grad():
                            return run(x)
                    x.grad = None
                    module.zero_grad(set_to_none=True)
                    run(x).backward(dy)

                least, median = timed(step, not options.train)
                flops = (18 if options.train else 6) * t * k * d * f
                print(f"{name:16} {way:12} {'fwd+bwd' if options.train else 'fwd'}  {least:9.4f} ms  median {median:9.4f}  "
                      f"{flops / least / 1e9:7.1f} TFLOP/s  error {error:.1e}", flush=True)
            except Exception as why:  # one way that fails must not hide the others
                print(f"{name:16} {way:12} failed: {type(why).__name__}: {str(why).splitlines()[0] if str(why) else ''}", flush=True)
        del layer, x, dy, want
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
