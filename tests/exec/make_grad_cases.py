#!/usr/bin/env python3
"""Writes grad_*: what training adds.  Derivatives come from torch.autograd in f64, applied to formulas written out here,
never from a formula of the derivative; sums over choices are plain loops.

    python make_grad_cases.py            # rewrites the files
    python make_grad_cases.py --check    # says which would change
"""
import math

import numpy as np
import torch

import case_text
from case_text import case, finish, grid

case_text.rng.seed(11)
torch.set_default_dtype(torch.float64)


def text_type(a, dtype="f32"):
    a = np.asarray(a)
    return case_text.type_of(a, dtype) if a.ndim else dtype  # as the printer writes a scalar


def module(name, comment, inputs, ops, symbol=""):
    """inputs: (name, array), integers become i32.  ops: (results, text without types), results a list of (name, array);
    a name that begins with _ is not returned.  symbol: the name of axes without elements."""
    def kind(a):
        return "i32" if np.asarray(a).dtype.kind == "i" else "f32"
    formals = ", ".join("%%%s: %s" % (n, text_type(a, kind(a))) for n, a in inputs).replace("[0,", "[%s," % symbol)
    head = "dim %s in 0..16\n\n" % symbol if symbol else ""
    lines, returned, want = [], [], []
    for results, text in ops:
        names = ", ".join("%" + n for n, _ in results)
        types = ", ".join(a if isinstance(a, str) else text_type(a, kind(a)) for _, a in results)
        lines.append("  %s = %s : %s" % (names, text, types))
        for n, a in results:
            if n[0] != "_":
                returned.append((n, text_type(a, kind(a))))
                want.append(np.asarray(a))
    case(name, comment, "%smodel @m(%s) -> (%s) {\n%s\n  return %s\n}\n" % (
        head, formals, ", ".join(t for _, t in returned), "\n".join(lines), ", ".join("%" + n for n, _ in returned)),
        [{"inputs": [(kind(a), np.asarray(a)) for _, a in inputs], "expect": want}])


def grads(f, args, dy):
    """df(args) / d args, contracted with dy."""
    ts = [torch.tensor(np.asarray(a), dtype=torch.float64, requires_grad=True) for a in args]
    y = f(*ts)
    g = torch.autograd.grad(y, ts, torch.tensor(np.asarray(dy), dtype=torch.float64), allow_unused=True)
    return [(torch.zeros_like(t) if v is None else v).numpy() for v, t in zip(g, ts)]


# ---- elementwise -------------------------------------------------------------------------------------------------------

ACTS = {"silu": lambda x: x * torch.sigmoid(x), "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))) / 2,
        "relu": torch.relu, "relu2": lambda x: torch.relu(x) ** 2, "sigmoid": torch.sigmoid}


