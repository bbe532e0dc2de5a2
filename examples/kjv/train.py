#!/usr/bin/env python3
"""Train the demo model: a small Mixtral on the King James Bible, byte by byte.

    python train.py train            # extract the text, train, checkpoint
    python train.py export           # checkpoint -> config.json, model.safetensors, heldout.bin, expected.json
    python train.py verify           # compare this file's model with transformers' MixtralForCausalLM
    python train.py text -o kjv.txt  # only the text

Needs: python >= 3.9, torch, numpy, safetensors (and transformers for `verify`), and the Debian
packages bible-kjv and bible-kjv-text for the text (if they are not installed they are downloaded
with `apt-get download` and unpacked, not installed, into the work directory).

The network is the Mixtral architecture with the released file layout: one tensor per expert per
projection.  Everything that is random is seeded by (seed, step), so a run can be cut and resumed
(`train --resume`) and sees the same batches as an uncut one.

Learning rate: linear warm-up, constant up to a share (--hold) of the steps, then linear down to 0.  A
run that turns out to be too slow can be cut at a step (--stop) and cooled down from there: resume it
with a smaller --steps and a --hold that ends where it was cut.  README.md has the commands used.
"""
import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))

CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 256,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "router_aux_loss_coef": 0.01,
    "router_jitter_noise": 0.0,
    "output_router_logits": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
}
CONTEXT = 256
HELDOUT_BYTES = 65536
PROMPT = b"And Moses said unto the people, "
GREEDY = 64


# ---------------------------------------------------------------- the text

def raw_text(work):
    """What the `bible` program prints for the whole book, without line wrapping."""
    verses = "ge1:1-rev22:21"
    exe = shutil.which("bible") or shutil.which("bible", path="/usr/bin:/usr/games")
    cmd = [exe, "-l0", verses]
    if not exe or not os.path.exists("/usr/lib/bible.data"):
        root = os.path.join(work, "bible-kjv")
        exe = os.path.join(root, "usr/bin/bible")
        if not os.path.exists(exe):
            if not shutil.which("apt-get"):
                sys.exit("train.py: no `bible` program; install Debian's bible-kjv or give --text FILE")
            os.makedirs(root, exist_ok=True)
            subprocess.run(["apt-get", "download", "bible-kjv", "bible-kjv-text"], cwd=root, check=True)
            for deb in sorted(os.listdir(root)):
                if deb.endswith(".deb"):
                    subprocess.run(["dpkg", "-x", deb, "."], cwd=root, check=True)
        cmd = [exe, "-p", os.path.join(root, "usr/lib"), "-l0", verses]
    p = subprocess.run(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return p.stdout.decode("ascii")


def chapters(raw):
    """[(title, bytes)]: a title line, then one line per verse ("number text"), then an empty line."""
    out, title, lines = [], None, []
    for line in raw.split("\n") + ["\x00"]:
        verse = re.match(r"^\s+(\d+)\s+(.*)$", line)
        if verse:
            lines.append("%s %s\n" % (verse.group(1), re.sub(r"\s+", " ", verse.group(2)).strip()))
        elif line.strip():
            if title is not None and lines:
                out.append((title, (title + "\n" + "".join(lines) + "\n").encode("ascii")))
            title, lines = line.strip(), []
    if len(out) != 1189:
        sys.exit("train.py: expected 1189 chapters, found %d" % len(out))
    return out


def corpus(work, text=None):
    """(training bytes, held-out bytes); every 64th chapter is held out."""
    raw = open(text).read() if text else raw_text(work)
    ch = chapters(raw)
    train = b"".join(c for i, (_, c) in enumerate(ch) if i % 64 != 40)
    held = b"".join(c for i, (_, c) in enumerate(ch) if i % 64 == 40)
    names = [t for i, (t, _) in enumerate(ch) if i % 64 == 40]
    assert len(held) >= HELDOUT_BYTES, len(held)
    return train, held[:HELDOUT_BYTES], names


# ---------------------------------------------------------------- the model

class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, h = c["hidden_size"], c["head_dim"]
        self.nh, self.nk, self.h = c["num_attention_heads"], c["num_key_value_heads"], h
        self.q_proj = nn.Linear(d, self.nh * h, bias=False)
        self.k_proj = nn.Linear(d, self.nk * h, bias=False)
        self.v_proj = nn.Linear(d, self.nk * h, bias=False)
        self.o_proj = nn.Linear(self.nh * h, d, bias=False)

    def forward(self, x, cos, sin):
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, self.nh, self.h).transpose(1, 2)
        k = self.k_proj(x).view(b, s, self.nk, self.h).transpose(1, 2)
        v = self.v_proj(x).view(b, s, self.nk, self.h).transpose(1, 2)

        def rot(t):  # half style: pairs (i, i + h/2)
            a, c = t.chunk(2, -1)
            return torch.cat((a * cos - c * sin, c * cos + a * sin), -1)

        q, k = rot(q), rot(k)
        r = self.nh // self.nk
        k, v = k.repeat_interleave(r, 1), v.repeat_interleave(r, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, s, -1))


