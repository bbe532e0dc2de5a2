#!/usr/bin/env python3
"""Trains a small transformers Mixtral twice, side by side: as it comes, and with its MoE blocks replaced by moec's.

    python examples/torch_training/train.py                  # 200 steps; prints both losses and times
    python examples/torch_training/train.py --text my.txt --steps 1000 --only moec

Both begin with the same weights and see the same batches, so their losses follow each other to rounding; the run ends with status 1 when they
differ by more than --tolerance in any step. The text is read byte by byte; by default it is the part of the King James Bible that lies
in examples/kjv. Needs torch, transformers and moec (pip install, or PYTHONPATH=python with MOEC_LIBRARY=build/libmoec.so).
"""
import argparse
import copy
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

try:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from moec.torch import replace_moe_blocks
except ImportError as e:
    sys.exit(f"train.py: {e}; see the first lines of {__file__}")


def make_model(a):
    torch.manual_seed(a.seed)
    config = MixtralConfig(vocab_size=256, hidden_size=a.width, intermediate_size=a.expert, num_hidden_layers=a.layers,
                           num_attention_heads=a.width // 32, num_key_value_heads=max(1, a.width // 64), num_local_experts=8,
                           num_experts_per_tok=2, max_position_embeddings=a.context, attention_dropout=0.0)
    return MixtralForCausalLM(config)


def batches(text, a):
    """Seeded by step, so that any two runs see the same ones."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    for step in range(a.steps):
        generator = torch.Generator().manual_seed(a.seed * 1_000_003 + step)
        starts = torch.randint(0, len(data) - a.context - 1, (a.batch,), generator=generator)
        yield torch.stack([data[s:s + a.context + 1] for s in starts.tolist()])


class Run:
    def __init__(self, name, model, a):
        self.name, self.model, self.seconds = name, model, []
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.1)

    def step(self, batch):
        begin = time.perf_counter()
        logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), batch[:, 1:].reshape(-1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - begin)
        return loss.item()

    def milliseconds(self):
        steady = sorted(self.seconds[1:] or self.seconds)
        return 1000 * steady[len(steady) // 2]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--text", default=os.path.join(HERE, "..", "kjv", "heldout.bin"), help="any file; read as bytes")
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--context", type=int, default=128)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--expert", type=int, default=256, help="width of an expert")
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--seed", type=int, default=1611)
    p.add_argument("--threads", type=int, help="default: torch's")
    p.add_argument("--tolerance", type=float, default=1e-4, help="of the losses' difference in every step")
    p.add_argument("--only", choices=["moec", "transformers"], help="one of the two instead of both")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    with open(a.text, "rb") as f:
        text = f.read()
    if len(text) < a.context + 2:
        sys.exit(f"train.py: {a.text} is shorter than one sequence")

    original = make_model(a)
    runs = []
    if a.only != "moec":
        runs.append(Run("transformers", copy.deepcopy(original), a))
    if a.only != "transformers":
        begin = time.perf_counter()
        replaced = replace_moe_blocks(original)
        print(f"{len(replaced)} MoE blocks are moec's, one compiled plan, after {1000 * (time.perf_counter() - begin):.0f} ms")
        runs.append(Run("moec", original, a))
    print(f"{sum(p.numel() for p in original.parameters()):,} parameters, {a.batch} x {a.context} bytes a step, {torch.get_num_threads()} threads")
    worst = 0.0
    for step, batch in enumerate(batches(text, a)):
        order = runs if step % 2 else runs[::-1]  # neither always runs on the other's warm cache
        losses = {run.name: run.step(batch) for run in order}
        worst = max(worst, max(losses.values()) - min(losses.values()))
        if step % 20 == 0 or step == a.steps - 1:
            print(f"step {step:4}  " + "  ".join(f"{name} {loss:.6f}" for name, loss in sorted(losses.items()))
                  + (f"  greatest difference so far {worst:.1e}" if len(runs) > 1 else ""), flush=True)
    for run in runs:
        print(f"{run.name}: {run.milliseconds():.1f} ms a step (median)")
    if len(runs) > 1:
        print(f"greatest difference of the losses in a step: {worst:.2e} (allowed {a.tolerance:.0e})")
    sys.exit(0 if worst <= a.tolerance else 1)


if __name__ == "__main__":
    main()