def elementwise():
    x = np.concatenate([grid(2, 5, scale=4), np.array([[0, -0.5, 30, -30, 1]])])
    p, dy = np.abs(x) + 0.25, grid(3, 5)
    small = np.clip(x, -4, 4)
    unary = [("neg", lambda t: -t, x)] + [(n, f, x) for n, f in ACTS.items()] + [
        ("tanh", torch.tanh, x), ("exp", torch.exp, small), ("log", torch.log, p), ("log1p", torch.log1p, p),
        ("sqrt", torch.sqrt, p), ("softplus", lambda t: torch.nn.functional.softplus(t, threshold=20), x)]
    ops = []
    for n, f, at in unary:
        name = {id(x): "x", id(p): "p", id(small): "small"}[id(at)]
        ops.append(([("d_" + n, grads(f, [at], dy)[0])], 'unary_grad %%%s, %%dy {of = "%s"}' % (name, n)))
    ops.append(([("d_floor", np.zeros((3, 5)))], 'unary_grad %x, %dy {of = "floor"}'))
    # 0.5 and -0.5 are among the elements: the bounds themselves count as inside
    inside = ((x >= -0.5) & (x <= 1)) * dy
    ops.append(([("d_clamp", inside)], 'unary_grad %x, %dy {of = "clamp", lo = -0.5, hi = 1.0}'))
    ops.append(([("d_cap", grads(lambda t: 3 * torch.tanh(t / 3), [x], dy)[0])], 'unary_grad %x, %dy {of = "softcap", cap = 3.0}'))
    module("grad_unary", "The derivative of every elementwise op of one operand; corners: 0, the bounds of clamp.",
           [("x", x), ("p", p), ("small", small), ("dy", dy)], ops)

    g, u, dh, gates = grid(4, 5), grid(4, 5), grid(4, 5), grid(4)
    ops = []
    for n, f in ACTS.items():
        h = f(torch.tensor(g)).numpy() * u
        dg, du = grads(lambda a, b: f(a) * b, [g, u], dh)
        ops.append(([("h_" + n, h)], 'glu %%g, %%u {act = "%s"}' % n))
        ops.append(([("dg_" + n, dg), ("du_" + n, du)], 'glu_grad %%g, %%u, %%dh {act = "%s"}' % n))
    for n in ("silu", "gelu"):
        f = ACTS[n]
        # y = sum_r gates[r] h[r] . w with w = da: what the experts' outputs and the gates are to the loss
        dg, du, dgates = grads(lambda a, b, c: (c[:, None] * f(a) * b * torch.tensor(dh)).sum(), [g, u, gates], 1.0)
        h = f(torch.tensor(g)).numpy() * u
        ops.append(([("mg_" + n, dg), ("mu_" + n, du), ("mh_" + n, h), ("mgates_" + n, dgates)],
                    'moe.glu_grad %%g, %%u, %%dh, %%gates {act = "%s"}' % n))
    ops.append(([("dots", (g * dh).sum(-1))], "row_dot %g, %dh"))
    module("grad_glu", "Gated units and their derivatives, alone and in one sweep with the gates of experts.",
           [("g", g), ("u", u), ("dh", dh), ("gates", gates)], ops)


# ---- along rows --------------------------------------------------------------------------------------------------------


def rows():
    x, dy, w = grid(2, 3, 5), grid(2, 3, 5), np.abs(grid(2, 3, 4, scale=1)) + 1 / 16
    signed = np.array([[0.5, -1.5, 0, 0.25], [-2, -0.5, 1, 0.0625]])
    signed_dy, dw = grid(2, 4), grid(2, 3, 4)

    def rms(t):
        return t / torch.sqrt((t * t).mean(-1, keepdim=True) + 1e-3)

    def layer(t):
        c = t - t.mean(-1, keepdim=True)
        return c / torch.sqrt((c * c).mean(-1, keepdim=True) + 1e-3)

    def l2(t):
        return t / torch.sqrt((t * t).sum(-1, keepdim=True) + 0.5)

    def renorm(eps, p, floor):
        def f(t):
            if floor:
                return t / torch.clamp(t.sum(-1, keepdim=True), min=floor)
            return t / ((t.abs() ** p).sum(-1, keepdim=True) ** (1 / p) + eps)
        return f

    y = torch.softmax(torch.tensor(x), -1).numpy()
    y = np.round(y * 64) / 64  # an operand like any other: short decimals
    soft = y * (dy - (dy * y).sum(-1, keepdims=True))
    s = torch.softmax(torch.tensor(x), -1).numpy()
    through = grads(lambda t: torch.softmax(t, -1), [x], dy)[0]
    ops = [([("rms", grads(rms, [x], dy)[0])], 'norm_grad %x, %dy {of = "rmsnorm", eps = 0.001}'),
           ([("layer", grads(layer, [x], dy)[0])], 'norm_grad %x, %dy {of = "layernorm", eps = 0.001}'),
           ([("l2", grads(l2, [x], dy)[0])], 'norm_grad %x, %dy {of = "l2norm", eps = 0.5}'),
           ([("soft", soft)], "softmax_grad %y, %dy"),
           ([("s", s)], "softmax %x"), ([("through", through)], "softmax_grad %s, %dy")]
    # 1.25 and 4: below the floor in some rows, above in others
    for i, (eps, p, floor) in enumerate([(0, 1, 0), (0.5, 1, 0), (0, 2, 0), (0.25, 3, 0), (0, 1, 1.25), (0, 1, 4)]):
        attrs = "eps = %s, p = %s, floor = %s" % (float(eps), float(p), float(floor))
        ops.append(([("renorm%d" % i, grads(renorm(eps, p, floor), [w], dw)[0])], "route.renorm_grad %%w, %%dw {%s}" % attrs))
    for i, p in enumerate((1, 2)):
        ops.append(([("signed%d" % i, grads(renorm(0.125, p, 0), [signed], signed_dy)[0])],
                    "route.renorm_grad %%signed, %%signed_dy {eps = 0.125, p = %s}" % float(p)))
    module("grad_rows", "Derivatives along the last axis: norms, softmax, renormed weights (also negative ones and a zero).",
           [("x", x), ("dy", dy), ("y", y), ("w", w), ("dw", dw), ("signed", signed), ("signed_dy", signed_dy)], ops)