class Moe(nn.Module):
    """softmax | top k | renorm, SwiGLU experts; no token is ever dropped."""

    def __init__(self, c):
        super().__init__()
        d, f, e = c["hidden_size"], c["intermediate_size"], c["num_local_experts"]
        self.e, self.k = e, c["num_experts_per_tok"]
        self.gate = nn.Linear(d, e, bias=False)
        self.w13 = nn.Parameter(torch.empty(e, 2 * f, d))  # rows: w1 (gate), then w3 (up)
        self.w2 = nn.Parameter(torch.empty(e, d, f))

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probs = self.gate(x).softmax(-1)
        val, idx = probs.topk(self.k, -1)
        w = val / val.sum(-1, keepdim=True)
        flat = idx.reshape(-1)
        order = flat.argsort(stable=True)
        count = torch.bincount(flat, minlength=self.e)
        token = order // self.k
        parts = x.index_select(0, token).split(count.tolist())
        ys = []
        for e, xe in enumerate(parts):
            g, u = (xe @ self.w13[e].t()).chunk(2, -1)
            ys.append((F.silu(g) * u) @ self.w2[e].t())
        y = torch.cat(ys) * w.reshape(-1)[order].unsqueeze(1)
        out = torch.zeros_like(x).index_add(0, token, y)
        # Switch's balance term: E * sum_e share_e * mean probability_e (1 when even)
        share = count.to(x.dtype) / flat.numel()
        self.aux = self.e * (share * probs.mean(0)).sum()
        self.share = share
        return out.view(shape)


class RMSNorm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.block_sparse_moe = Moe(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.block_sparse_moe(self.post_attention_layernorm(x))


class Mixtral(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        h = c["head_dim"]
        inv = 1.0 / c["rope_theta"] ** (torch.arange(0, h, 2).float() / h)
        a = torch.arange(c["max_position_embeddings"]).float()[:, None] * inv
        self.register_buffer("cos", a.cos(), persistent=False)
        self.register_buffer("sin", a.sin(), persistent=False)
        for n, p in self.named_parameters():
            if p.dim() > 1:
                out = n.endswith(("o_proj.weight", ".w2"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * c["num_hidden_layers"]) * 2 if out else 0.04)

    def forward(self, ids):
        s = ids.shape[1]
        cos, sin = self.cos[:s], self.sin[:s]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))

    def moes(self):
        return [layer.block_sparse_moe for layer in self.layers]


# ---------------------------------------------------------------- released layout

def released(model, dtype=torch.bfloat16):
    """State as released Mixtral files name it."""
    out = {}
    for name, t in model.state_dict().items():
        if name != "lm_head.weight":
            name = "model." + name
        t = t.detach().to(dtype)
        if name.endswith(".w13"):
            for e in range(t.shape[0]):
                w1, w3 = t[e].chunk(2, 0)
                base = name[:-4] + ".experts.%d." % e
                out[base + "w1.weight"], out[base + "w3.weight"] = w1.clone(), w3.clone()
        elif name.endswith(".w2"):
            for e in range(t.shape[0]):
                out[name[:-3] + ".experts.%d.w2.weight" % e] = t[e].clone()
        else:
            out[name] = t.clone()
    return out


def load_released(directory):
    """This file's model with the weights of a released directory, in f32."""
    from safetensors.torch import load_file
    c = json.load(open(os.path.join(directory, "config.json")))
    model, st = Mixtral(c), load_file(os.path.join(directory, "model.safetensors"))
    st = {k: v.float() for k, v in st.items()}
    sd = {}
    for name in model.state_dict():
        full = name if name == "lm_head.weight" else "model." + name
        E = range(c["num_local_experts"])
        if full.endswith(".w13"):
            b = full[:-4] + ".experts.%d."
            sd[name] = torch.stack([torch.cat([st.pop(b % e + "w1.weight"), st.pop(b % e + "w3.weight")]) for e in E])
        elif full.endswith(".w2"):
            sd[name] = torch.stack([st.pop(full[:-3] + ".experts.%d.w2.weight" % e) for e in E])
        else:
            sd[name] = st.pop(full)
    assert not st, sorted(st)
    model.load_state_dict(sd)
    return model.eval()


# ---------------------------------------------------------------- measuring

