#!/usr/bin/env python3
"""Writes the cases of this directory whose numbers are computed here: attention, rotary embedding, norms, scans, and the
plain ops.  Formulas are written out in numpy, in f64, independently of the interpreter; the rotary frequencies come from
transformers (which is needed only to run this script; the files it writes are committed).

    python make_cases.py            # rewrites the files
    python make_cases.py --check    # says which would change

grad_* are written by make_grad_cases.py. The other files (moe_*, route_*, gated_bodies) hold golden vectors from the design and are edited by hand.
"""
import math

import numpy as np

from case_text import case, finish, grid, weight

# ---- rotary embedding -------------------------------------------------------------------------------------------------


def rotate(x, inv, factor, past, dims, adjacent):
    y = x.copy()
    for s in range(x.shape[1]):
        for i in range(dims // 2):
            c, n = math.cos((past + s) * inv[i]) * factor, math.sin((past + s) * inv[i]) * factor
            a, b = (2 * i, 2 * i + 1) if adjacent else (i, i + dims // 2)
            y[:, s, :, a] = x[:, s, :, a] * c - x[:, s, :, b] * n
            y[:, s, :, b] = x[:, s, :, b] * c + x[:, s, :, a] * n
    return y


def rope_case(name, comment, attrs, inv, factor=1.0, h=8, dims=None, adjacent=False):
    """Two runs on one state: five positions, then one more (position 5)."""
    x, z = grid(1, 5, 2, h), grid(1, 1, 2, h)
    d = dims or h
    case(name, comment, """
dim S

model @rope(%%x: f32[1, S, 2, %d]) -> (f32[1, S, 2, %d], f32[1, S]) {
  %%y = rope %%x {%s} : f32[1, S, 2, %d]
  %%p = position %%x : f32[1, S]
  return %%y, %%p
}
""" % (h, h, attrs, h), [
        {"inputs": [("f32", x)], "steps": [2, 3], "expect": [rotate(x, inv, factor, 0, d, adjacent), np.arange(5)]},
        {"inputs": [("f32", z)], "expect": [rotate(z, inv, factor, 5, d, adjacent), np.arange(5, 6)]}])


def plain(theta, d):
    return [theta ** (-2 * i / d) for i in range(d // 2)]


def rope_cases():
    rope_case("rope_half", "Pairs (i, i + h/2).", "theta = 10000.0", plain(1e4, 8))
    rope_case("rope_adjacent", "Pairs (2i, 2i + 1).", "theta = 500.0, adjacent = true", plain(500, 8), adjacent=True)
    rope_case("rope_partial", "Only the first 4 of 8 channels turn; frequencies divided by 4.",
              'theta = 100.0, dims = 4, scaling = "linear", args = [4.0]', [v / 4 for v in plain(100, 4)], dims=4)
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def theirs(kind, theta, h, **scaling):
        cfg = LlamaConfig(hidden_size=h, num_attention_heads=1, head_dim=h, max_position_embeddings=4096,
                          rope_parameters={"rope_type": kind, "rope_theta": theta, **scaling})
        inv, factor = ROPE_INIT_FUNCTIONS[kind](cfg, "cpu")
        return [float(v) for v in inv.double()], float(factor)

    inv, factor = theirs("llama3", 5e5, 16, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                         original_max_position_embeddings=64)
    rope_case("rope_llama3", "Frequencies from transformers (rope_type llama3).",
              'theta = 500000.0, scaling = "llama3", args = [8.0, 1.0, 4.0, 64.0]', inv, factor, h=16)
    inv, factor = theirs("yarn", 1e4, 16, factor=40.0, original_max_position_embeddings=64, beta_fast=32.0,
                         beta_slow=1.0, mscale=1.0, mscale_all_dim=0.8)
    rope_case("rope_yarn", "Frequencies and factor from transformers (rope_type yarn with mscale).",
              'theta = 10000.0, adjacent = true, scaling = "yarn", args = [40.0, 64.0, 32.0, 1.0, 1.0, 0.8, 1.0, 0.0]',
              inv, factor, h=16, adjacent=True)
    inv, factor = theirs("yarn", 150000.0, 16, factor=32.0, original_max_position_embeddings=512, beta_fast=32.0,
                         beta_slow=1.0, truncate=False)
    rope_case("rope_yarn_whole", "Frequencies and factor from transformers (yarn as gpt-oss has it, bounds not truncated).",
              'theta = 150000.0, scaling = "yarn", args = [32.0, 512.0, 32.0, 1.0, 0.0, 0.0, 0.0, 0.0]', inv, factor, h=16)


# ---- attention --------------------------------------------------------------------------------------------------------


def attention(q, k, v, scale, causal=True, window=0, chunk=0, softcap=0.0, sinks=None, select=None):
    B, S, H, _ = q.shape
    C, KV = k.shape[1], k.shape[2]
    o = np.zeros((B, S, H, v.shape[3]))
    for b in range(B):
        for s in range(S):
            p = C - S + s
            keys = [c for c in range(C) if (not causal or c <= p) and (not window or c > p - window)
                    and (not chunk or c // chunk == p // chunk) and (select is None or c in select[b, s])]
            for j in range(H):
                g = j // (H // KV)
                logits = [float(q[b, s, j] @ k[b, c, g]) * scale for c in keys]
                if softcap:
                    logits = [softcap * math.tanh(z / softcap) for z in logits]
                z = sum(math.exp(x) for x in logits) + (math.exp(sinks[j]) if sinks is not None else 0)
                for c, x in zip(keys, logits):
                    o[b, s, j] += math.exp(x) / z * v[b, c, g]
    return o


def attention_cases():
    B, H, KV, h, hv = 2, 4, 2, 4, 3
    q, k, v = grid(B, 6, H, h, scale=1), grid(B, 6, KV, h, scale=1), grid(B, 6, KV, hv)
    head = """
dim B
dim S
dim C

model @attend(%%q: f32[B, S, 4, 4], %%k: f32[B, S, 2, 4], %%v: f32[B, S, 2, 3]%s) -> (f32[B, S, 4, 3]) {
  %%kc = cache %%k : f32[B, C, 2, 4]
  %%vc = cache %%v : f32[B, C, 2, 3]
  %%o = sdpa %%q, %%kc, %%vc%s {%s} : f32[B, S, 4, 3]
  return %%o
}
"""
    base = [("f32", q), ("f32", k), ("f32", v)]
    for name, comment, attrs, kw in [
            ("sdpa_causal", "Grouped heads, causal.", "scale = 0.5", {}),
            ("sdpa_window", "Only the last 3 keys.", "scale = 0.5, window = 3", {"window": 3}),
            ("sdpa_chunk", "Only keys in the same run of 4.", "scale = 0.5, chunk = 4", {"chunk": 4}),
            ("sdpa_softcap", "Logits capped at 2.", "scale = 1.5, softcap = 2.0", {"softcap": 2.0})]:
        scale = 1.5 if "1.5" in attrs else 0.5
        case(name, comment, head % ("", "", attrs),
             [{"inputs": base, "steps": [2, 1, 3], "expect": [attention(q, k, v, scale, **kw)]}])
    sinks = np.array([0.5, -1, 2, 0])
    case("sdpa_sinks", "A learnt logit per head joins the softmax.", (head % ("", ", %sinks", "scale = 0.5")).replace(
             "  %o =", weight("sinks", "attention", "f32[4]") + "  %o ="),
         [{"inputs": base, "steps": [5, 1], "expect": [attention(q, k, v, 0.5, sinks=sinks)]}],
         [("sinks", "f32", sinks)])
    case("sdpa_all", "Not causal, no cache: every query sees every key.", """
dim B

model @attend(%q: f32[B, 6, 4, 4], %k: f32[B, 6, 2, 4], %v: f32[B, 6, 2, 3]) -> (f32[B, 6, 4, 3]) {
  %o = sdpa %q, %k, %v {scale = 0.5, causal = false} : f32[B, 6, 4, 3]
  return %o
}
""", [{"inputs": base, "expect": [attention(q, k, v, 0.5, causal=False)]}])
    index_cases()


def index_cases():
    q, k, v = grid(1, 6, 2, 4, scale=1), grid(1, 6, 1, 4, scale=1), grid(1, 6, 1, 3)
    iq, ik, w = grid(1, 6, 3, 2), grid(1, 6, 1, 2), grid(1, 6, 3)
    n, select = 3, -np.ones((1, 6, 3), int)
    for s in range(6):
        score = [sum(w[0, s, j] * max(0.0, float(iq[0, s, j] @ ik[0, c, 0])) for j in range(3)) for c in range(s + 1)]
        best = sorted(sorted(range(s + 1), key=lambda c: (-score[c], c))[:n])
        select[0, s, :len(best)] = best
    case("sdpa_select", "The three keys with the best index scores, then attention to these only.", """
dim S
dim C

model @sparse(%q: f32[1, S, 2, 4], %k: f32[1, S, 1, 4], %v: f32[1, S, 1, 3], %iq: f32[1, S, 3, 2], %ik: f32[1, S, 1, 2], %w: f32[1, S, 3]) -> (i32[1, S, 3], f32[1, S, 2, 3]) {
  %kc = cache %k : f32[1, C, 1, 4]
  %vc = cache %v : f32[1, C, 1, 3]
  %ic = cache %ik : f32[1, C, 1, 2]
  %keys = top_keys %iq, %ic, %w {n = 3} : i32[1, S, 3]
  %o = sdpa %q, %kc, %vc, _, %keys {scale = 0.5} : f32[1, S, 2, 3]
  return %keys, %o
}
""", [{"inputs": [("f32", a) for a in (q, k, v, iq, ik, w)], "steps": [4, 1, 1],
       "expect": [select, attention(q, k, v, 0.5, select=select)]}])


# ---- sequence mixers ----------------------------------------------------------------------------------------------------


def scan_cases():
    B, S, d, n = 2, 6, 3, 4
    x, w, bias = grid(B, S, d), grid(d, 1, 4), grid(d)
    y = np.zeros((B, S, d))
    for s in range(S):
        for j in range(4):
            if s - 3 + j >= 0:
                y[:, s] += w[:, 0, j] * x[:, s - 3 + j]
    case("conv1d", "A causal depth-wise convolution of width 4, without and with bias.", """
dim B
dim S

model @conv(%x: f32[B, S, 3]) -> (f32[B, S, 3], f32[B, S, 3]) {
  %w = weight {path = "conv.weight", role = "dense"} : f32[3, 1, 4]
  %bias = weight {path = "conv.bias", role = "dense"} : f32[3]
  %y = conv1d %x, %w : f32[B, S, 3]
  %z = conv1d %x, %w, %bias : f32[B, S, 3]
  return %y, %z
}
""", [{"inputs": [("f32", x)], "steps": [1, 4, 1], "expect": [y, y + bias]}],
         [("conv.weight", "f32", w), ("conv.bias", "f32", bias)])

    dt, a, b, c = np.abs(grid(B, S, d, scale=1)), -np.abs(grid(d, n)), grid(B, S, n), grid(B, S, n)
    h, y = np.zeros((B, d, n)), np.zeros((B, S, d))
    for s in range(S):
        h = np.exp(dt[:, s, :, None] * a) * h + (dt[:, s] * x[:, s])[:, :, None] * b[:, s, None, :]
        y[:, s] = (h * c[:, s, None, :]).sum(-1)
    case("selective_scan", "Mamba-1.", """
dim B
dim S

model @scan(%x: f32[B, S, 3], %dt: f32[B, S, 3], %a: f32[3, 4], %b: f32[B, S, 4], %c: f32[B, S, 4]) -> (f32[B, S, 3]) {
  %y = selective_scan %x, %dt, %a, %b, %c : f32[B, S, 3]
  return %y
}
""", [{"inputs": [("f32", v) for v in (x, dt, a, b, c)], "steps": [2, 1, 3], "expect": [y]}])

    HK, H, dk, dv, scale = 2, 4, 3, 2, 0.5
    q, k, v = grid(B, S, HK, dk, scale=1), grid(B, S, HK, dk, scale=1), grid(B, S, H, dv)
    g, beta = -np.abs(grid(B, S, H)), np.abs(grid(B, S, H, scale=1))
    y = np.zeros((B, S, H, dv))
    for i in range(B):
        for j in range(H):
            M, kh = np.zeros((dk, dv)), j // (H // HK)
            for s in range(S):
                M = M * math.exp(g[i, s, j])
                M = M + np.outer(k[i, s, kh], beta[i, s, j] * (v[i, s, j] - M.T @ k[i, s, kh]))
                y[i, s, j] = M.T @ (scale * q[i, s, kh])
    case("delta_scan", "The gated delta rule; each key head serves two value heads.", """
dim B
dim S

model @scan(%q: f32[B, S, 2, 3], %k: f32[B, S, 2, 3], %v: f32[B, S, 4, 2], %g: f32[B, S, 4], %beta: f32[B, S, 4]) -> (f32[B, S, 4, 2]) {
  %y = delta_scan %q, %k, %v, %g, %beta {scale = 0.5} : f32[B, S, 4, 2]
  return %y
}
""", [{"inputs": [("f32", t) for t in (q, k, v, g, beta)], "steps": [3, 1, 2], "expect": [y]}])


# ---- plain ops ----------------------------------------------------------------------------------------------------------


def norm_cases():
    x, w, b = grid(2, 3, 4), grid(4), grid(4)
    rms = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    ln = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    e = np.exp(x - x.max(-1, keepdims=True))
    case("norms", "Every norm with and without its weights, and softmax.", """
dim T

model @norms(%x: f32[2, T, 4]) -> (f32[2, T, 4], f32[2, T, 4], f32[2, T, 4], f32[2, T, 4], f32[2, T, 4], f32[2, T, 4], f32[2, T, 4]) {
  %w = weight {path = "norm.weight", role = "norm"} : f32[4]
  %b = weight {path = "norm.bias", role = "norm"} : f32[4]
  %y0 = rmsnorm %x {eps = 0.001} : f32[2, T, 4]
  %y1 = rmsnorm %x, %w {eps = 0.001} : f32[2, T, 4]
  %y2 = rmsnorm %x, %w {eps = 0.001, plus_one = true, round = "before"} : f32[2, T, 4]
  %y3 = layernorm %x, %w, %b {eps = 0.001} : f32[2, T, 4]
  %y4 = layernorm %x {eps = 0.001} : f32[2, T, 4]
  %y5 = l2norm %x {eps = 0.5} : f32[2, T, 4]
  %y6 = softmax %x : f32[2, T, 4]
  return %y0, %y1, %y2, %y3, %y4, %y5, %y6
}
""", [{"inputs": [("f32", x)],
       "expect": [rms, rms * w, rms * (1 + w), ln * w + b, ln, x / np.sqrt((x * x).sum(-1, keepdims=True) + 0.5),
                  e / e.sum(-1, keepdims=True)]}], [("norm.weight", "f32", w), ("norm.bias", "f32", b)])


def elementwise_cases():
    x = np.concatenate([grid(2, 3, scale=4), np.array([[0, -0.5, 30]])])
    a, b = grid(2, 3), np.abs(grid(2, 1, scale=1)) + 0.5
    p = np.abs(x) + 0.25
    sig = 1 / (1 + np.exp(-x))
    erf = np.vectorize(math.erf)
    ops = [("neg", "", x, -x), ("silu", "", x, x * sig), ("gelu", "", x, x * (1 + erf(x / math.sqrt(2))) / 2),
           ("gelu_tanh", "", x, x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))) / 2),
           ("relu", "", x, np.maximum(x, 0)), ("relu2", "", x, np.maximum(x, 0) ** 2), ("sigmoid", "", x, sig),
           ("tanh", "", x, np.tanh(x)), ("exp", "", a, np.exp(a)), ("log", "", p, np.log(p)), ("log1p", "", p, np.log1p(p)),
           ("sqrt", "", p, np.sqrt(p)), ("softplus", "", x, np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))),
           ("floor", "", x, np.floor(x)), ("clamp", " {lo = -1.0, hi = 2.5}", x, np.clip(x, -1, 2.5)),
           ("clamp", " {hi = 0.5}", x, np.minimum(x, 0.5)), ("softcap", " {cap = 3.0}", x, 3 * np.tanh(x / 3))]
    bins = [("add", a + b), ("sub", a - b), ("mul", a * b), ("div", a / b)]
    named = {id(x): ("%x", "f32[3, 3]"), id(a): ("%a", "f32[2, 3]"), id(p): ("%p", "f32[3, 3]")}
    lines, results, types, want = [], [], [], []
    for i, (op, attrs, arg, y) in enumerate(ops):
        lines.append("  %%u%d = %s %s%s : %s" % (i, op, named[id(arg)][0], attrs, named[id(arg)][1]))
        results.append("%%u%d" % i)
        types.append(named[id(arg)][1])
        want.append(y)
    for i, (op, y) in enumerate(bins):
        lines.append("  %%b%d = %s %%a, %%b : f32[2, 3]" % (i, op))
        results.append("%%b%d" % i)
        types.append("f32[2, 3]")
        want.append(y)
    case("elementwise", "Every elementwise op, and broadcasting of [2, 1] over [2, 3].", """
model @ops(%%x: f32[3, 3], %%a: f32[2, 3], %%b: f32[2, 1], %%p: f32[3, 3]) -> (%s) {
%s
  return %s
}
""" % (", ".join(types), "\n".join(lines), ", ".join(results)),
         [{"inputs": [("f32", x), ("f32", a), ("f32", b), ("f32", p)], "expect": want}])


def shape_cases():
    x, y = grid(2, 3, 4), grid(2, 1, 4)
    case("shapes", "Ops that only move elements.", """
model @shapes(%x: f32[2, 3, 4], %y: f32[2, 1, 4]) -> (f32[6, 4], f32[2, 3, 1], f32[2, 3, 3], f32[2, 4, 4], f32[2, 3, 8], f32[2, 2, 4], f32[2, 3, 4], f32[2, 3, 8], f32[4, 3, 4], f32[4, 2, 3]) {
  %r = reshape %x : f32[6, 4]
  %s0, %s1 = split %x {sizes = [1, 3]} : f32[2, 3, 1], f32[2, 3, 3]
  %c0 = concat %x, %y {axis = 1} : f32[2, 4, 4]
  %c1 = concat %x, %x : f32[2, 3, 8]
  %l = slice %x {axis = 1, begin = 1, end = 3} : f32[2, 2, 4]
  %e = expand %y {n = 3} : f32[2, 3, 4]
  %t = tile %x {n = 2} : f32[2, 3, 8]
  %t0 = tile %x {n = 2, axis = 0} : f32[4, 3, 4]
  %p = transpose %x {perm = [2, 0, 1]} : f32[4, 2, 3]
  return %r, %s0, %s1, %c0, %c1, %l, %e, %t, %t0, %p
}
""", [{"inputs": [("f32", x), ("f32", y)],
       "expect": [x, x[..., :1], x[..., 1:], np.concatenate([x, y], 1), np.concatenate([x, x], 2), x[:, 1:3],
                  np.repeat(y, 3, 1), np.tile(x, (1, 1, 2)), np.tile(x, (2, 1, 1)), x.transpose(2, 0, 1)]}])


def linear_cases():
    x, w, b, r = grid(2, 5), grid(3, 5), grid(3), grid(2, 3)
    u, bu = grid(3, 5), grid(3)
    g, up = x @ w.T + b, x @ u.T + bu
    table, ids = grid(4, 3), np.array([[3, 0, 1]])
    case("linear", "linear with bias and residual, gated_linear, embed, casts through bf16 and i32.", """
model @linear(%x: f32[2, 5], %r: f32[2, 3], %ids: i32[1, 3]) -> (f32[2, 3], f32[2, 3], f32[2, 3], f32[2, 3], f32[1, 3, 3], f32[2, 3], i32[2, 3]) {
  %w = weight {path = "gate.weight", role = "dense"} : f32[3, 5]
  %b = weight {path = "gate.bias", role = "dense"} : f32[3]
  %u = weight {path = "up.weight", role = "dense"} : f32[3, 5]
  %bu = weight {path = "up.bias", role = "dense"} : f32[3]
  %y = linear %x, %w : f32[2, 3]
  %z = linear %x, %w, %b, _, %r : f32[2, 3]
  %g = gated_linear %x, %w, %u {act = "silu"} : f32[2, 3]
  %h = gated_linear %x, %w, %u, %b, %bu {act = "relu2"} : f32[2, 3]
  %table = weight {path = "table.weight", role = "embed"} : bf16[4, 3]
  %e = embed %ids, %table : f32[1, 3, 3]
  %n = cast %y {to = bf16} : bf16[2, 3]
  %m = cast %n {to = f32} : f32[2, 3]
  %i = cast %r {to = i32} : i32[2, 3]
  return %y, %z, %g, %h, %e, %m, %i
}
""", [{"inputs": [("f32", x), ("f32", r), ("i32", ids)],
       "expect": [x @ w.T, r + g, (x @ w.T) / (1 + np.exp(-(x @ w.T))) * (x @ u.T), np.maximum(g, 0) ** 2 * up,
                  table[ids], bf16(x @ w.T), np.trunc(r).astype(int)]}], [("table.weight", "bf16", table), ("gate.weight", "f32", w),
                                                                       ("gate.bias", "f32", b), ("up.weight", "f32", u), ("up.bias", "f32", bu)])

    B = 128
    O, I = 130, 260
    q = np.zeros((O, I))
    q[0, :4], q[129, 255:260] = [1, 2, -1.5, 0.5], [1, -2, 3, 4, -0.25]
    scale = np.array([[0.5, 2, 4], [0.25, 8, 1]])
    x = np.zeros((1, I))
    x[0, :4], x[0, 255:260] = [1, 1, 2, -4], [2, 3, 1, -1, 4]
    y = np.zeros((1, O))
    for o in range(O):
        for i in range(I):
            y[0, o] += x[0, i] * q[o, i] * scale[o // B, i // B]
    case("linear_fp8", "FP8 weights with a scale per 128 x 128 block, ragged in both directions.", """
model @fp8(%x: f32[1, 260]) -> (f32[1, 130]) {
  %w = weight {path = "w", role = "dense"} : f8e4m3[130, 260]
  %s = weight {path = "w_scale_inv", role = "dense"} : f32[2, 3]
  %y = linear %x, %w, _, %s : f32[1, 130]
  return %y
}
""", [{"inputs": [("f32", x)], "expect": [y]}], [("w", "f8e4m3", q), ("w_scale_inv", "f32", scale)])


def bf16(a):
    """Round to nearest, ties to even."""
    u = np.asarray(a, np.float32).view(np.uint32).astype(np.uint64)
    u = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16) << 16
    return u.astype(np.uint32).view(np.float32).astype(np.float64)


# ---- experts ------------------------------------------------------------------------------------------------------------


def expert_cases():
    T, d, E, k = 3, 2, 4, 3
    x, w = grid(T, d), grid(E, d, d)
    z = grid(T, k, d)
    ids = np.array([[2, 0, 3], [1, -1, 1], [3, 2, 0]])
    gates = grid(T, k)
    per = np.zeros((T, k, d))
    per2 = np.zeros((T, k, d))
    for t in range(T):
        for j in range(k):
            if ids[t, j] >= 0:
                per[t, j] = np.tanh(w[ids[t, j]] @ x[t])
                per2[t, j] = np.tanh(w[ids[t, j]] @ z[t, j])
    body = """
dim T
dim R

func @one(%x: f32[R, 2]) -> (f32[R, 2]) {
  %w = weight {path = "w", role = "experts", experts = 4} : f32[2, 2]
  %h = linear %x, %w : f32[R, 2]
  %y = tanh %h : f32[R, 2]
  return %y
}
"""
    case("expert_map", "Rows through the experts they chose, one row a token and one row a choice; then summed.", body + """
model @map(%x: f32[T, 2], %z: f32[T, 3, 2], %g: f32[T, 3], %ids: i32[T, 3]) -> (f32[T, 3, 2], f32[T, 3, 2], f32[T, 2], f32[T, 2]) {
  %a = expert_map %x, %ids {body = @one, experts = 4} : f32[T, 3, 2]
  %b = expert_map %z, %ids {body = @one, experts = 4} : f32[T, 3, 2]
  %c = expert_sum %x, %g, %ids {body = @one, experts = 4} : f32[T, 2]
  %d = expert_sum %z, %g, %ids {body = @one, experts = 4} : f32[T, 2]
  return %a, %b, %c, %d
}
""", [{"inputs": [("f32", x), ("f32", z), ("f32", gates), ("i32", ids)],
       "expect": [per, per2, (per * gates[..., None]).sum(1), (per2 * gates[..., None]).sum(1)]}], [("w", "f32", w)])

    ids = np.array([[4, 0], [1, 5], [5, 4]])
    gates = np.abs(grid(T, 2)) + 0.25
    out = np.zeros((T, d))
    on = np.zeros((T, d))
    for t in range(T):
        for j in range(2):
            e, g = ids[t, j], gates[t, j]
            out[t] += g * (np.tanh(w[e] @ x[t]) if e < E else x[t])
            on[t] += np.tanh(w[e] @ (g * x[t])) if e < E else g * x[t]
    route = """
func @route(%g: f32[T, 2], %ids: i32[T, 2]) -> (f32[T, 2], i32[T, 2]) {
  return %g, %ids
}
"""
    case("moe_identity", "Ids from 4 on are identity experts: with weights on the output, on the input, and as a primitive.",
         body + route + """
model @identity(%x: f32[T, 2], %g: f32[T, 2], %ids: i32[T, 2]) -> (f32[T, 2], f32[T, 2], f32[T, 2]) {
  %y = moe %x, %g, %ids {route = @route, body = @one, experts = 4, identity = 2} : f32[T, 2]
  %z = moe %x, %g, %ids {route = @route, body = @one, experts = 4, identity = 2, on_input = true} : f32[T, 2]
  %i = moe.identity %x, %g, %ids {first = 4} : f32[T, 2]
  return %y, %z, %i
}
""", [{"inputs": [("f32", x), ("f32", gates), ("i32", ids)],
       "expect": [out, on, x * (gates * (ids >= 4)).sum(1, keepdims=True)]}], [("w", "f32", w)])


def plan_case():
    x = grid(2, 4)
    wg, wu, wd, norm = grid(6, 4), grid(6, 4), grid(4, 6), grid(4)
    n = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * norm
    g = n @ wg.T
    h = g / (1 + np.exp(-g)) * (n @ wu.T)
    case("plan_packed", "Stage plan: weights are packed, a pair holds gate above up, vectors are widened to f32.", """
moir 1 stage=plan
dim T

model @ffn(%x: f32[T, 4]) -> (f32[T, 4]) {
  %norm = packed {path = "norm.weight", role = "norm", layout = "rows"} : f32[4]
  %n = rmsnorm %x, %norm {eps = 0.001} : f32[T, 4]
  %pair = packed {path = "gate.weight", path2 = "up.weight", role = "dense", layout = "pair_panels", nr = 16} : f32[12, 4]
  %h = gated_linear %n, %pair, %pair {act = "silu"} : f32[T, 6]
  %down = packed {path = "down.weight", role = "dense", layout = "panels", nr = 16} : f32[4, 6]
  %y = linear %h, %down, _, _, %x : f32[T, 4]
  %z = copy %y : f32[T, 4]
  return %z
}
""", [{"inputs": [("f32", x)], "expect": [x + h @ wd.T]}],
         [("norm.weight", "bf16", norm), ("gate.weight", "f32", wg), ("up.weight", "f32", wu), ("down.weight", "f32", wd)])


def latent_cases():
    H, n, K = 3, 7, 21
    x, y, w = grid(2, 3, H, 4, scale=1), grid(2, 3, H, K, scale=1), grid(H * n, K)
    m = w.reshape(H, n, K)
    case("head_linear", "A matrix for each head, both ways.", """
dim B
dim S

model @heads(%x: f32[B, S, 3, 4], %y: f32[B, S, 3, 21]) -> (f32[B, S, 3, 21], f32[B, S, 3, 3]) {
  %w = weight {path = "w", role = "attention"} : bf16[21, 21]
  %t = head_linear %x, %w {begin = 0, end = 4, transposed = true} : f32[B, S, 3, 21]
  %u = head_linear %y, %w {begin = 4, end = 7} : f32[B, S, 3, 3]
  return %t, %u
}
""", [{"inputs": [("f32", x), ("f32", y)], "steps": [2, 1],
       "expect": [np.einsum("bshi,hik->bshk", x, m[:, :4]), np.einsum("bshk,hok->bsho", y, m[:, 4:])]}], [("w", "bf16", w)])

    q, c, q_rot, k_rot = grid(2, 5, 3, 6, scale=1), grid(2, 5, 6, scale=1), grid(2, 5, 3, 2, scale=1), grid(2, 5, 1, 2, scale=1)
    keys = np.concatenate([c[:, :, None], k_rot], -1)
    case("latent_sdpa", "Keys in two parts, the first of which is the value too.", """
dim B
dim S
dim C

model @latent(%q: f32[B, S, 3, 6], %c: f32[B, S, 6], %q_rot: f32[B, S, 3, 2], %k_rot: f32[B, S, 1, 2]) -> (f32[B, S, 3, 6], f32[B, S, 3, 6]) {
  %cc = cache %c : f32[B, C, 6]
  %kc = cache %k_rot : f32[B, C, 1, 2]
  %o = latent_sdpa %q, %cc, %q_rot, %kc {scale = 0.5} : f32[B, S, 3, 6]
  %p = latent_sdpa %q, %cc, %q_rot, %kc {scale = 1.5, window = 2, softcap = 2.0} : f32[B, S, 3, 6]
  return %o, %p
}
""", [{"inputs": [("f32", q), ("f32", c), ("f32", q_rot), ("f32", k_rot)], "steps": [2, 1, 2],
       "expect": [attention(np.concatenate([q, q_rot], -1), keys, c[:, :, None], 0.5),
                  attention(np.concatenate([q, q_rot], -1), keys, c[:, :, None], 1.5, window=2, softcap=2.0)]}])


rope_cases()
attention_cases()
scan_cases()
norm_cases()
elementwise_cases()
shape_cases()
linear_cases()
expert_cases()
plan_case()
latent_cases()
finish()