# ---- matrix products ---------------------------------------------------------------------------------------------------


def products():
    x, dy, w, r = grid(2, 3, 5), grid(2, 3, 4), grid(4, 5), grid(2, 3, 5)
    dx, dw = grads(lambda a, b: a @ b.T, [x, w], dy)
    ids, rows = np.array([[3, 0, 3], [1, 3, 0]]), grid(2, 3, 4)
    dtable = grads(lambda t: t[torch.tensor(ids)], [grid(5, 4)], rows)[0]
    module("grad_linear", "Derivatives of linear, and of embed where ids repeat and some do not occur.",
           [("x", x), ("dy", dy), ("w", w), ("r", r), ("ids", ids), ("rows", rows)],
           [([("dx", dx)], "linear_dx %dy, %w"), ([("dxr", dx + r)], "linear_dx %dy, %w, %r"),
            ([("dw", dw)], "linear_dw %dy, %x"), ([("dtable", dtable)], "embed_dw %ids, %rows")])

    T, k, E, I, O = 5, 2, 4, 3, 2
    x, w, b = grid(T, I), grid(E, O, I), grid(E, O)
    dy, gates = grid(T, O), grid(T, k)
    ids = np.array([[3, 0], [0, -1], [1, 0], [3, 1], [-1, 3]])  # nobody chose expert 2; two choices are dropped
    order = sorted((ids[t, j], t * k + j) for t in range(T) for j in range(k) if ids[t, j] >= 0)

    def up(xs, ws, bias=None):
        """y[t] = sum of W_e x[t] (+ b_e) over its choices."""
        y = [torch.zeros(O) for _ in range(T)]
        for e, a in order:
            y[a // k] = y[a // k] + ws[e] @ xs[a // k] + (bias[e] if bias is not None else 0)
        return torch.stack(y)

    dx, dw, db = grads(up, [x, w, b], dy)
    # the same sum with gates on the inputs: per choice rows z [A, I]
    z = grid(T * k, I)

    def gated(zs, ws, gs):
        y = [torch.zeros(O) for _ in range(T)]
        for e, a in order:
            y[a // k] = y[a // k] + gs.reshape(-1)[a] * (ws[e] @ zs[a])
        return torch.stack(y)

    dz, dwg, _ = grads(gated, [z, w, gates], dy)
    plain_dz = grads(lambda zs: gated(zs, torch.tensor(w), torch.ones(T, k)), [z], dy)[0]
    res = grid(T * k, I)
    kept = np.zeros((T * k, 1))
    for _, a in order:
        kept[a] = 1
    y = up(torch.tensor(x), torch.tensor(w), torch.tensor(b)).numpy()
    sorted_types = [("_offsets", "i32[5]"), ("_tokens", "i32[10]"), ("_slots", "i32[10]"), ("_g", "f32[10]")]
    ops = [(sorted_types, "moe.dispatch %gates, %ids {experts = 4}"),
           # gather on load: rows of dy by token
           ([("_dx", "f32[10, 3]")], "grouped_dx %dy, %w, %_offsets, %_tokens"),
           ([("dx", dx)], "moe.unpermute %_dx, %_offsets, %_tokens"),
           ([("dw", dw)], "grouped_dw %dy, %x, %_offsets, %_tokens, %_tokens"),
           # rows in expert order
           ([("_dy", "f32[10, 2]")], "moe.permute %dy, %_tokens, %_offsets"),
           ([("_z", "f32[10, 3]")], "moe.permute %z, %_slots, %_offsets"),
           ([("_res", "f32[10, 3]")], "moe.permute %res, %_slots, %_offsets"),
           ([("_dz", "f32[10, 3]")], "grouped_dx %_dy, %w, %_offsets"),
           ([("dz", plain_dz)], "moe.unpermute %_dz, %_offsets, %_slots"),
           ([("_dzr", "f32[10, 3]")], "grouped_dx %_dy, %w, %_offsets, _, %_res"),
           ([("dzr", plain_dz + res * kept)], "moe.unpermute %_dzr, %_offsets, %_slots"),
           ([("dz_gated", dz)], "moe.unpermute %_dz, %_offsets, %_slots, %_g"),
           ([("dwg", dwg)], "grouped_dw %_dy, %_z, %_offsets, _, _, %_g"),
           ([("dwg2", dwg)], "grouped_dw %dy, %z, %_offsets, %_tokens, %_slots, %_g"),
           ([("_ones", "f32[10, 1]")], "fill  {value = 1.0}"),
           ([("db", db[..., None])], "grouped_dw %_dy, %_ones, %_offsets")]
    ops = [(r, t.replace("fill  ", "fill ")) for r, t in ops]
    module("grad_grouped", "Derivatives of grouped products; an expert without rows, dropped choices.",
           [("x", x), ("z", z), ("w", w), ("dy", dy), ("res", res), ("gates", gates), ("ids", ids)], ops)
    case("grad_gather", "Grouped products of rows gathered on load, by weights that lie row by row (as in plans of training).", """
moir 1 stage=plan
dim T

model @m(%x: f32[T, 3], %gates: f32[T, 2], %ids: i32[T, 2]) -> (f32[T, 2], f32[T, 2]) {
  %offsets, %tokens, %slots, %g = moe.dispatch %gates, %ids {experts = 4} : i32[5], i32[2*T], i32[2*T], f32[2*T]
  %w = packed {path = "w", role = "experts", layout = "rows"} : f32[4, 2, 3]
  %b = packed {path = "b", role = "experts", layout = "rows"} : f32[4, 2]
  %rows = grouped_matmul %x, %w, %offsets, %b, _, %tokens : f32[2*T, 2]
  %y = moe.unpermute %rows, %offsets, %tokens : f32[T, 2]
  %plain = grouped_matmul %x, %w, %offsets, _, _, %tokens : f32[2*T, 2]
  %z = moe.unpermute %plain, %offsets, %tokens : f32[T, 2]
  return %y, %z
}
""", [{"inputs": [("f32", x), ("f32", gates), ("i32", ids)], "expect": [y, up(torch.tensor(x), torch.tensor(w)).numpy()]}],
         [("w", "f32", w), ("b", "f32", b)])


# ---- attention ---------------------------------------------------------------------------------------------------------


def attention(scale, causal=True, window=0, chunk=0, softcap=0.0):
    def f(q, k, v):
        S, H, C, KV = q.shape[1], q.shape[2], k.shape[1], k.shape[2]
        ks, vs = k.repeat_interleave(H // KV, 2), v.repeat_interleave(H // KV, 2)
        z = torch.einsum("bshi,bchi->bhsc", q, ks) * scale
        if softcap:
            z = softcap * torch.tanh(z / softcap)
        p, c = torch.arange(C - S, C)[:, None], torch.arange(C)[None, :]
        seen = torch.ones(S, C, dtype=torch.bool)
        if causal:
            seen &= c <= p
        if window:
            seen &= c > p - window
        if chunk:
            seen &= c // chunk == p // chunk
        share = torch.softmax(z.masked_fill(~seen, -math.inf), -1)
        return torch.einsum("bhsc,bchi->bshi", share, vs)
    return f


def attention_cases():
    B, S, H, KV, h, hv = 2, 6, 4, 2, 4, 3
    q, k, v, dy = grid(B, S, H, h, scale=1), grid(B, S, KV, h, scale=1), grid(B, S, KV, hv), grid(B, S, H, hv)
    ops = []
    for i, (attrs, kw) in enumerate([
            ("scale = 0.5", {}), ("scale = 0.5, window = 3", {"window": 3}), ("scale = 0.5, chunk = 4", {"chunk": 4}),
            ("scale = 1.5, softcap = 2.0", {"softcap": 2.0}), ("scale = 0.5, causal = false", {"causal": False})]):
        scale = 1.5 if "1.5" in attrs else 0.5
        g = grads(attention(scale, **kw), [q, k, v], dy)
        ops.append(([(n + str(i), a) for n, a in zip(("dq", "dk", "dv"), g)], "sdpa_grad %%q, %%k, %%v, %%dy {%s}" % attrs))
    module("grad_sdpa", "The derivative of attention: grouped heads, and each way to hide keys.",
           [("q", q), ("k", k), ("v", v), ("dy", dy)], ops)

    x, dy = grid(1, 5, 2, 8), grid(1, 5, 2, 8)
    inv = [100.0 ** (-2 * i / 4) for i in range(2)]

    def rotate(t, adjacent):
        rows = []
        for s in range(5):
            out = [t[:, s, :, i] for i in range(8)]
            for i in range(2):
                a, b = (2 * i, 2 * i + 1) if adjacent else (i, i + 2)
                c, n = math.cos(s * inv[i]), math.sin(s * inv[i])
                out[a], out[b] = t[:, s, :, a] * c - t[:, s, :, b] * n, t[:, s, :, b] * c + t[:, s, :, a] * n
            rows.append(torch.stack(out, -1))
        return torch.stack(rows, 1)

    ops = []
    for i, adjacent in enumerate((False, True)):
        attrs = "theta = 100.0, dims = 4, inverse = true" + (", adjacent = true" if adjacent else "")
        ops.append(([("d%d" % i, grads(lambda t: rotate(t, adjacent), [x], dy)[0])], "rope %%dy {%s}" % attrs))
    module("grad_rope", "The inverse rotation is the derivative of the rotation.", [("dy", dy)], ops)


# ---- routing -----------------------------------------------------------------------------------------------------------


def routing():
    B, S, E, k = 2, 3, 4, 2
    logits = grid(B, S, E)
    scores = np.round(torch.softmax(torch.tensor(logits), -1).numpy() * 64) / 64
    ids = np.array([[[0, 2], [2, 1], [2, -1]], [[3, 0], [2, 3], [5, 2]]])  # a dropped choice and an identity expert
    w, d = grid(B, S, k), np.array(1.5)

    def share(chosen, tokens):
        return [sum((chosen == e).reshape(-1)) / (k * tokens) for e in range(E)]

    def batch(p):
        return E * sum(f * p[..., e].mean() for e, f in enumerate(share(ids, B * S)))

    def sequence(p):
        return sum(E * sum(f * p[b, :, e].mean() for e, f in enumerate(share(ids[b], S))) for b in range(B)) / B

    def z_loss(z):
        return (torch.log(torch.exp(z).sum(-1)) ** 2).mean()

    load, scattered = np.zeros((2, E)), np.zeros((B, S, E))
    for b, s, j in np.ndindex(B, S, k):
        e = ids[b, s, j]
        if 0 <= e < E:
            load[0, e] += 1
            load[1, e] += w[b, s, j]
            scattered[b, s, e] += w[b, s, j]
    twice, w2 = np.array([[1, 1, 0], [2, 2, 2]]), grid(2, 3)
    doubled = np.array([[w2[0, 2], w2[0, 0] + w2[0, 1], 0], [0, 0, w2[1].sum()]])
    t = torch.tensor(scores)
    module("grad_route", "Loads, routing losses over a batch and over sequences, their derivatives; scattered and masked "
           "weights.", [("logits", logits), ("scores", scores), ("w", w), ("ids", ids), ("d", d), ("w2", w2), ("twice", twice)], [
               ([("load", load)], "moe.load %w, %ids {experts = 4}"),
               ([("balance", batch(t).numpy())], "moe.balance %scores, %ids"),
               ([("per_sequence", sequence(t).numpy())], 'moe.balance %scores, %ids {per = "sequence"}'),
               ([("dbalance", grads(batch, [scores], d)[0])], "moe.balance_grad %ids, %d"),
               ([("dsequence", grads(sequence, [scores], d)[0])], 'moe.balance_grad %ids, %d {per = "sequence"}'),
               ([("z", z_loss(torch.tensor(logits)).numpy())], "moe.z_loss %logits"),
               ([("dz", grads(z_loss, [logits], d)[0])], "moe.z_loss_grad %logits, %d"),
               ([("scattered", scattered)], "route.scatter %w, %ids {experts = 4}"),
               ([("doubled", doubled)], "route.scatter %w2, %twice {experts = 3}"),
               ([("kept", w * (ids >= 0))], "route.mask %w, %ids"),
               ([("identity", w * (ids >= 4))], "route.mask %w, %ids {from = 4}")])

    none, no_ids = np.zeros((0, 4)), np.zeros((0, 2), int)
    module("grad_no_tokens", "No tokens: losses are 0, loads too.",
           [("scores", none), ("ids", no_ids), ("w", np.zeros((0, 2)))],
           [([("balance", np.array(0.0))], "moe.balance %scores, %ids"), ([("z", np.array(0.0))], "moe.z_loss %scores"),
            ([("load", np.zeros((2, 4)))], "moe.load %w, %ids {experts = 4}")], symbol="T")


# ---- shapes ------------------------------------------------------------------------------------------------------------


def shapes():
    x, y = grid(2, 3, 4), grid(2, 2, 4)
    to = [("to_row", (4,)), ("to_column", (2, 3, 1)), ("to_middle", (2, 1, 4)), ("to_scalar", ()), ("to_same", (2, 3, 4)),
          ("to_ones", (1, 1, 1)), ("to_two", (3, 1))]
    ops = [([(n, grads(lambda t: t.expand(2, 3, 4), [np.zeros(s)], x)[0])], "sum_to %x") for n, s in to]
    un = np.zeros((2, 5, 4))
    un[:, 2:4] = y
    last = np.zeros((2, 2, 6))
    last[..., 1:5] = y
    ops += [([("unslice", un)], "unslice %y {axis = 1, begin = 2, size = 5}"),
            ([("unslice_last", last)], "unslice %y {axis = -1, begin = 1, size = 6}"),
            ([("fill", np.full((2, 3), -1.25))], "fill {value = -1.25}"), ([("fill0", np.array(2.5))], "fill {value = 2.5}")]
    module("grad_shapes", "Sums back over what was stretched, slices put back, and constants.", [("x", x), ("y", y)], ops)


elementwise()
rows()
products()
attention_cases()
routing()
shapes()
finish()