@torch.no_grad()
def bits_per_byte(logits_of, data, window=CONTEXT, batch=32):
    """Consecutive non-overlapping windows; in each, positions 1..window-1 are predicted from the
    bytes before them in the same window.  A last incomplete window is left out."""
    n = len(data) // window
    ids = torch.from_numpy(np.frombuffer(data[:n * window], np.uint8).astype(np.int64)).view(n, window)
    nats = 0.0
    for i in range(0, n, batch):
        x = ids[i:i + batch]
        lg = logits_of(x)[:, :-1].reshape(-1, 256).double()
        nats += F.cross_entropy(lg, x[:, 1:].reshape(-1), reduction="sum").item()
    count = n * (window - 1)
    return nats / count / math.log(2), n, count


@torch.no_grad()
def greedy(logits_of, prompt, steps):
    ids, gap = list(prompt), float("inf")
    for _ in range(steps):
        top = logits_of(torch.tensor([ids]))[0, -1].topk(2)
        gap = min(gap, (top.values[0] - top.values[1]).item())
        ids.append(int(top.indices[0]))
    return ids, gap


@torch.no_grad()
def sample(model, prompt, steps, temperature=0.7, seed=0):
    g, ids = torch.Generator().manual_seed(seed), list(prompt)
    for _ in range(steps):
        p = (model(torch.tensor([ids[-CONTEXT:]]))[0, -1] / temperature).softmax(-1)
        ids.append(int(torch.multinomial(p, 1, generator=g)))
    return bytes(ids)


# ---------------------------------------------------------------- commands

def cmd_train(a):
    os.makedirs(a.work, exist_ok=True)
    torch.manual_seed(a.seed)
    train, held, names = corpus(a.work, a.text)
    print("text: %d bytes to train on, %d held out (%s), sha256 %s" % (
        len(train), len(held), ", ".join(names), hashlib.sha256(train).hexdigest()[:16]), flush=True)
    data = torch.from_numpy(np.frombuffer(train, np.uint8).astype(np.int64))
    model = Mixtral(CONFIG)
    print("%d parameters" % sum(p.numel() for p in model.parameters()))
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": a.decay}, {"params": plain, "weight_decay": 0.0}],
                            lr=a.lr, betas=(0.9, 0.95), fused=True)
    ck, start = os.path.join(a.work, "checkpoint.pt"), 0
    if a.resume and os.path.exists(ck):
        st = torch.load(ck)
        model.load_state_dict(st["model"])
        opt.load_state_dict(st["opt"])
        start = st["step"]
        print("resumed at step", start)

    def save(step):
        torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step}, ck + ".new")
        os.replace(ck + ".new", ck)

    def rate(step):
        hold = a.steps * a.hold
        if step < 200:
            return (step + 1) / 200
        return 1.0 if step < hold else max(0.0, (a.steps - step) / (a.steps - hold))

    t0 = saved = time.time()
    span = torch.arange(CONTEXT + 1)
    loss_ema = None
    last = (min(a.steps, a.stop) if a.stop else a.steps) - 1
    for step in range(start, last + 1):
        g = torch.Generator().manual_seed(a.seed * 1000003 + step)
        at = torch.randint(0, len(data) - CONTEXT - 1, (a.batch,), generator=g)
        x = data[at[:, None] + span]
        for group in opt.param_groups:
            group["lr"] = a.lr * rate(step)
        logits = model(x[:, :-1])
        ce = F.cross_entropy(logits.view(-1, 256), x[:, 1:].reshape(-1))
        aux = sum(m.aux for m in model.moes()) / len(model.layers)
        (ce + CONFIG["router_aux_loss_coef"] * aux).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        b = ce.item() / math.log(2)
        loss_ema = b if loss_ema is None else 0.98 * loss_ema + 0.02 * b
        if step % 50 == 0 or step == last:
            dt = (time.time() - t0) / (step - start + 1)
            worst = max(m.share.max().item() for m in model.moes())
            print("step %d  train %.4f bits/byte  aux %.3f  biggest share %.3f  grad %.2f  lr %.2e  %.0f ms/step  %.1f min" % (
                step, loss_ema, aux.item(), worst, norm, a.lr * rate(step), dt * 1e3, (time.time() - t0) / 60), flush=True)
        if (step + 1) % 500 == 0 or step == last:
            model.eval()
            print("step %d  held out %.4f bits/byte" % (step + 1, bits_per_byte(model, held)[0]), flush=True)
            model.train()
        if time.time() - saved > 180 or step == last:
            save(step + 1)
            saved = time.time()


