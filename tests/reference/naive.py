#!/usr/bin/env python3
"""A second, independent reference: every case of this directory in plain numpy loops, in f64.

    python naive.py [case ...]

It reads the files as stored (shards, bf16, fp8 blocks, fused experts) with its own safetensors
reader and follows the formulas of the papers, not the code of transformers.  If both agree, a bug
of either would have to be in both.
"""
import json
import math
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def bf16(raw):
    return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)


def e4m3(raw):
    b = np.frombuffer(raw, np.uint8).astype(np.int64)
    exp, man = b >> 3 & 15, b & 7
    x = np.where(exp == 0, man / 8.0 * 2.0 ** -6, (1 + man / 8.0) * 2.0 ** (exp - 7.0))
    assert not ((b & 127) == 127).any()  # nan
    return np.where(b & 128, -x, x)


READ = {"F32": lambda r: np.frombuffer(r, np.float32), "BF16": bf16, "F8_E4M3": e4m3}


def checkpoint(d):
    index = os.path.join(d, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        files = sorted(set(json.load(open(index))["weight_map"].values()))
    out = {}
    for f in files:
        raw = open(os.path.join(d, f), "rb").read()
        n = int.from_bytes(raw[:8], "little")
        for name, t in json.loads(raw[8:8 + n]).items():
            if name != "__metadata__":
                a, b = t["data_offsets"]
                out[name] = READ[t["dtype"]](raw[8 + n + a:8 + n + b]).astype(np.float64).reshape(t["shape"])
    for name in [k for k in out if k.endswith("_scale_inv")]:
        s, w = out.pop(name), out[name[:-len("_scale_inv")]]
        for r in range(w.shape[0]):
            for c in range(w.shape[1]):
                w[r, c] *= s[r // 128, c // 128]
    return out


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms(x, w, eps):
    return w * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def angles(c, d):
    """inverse frequencies, attention factor"""
    theta, s = c["rope_theta"], c.get("rope_scaling")
    inv = np.array([theta ** (-2 * i / d) for i in range(d // 2)])
    if not s:
        return inv, 1.0
    assert s["type"] == "yarn"
    f = s["factor"]

    def at(r):
        return d * math.log(s["original_max_position_embeddings"] / (2 * math.pi * r)) / (2 * math.log(theta))

    lo, hi = max(math.floor(at(s["beta_fast"])), 0), min(math.ceil(at(s["beta_slow"])), d - 1)
    ramp = np.clip((np.arange(d // 2) - lo) / ((hi - lo) or 0.001), 0, 1)
    return inv / f * ramp + inv * (1 - ramp), mscale(f, s["mscale"]) / mscale(f, s["mscale_all_dim"])


def mscale(f, m):
    return 0.1 * m * math.log(f) + 1 if f > 1 else 1.0


def rotate(x, pos, inv, factor, adjacent):
    y, n = x.copy(), len(inv)
    for i in range(n):
        a, b = (2 * i, 2 * i + 1) if adjacent else (i, i + n)
        cs, sn = math.cos(pos * inv[i]) * factor, math.sin(pos * inv[i]) * factor
        y[a], y[b] = x[a] * cs - x[b] * sn, x[b] * cs + x[a] * sn
    return y


def causal(q, k, v, scale):
    """q, k [T, h], v [T, hv]"""
    out = np.zeros([len(q), v.shape[1]])
    for t in range(len(q)):
        out[t] = softmax(k[:t + 1] @ q[t] * scale) @ v[:t + 1]
    return out


def gqa(c, w, p, x):
    t, d = x.shape
    nh, nk = c["num_attention_heads"], c["num_key_value_heads"]
    h = c.get("head_dim") or d // nh
    q, k, v = (x @ w[p + n + "_proj.weight"].T + w.get(p + n + "_proj.bias", 0.0) for n in "qkv")
    if c["model_type"] == "olmoe":        # norm over the whole width, before the split into heads
        q, k = rms(q, w[p + "q_norm.weight"], c["rms_norm_eps"]), rms(k, w[p + "k_norm.weight"], c["rms_norm_eps"])
    q, k, v = q.reshape(t, nh, h), k.reshape(t, nk, h), v.reshape(t, nk, h)
    if c["model_type"] == "qwen3_moe":    # norm of each head
        q, k = rms(q, w[p + "q_norm.weight"], c["rms_norm_eps"]), rms(k, w[p + "k_norm.weight"], c["rms_norm_eps"])
    inv, f = angles(c, h)
    out = np.zeros([t, nh, h])
    for j in range(nh):
        g = j * nk // nh
        qj = np.stack([rotate(q[n, j], n, inv, f, False) for n in range(t)])
        kj = np.stack([rotate(k[n, g], n, inv, f, False) for n in range(t)])
        out[:, j] = causal(qj, kj, v[:, g], h ** -0.5)
    return out.reshape(t, -1) @ w[p + "o_proj.weight"].T


def mla(c, w, p, x):
    t = len(x)
    nh, r, nope, rot, hv = (c[k] for k in ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim",
                                           "qk_rope_head_dim", "v_head_dim"))
    if c["q_lora_rank"] is None:
        q = x @ w[p + "q_proj.weight"].T
    else:                                 # both latent norms use 1e-6 whatever rms_norm_eps says
        q = rms(x @ w[p + "q_a_proj.weight"].T, w[p + "q_a_layernorm.weight"], 1e-6) @ w[p + "q_b_proj.weight"].T
    q = q.reshape(t, nh, nope + rot)
    both = x @ w[p + "kv_a_proj_with_mqa.weight"].T
    kv = rms(both[:, :r], w[p + "kv_a_layernorm.weight"], 1e-6) @ w[p + "kv_b_proj.weight"].T
    kv = kv.reshape(t, nh, nope + hv)
    inv, f = angles(c, rot)
    kr = np.stack([rotate(both[n, r:], n, inv, f, True) for n in range(t)])
    scale, s = (nope + rot) ** -0.5, c.get("rope_scaling")
    if s and s["mscale_all_dim"]:
        scale *= mscale(s["factor"], s["mscale_all_dim"]) ** 2
    out = np.zeros([t, nh, hv])
    for j in range(nh):
        qr = np.stack([rotate(q[n, j, nope:], n, inv, f, True) for n in range(t)])
        out[:, j] = causal(np.concatenate([q[:, j, :nope], qr], 1), np.concatenate([kv[:, j, :nope], kr], 1),
                           kv[:, j, nope:], scale)
    return out.reshape(t, -1) @ w[p + "o_proj.weight"].T


def swiglu(x, g, u, d):
    a = g @ x
    return d @ (a * sigmoid(a) * (u @ x))


def mlp(w, p, x):
    return swiglu(x, w[p + "gate_proj.weight"], w[p + "up_proj.weight"], w[p + "down_proj.weight"])


def route(c, w, p, x):
    """chosen experts by falling key, and their weights"""
    s, k, kind = w[p + "gate.weight"] @ x, c["num_experts_per_tok"], c["model_type"]
    if kind == "deepseek_v3":
        value = sigmoid(s)
        key = value + w[p + "gate.e_score_correction_bias"]
        n = c["n_group"]
        if n > 1:
            groups = key.reshape(n, -1)
            score = np.sort(groups, 1)[:, -2:].sum(1)
            for g in np.argsort(-score)[c["topk_group"]:]:
                groups[g] = -np.inf
            key = groups.reshape(-1)
    else:
        value = key = softmax(s)
    top = np.argsort(-key, kind="stable")[:k]
    gate = value[top]
    if kind == "mixtral" or c.get("norm_topk_prob"):
        gate = gate / gate.sum()
    return top, gate * (c["routed_scaling_factor"] if kind == "deepseek_v3" else 1.0)


def experts(c, w, p):
    """function (expert, x) -> y, for either layout"""
    if p + "experts.gate_up_proj" in w:
        gu, dn = w[p + "experts.gate_up_proj"], w[p + "experts.down_proj"]
        f = dn.shape[2]
        return lambda e, x: swiglu(x, gu[e, :f], gu[e, f:], dn[e])
    if c["model_type"] == "mixtral":
        return lambda e, x: swiglu(x, *(w[p + "experts.%d.%s.weight" % (e, n)] for n in ("w1", "w3", "w2")))
    return lambda e, x: mlp(w, p + "experts.%d." % e, x)


def forward(c, w, ids):
    x, ex, gt = w["model.embed_tokens.weight"][ids], [], []
    for i in range(c["num_hidden_layers"]):
        l = "model.layers.%d." % i
        n = rms(x, w[l + "input_layernorm.weight"], c["rms_norm_eps"])
        x = x + (mla if c["model_type"] == "deepseek_v3" else gqa)(c, w, l + "self_attn.", n)
        n = rms(x, w[l + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        p = l + "block_sparse_moe."
        if p + "gate.weight" not in w:
            p = l + "mlp."
        if p + "gate.weight" not in w:
            x = x + np.stack([mlp(w, p, r) for r in n])
            continue
        body, y = experts(c, w, p), np.zeros_like(x)
        for t, r in enumerate(n):
            top, gate = route(c, w, p, r)
            ex.append(top), gt.append(gate)
            y[t] = sum(g * body(e, r) for e, g in zip(top, gate))
            if p + "shared_experts.gate_proj.weight" in w:
                y[t] += mlp(w, p + "shared_experts.", r)
            if p + "shared_expert.gate_proj.weight" in w:
                y[t] += sigmoid(w[p + "shared_expert_gate.weight"] @ r) * mlp(w, p + "shared_expert.", r)
        x = x + y
    t, k = len(ids), c["num_experts_per_tok"]
    logits = rms(x, w["model.norm.weight"], c["rms_norm_eps"]) @ w["lm_head.weight"].T
    return logits, np.array(ex).reshape(-1, t, k), np.array(gt).reshape(-1, t, k)


def main():
    names = sys.argv[1:] or sorted(d for d in os.listdir(HERE) if os.path.exists(os.path.join(HERE, d, "config.json")))
    bad = 0
    for name in names:
        d = os.path.join(HERE, name)
        c, w = json.load(open(os.path.join(d, "config.json"))), checkpoint(d)
        want = lambda f: np.load(os.path.join(d, "expected", f + ".npy"))
        worst = worst_gate = 0.0
        same = True
        for suffix in ("1", "7", "64", "2x7"):
            ids, le = want("ids_" + suffix), want("logits_" + suffix)
            got = [forward(c, w, row) for row in ids]
            worst = max(worst, np.abs(np.stack([g[0] for g in got]) - le).max() / np.abs(le).max())
            same &= np.array_equal(np.concatenate([g[1] for g in got], 1), want("experts_" + suffix))
            worst_gate = max(worst_gate, np.abs(np.concatenate([g[2] for g in got], 1) - want("gates_" + suffix)).max())
        ids = want("greedy")
        logits = forward(c, w, ids[:-1])[0]
        same_greedy = np.array_equal(logits[6:].argmax(1), ids[7:])
        ok = worst < 1e-5 and worst_gate < 1e-5 and same and same_greedy
        bad += not ok
        print("%-24s %s: logits %.1e of the largest, gates %.1e, experts %s, greedy %s" % (
            name, "ok" if ok else "WRONG", worst, worst_gate, "same" if same else "differ",
            "same" if same_greedy else "differs"))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
