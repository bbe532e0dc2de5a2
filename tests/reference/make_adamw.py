#!/usr/bin/env python3
"""Writes tests/reference/adamw/adamw.json: trajectories of PyTorch's AdamW with clip_grad_norm_, for tests/unit/test_trainer.c.

    python tests/reference/make_adamw.py

Numbers are f32, written so that they read back exactly. Each case has the settings, p before the first step, and for each
step the gradient, the learning rate, the gradient's norm and p afterwards.
"""
import json
import math
import pathlib

import torch

STEPS, SIZE = 12, 24
CASES = [
    {"betas": [0.9, 0.999], "eps": 1e-8, "decay": 0.0, "clip": 0.0, "lr": 1e-3},
    {"betas": [0.9, 0.95], "eps": 1e-8, "decay": 0.1, "clip": 0.5, "lr": 3e-2},
    {"betas": [0.0, 0.5], "eps": 1e-3, "decay": 0.5, "clip": 100.0, "lr": 0.1},
]


def trajectory(case, seed):
    rng = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(SIZE, generator=rng))
    optimizer = torch.optim.AdamW([p], lr=case["lr"], betas=tuple(case["betas"]), eps=case["eps"],
                                  weight_decay=case["decay"], foreach=False, fused=False)
    out = dict(case, before=p.tolist(), steps=[])
    for i in range(STEPS):
        lr = case["lr"] * (1 + math.cos(math.pi * i / STEPS)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        p.grad = torch.randn(SIZE, generator=rng) * 10.0 ** (i % 4 - 2)
        if i == 5:
            p.grad.zero_()
        grad = p.grad.tolist()
        norm = torch.linalg.vector_norm(p.grad.double()).item()
        if case["clip"]:
            torch.nn.utils.clip_grad_norm_([p], case["clip"])
        optimizer.step()
        out["steps"].append({"lr": lr, "norm": norm, "gradient": grad, "after": p.tolist()})
    return out


def main():
    path = pathlib.Path(__file__).parent / "adamw" / "adamw.json"
    path.write_text(json.dumps([trajectory(case, i) for i, case in enumerate(CASES)], indent=0) + "\n")


if __name__ == "__main__":
    main()