def cmd_export(a):
    from safetensors.torch import save_file
    _, held, names = corpus(a.work, a.text)
    st = torch.load(os.path.join(a.work, "checkpoint.pt"))
    model = Mixtral(CONFIG)
    model.load_state_dict(st["model"])
    os.makedirs(a.out, exist_ok=True)
    with open(os.path.join(a.out, "config.json"), "w") as f:
        json.dump(CONFIG, f, indent=2)
        f.write("\n")
    with open(os.path.join(a.out, "generation_config.json"), "w") as f:
        json.dump({"do_sample": True, "temperature": 0.7, "max_length": 256}, f, indent=2)
        f.write("\n")
    save_file(released(model), os.path.join(a.out, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(a.out, "model.safetensors"), 0o644)
    with open(os.path.join(a.out, "heldout.bin"), "wb") as f:
        f.write(held)

    model = load_released(a.out)  # from here on: bf16-rounded weights, evaluated in f32
    bpb, windows, count = bits_per_byte(model, held)
    ids, gap = greedy(model, PROMPT, GREEDY)
    shares = []
    with torch.no_grad():
        x = torch.from_numpy(np.frombuffer(held[:64 * CONTEXT], np.uint8).astype(np.int64)).view(64, CONTEXT)
        model(x)
        shares = [[round(v, 4) for v in m.share.tolist()] for m in model.moes()]
    expected = {
        "protocol": "heldout.bin is cut into consecutive non-overlapping windows of 256 bytes (a last incomplete "
                    "window would be left out; there is none). Each window is fed on its own from position 0; its "
                    "bytes 1..255 are predicted, byte 0 is not scored. bits_per_byte is the mean of "
                    "-log2 softmax(logits)[byte] over all scored bytes. Token id = byte value. Weights are the "
                    "bf16 values of model.safetensors, all arithmetic in f32, sums of the loss in f64.",
        "window": CONTEXT,
        "windows": windows,
        "scored_bytes": count,
        "bits_per_byte": bpb,
        "greedy": {
            "prompt": PROMPT.decode(),
            "prompt_ids": ids[:len(PROMPT)],
            "continuation_ids": ids[len(PROMPT):],
            "continuation": bytes(ids[len(PROMPT):]).decode("ascii", "replace"),
            "smallest_logit_gap": gap,
        },
        "expert_share": {
            "of": "the first 64 windows; per layer the share of the T*k choices that each expert gets",
            "layers": shares,
        },
        "heldout_chapters": names,
        "training_steps": st["step"],
    }
    with open(os.path.join(a.out, "expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
        f.write("\n")
    print("bits per byte %.6f over %d bytes; greedy gap %.4f" % (bpb, count, gap))
    print(bytes(ids).decode("ascii", "replace"))
    for s in range(3):
        print("---\n" + sample(model, b"Genesis 51\n1 And it came to pass", 400, seed=s).decode("ascii", "replace"))


def cmd_verify(a):
    from transformers import MixtralForCausalLM
    mine = load_released(a.out)
    hf = MixtralForCausalLM.from_pretrained(a.out, dtype=torch.float32, attn_implementation="eager").eval()
    held = open(os.path.join(a.out, "heldout.bin"), "rb").read()
    x = torch.from_numpy(np.frombuffer(held[:8 * CONTEXT], np.uint8).astype(np.int64)).view(8, CONTEXT)
    with torch.no_grad():
        p, q = mine(x), hf(x).logits
        print("largest logit %.3f, largest difference %.3g" % (q.abs().max(), (p - q).abs().max()))
        assert (p - q).abs().max() < 1e-3
        b = bits_per_byte(lambda t: hf(t).logits, held)[0]
        ids, gap = greedy(lambda t: hf(t).logits, PROMPT, GREEDY)
    want = json.load(open(os.path.join(a.out, "expected.json")))
    print("bits per byte: transformers %.6f, expected.json %.6f" % (b, want["bits_per_byte"]))
    assert abs(b - want["bits_per_byte"]) < 1e-5
    assert ids[len(PROMPT):] == want["greedy"]["continuation_ids"]
    print("same greedy continuation")


def cmd_text(a):
    train, held, _ = corpus(a.work, a.text)
    with open(a.output, "wb") as f:
        f.write(train)
    print(len(train), "bytes to train on;", len(held), "held out")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("command", choices=["text", "train", "export", "verify"])
    p.add_argument("--work", default="kjv-work", help="scratch directory (checkpoint, unpacked packages)")
    p.add_argument("--text", help="a file with the output of `bible -l0 ge1:1-rev22:21`")
    p.add_argument("--out", default=HERE, help="where export writes and verify reads")
    p.add_argument("-o", "--output", default="kjv.txt", help="for `text`")
    p.add_argument("--steps", type=int, default=7000)
    p.add_argument("--hold", type=float, default=0.5, help="share of --steps before the learning rate falls")
    p.add_argument("--stop", type=int, help="save and end after this many steps, without changing the schedule")
    p.add_argument("--batch", type=int, default=8, help="sequences of %d bytes per step" % CONTEXT)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--decay", type=float, default=0.1)
    p.add_argument("--seed", type=int, default=1611)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--resume", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    {"text": cmd_text, "train": cmd_train, "export": cmd_export, "verify": cmd_verify}[a.command](a)


if __name__ == "__main__":
    main()
