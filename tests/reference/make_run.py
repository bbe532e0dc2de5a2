#!/usr/bin/env python3
"""Writes tests/reference/adamw/run.json: what PyTorch's loss is, step by step, in the run of tests/unit/test_trainer_cpu.c.

    python tests/reference/make_run.py

transformers' Mixtral goes on from examples/kjv in f32, with the batches, the schedule and the optimizer of `moec train`: windows
of examples/kjv/heldout.bin drawn by the same generator, AdamW with decay on matrices only, gradients clipped to a norm of 1.
"""
import json
import math
import pathlib

import numpy
import torch
from transformers import MixtralForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STEPS, BATCH, LENGTH, SEED = 10, 4, 64, 11
LR, BETAS, DECAY, CLIP, WARMUP, FLOOR = 1e-3, (0.9, 0.95), 0.1, 1.0, 3, 0.1
MASK = (1 << 64) - 1


def bits(seed, stream, index):
    z = (seed + 0x9E3779B97F4A7C15 * (1 + index) + 0xD1B54A32D192ED03 * stream) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def stream_of(name):
    h = 0xCBF29CE484222325
    for c in name.encode():
        h = (h ^ c) * 0x100000001B3 & MASK
    return h


def batch(text, step):
    begins = [bits(SEED, stream_of("batches"), step * BATCH + k) * (len(text) - LENGTH) >> 64 for k in range(BATCH)]
    return torch.tensor(numpy.array([text[b : b + LENGTH + 1] for b in begins], dtype=numpy.int64))


def rate(step):
    if step < WARMUP:
        return LR * step / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return LR * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)


def main():
    text = numpy.frombuffer((ROOT / "examples/kjv/heldout.bin").read_bytes(), dtype=numpy.uint8)
    model = MixtralForCausalLM.from_pretrained(ROOT / "examples/kjv", torch_dtype=torch.float32, attn_implementation="eager")
    decayed = [p for n, p in model.named_parameters() if p.dim() >= 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() >= 2 and "embed" not in n)]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=1e-8, foreach=False)
    steps = []
    for step in range(1, STEPS + 1):
        ids = batch(text, step - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        steps.append({"loss": loss.item(), "grad_norm": norm.item(), "lr": rate(step)})
        print(steps[-1])
    text = json.dumps({"batch": BATCH, "length": LENGTH, "seed": SEED, "steps": steps}, indent=1)
    (ROOT / "tests/reference/adamw/run.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
