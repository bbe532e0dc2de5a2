"""Texts of layers, for moec.layer. Expert weights are packed as transformers packs them: gate_up_proj [E, 2 F, D], down_proj
[E, D, F]; so a layer reads a transformers block's tensors where they lie."""
from __future__ import annotations

from typing import Optional, Union

from ._lib import Error

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")

_PACKED = """block packed(x: [..., d], ff, act = silu) -> [..., d] {
  g, u = split(linear@gate_up_proj(x, 2 * ff), [ff, ff])
  return linear@down_proj(act(g) * u, d)
}
"""


def _positive(**sizes):
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Error(f"{name} is {value!r}; it must be a whole number of at least 1")


def route(top_k: int, *, score: str = "softmax", renorm: bool = True, eps: float = 0.0, bias: bool = False, groups: int = 1,
          keep_groups: int = 1, scale: float = 1.0) -> str:
    """The stages of the usual routers: score "softmax" or "sigmoid"; bias: a selection bias, moved by bias_update."""
    if score not in ("softmax", "sigmoid"):
        raise Error(f"score is {score!r}; it must be 'softmax' or 'sigmoid' (other routes: give the stages as text)")
    stages = ["linear@gate", score]
    if bias:
        stages.append("select_bias@e_score_correction_bias")
    if groups > 1:
        stages.append(f"groups({groups}, keep = {keep_groups})")
    stages.append(f"top({top_k})")
    if renorm:
        stages.append(f"renorm(eps = {eps!r})" if eps else "renorm")
    if scale != 1:
        stages.append(f"scale({scale!r})")
    return " | ".join(stages)


def moe(d_model: int, d_expert: int, n_experts: int, top_k: int = 2, *, route: Optional[str] = None, act: str = "silu",
        d_shared: int = 0, shared_gate: bool = False, shared_label: str = "shared_experts",
        aux: Union[None, bool, str] = None, z: bool = False) -> str:
    """A mixture-of-experts layer y = f(x), x f32 [T, D]; with aux="sequence" x is [B, S, D].

    route: stages such as "linear@gate | softmax | top 2 | renorm" (docs/LANGUAGE.md); default: that, with top_k.
    d_shared: width of a shared expert that every token goes through, multiplied by sigmoid(linear(x)) with shared_gate.
    aux ("switch" or "sequence") and z: the raw losses as further outputs.
    """
    _positive(d_model=d_model, d_expert=d_expert, n_experts=n_experts, top_k=top_k)
    if act not in ACTIVATIONS:
        raise Error(f"act is {act!r}; it must be one of {', '.join(ACTIVATIONS)}")
    if aux is True:
        aux = "switch"
    if aux not in (None, False, "switch", "sequence"):
        raise Error(f"aux is {aux!r}; it must be None, 'switch' or 'sequence'")
    route = route or f"linear@gate | softmax | top({top_k}) | renorm"
    rows = "B, S" if aux == "sequence" else "T"
    shared = ""
    if d_shared:
        gate = f" gate linear@{shared_label}_gate(1) | sigmoid" if shared_gate else ""
        shared = f"    shared@{shared_label} 1 of swiglu({d_shared}, act = {act})\n    ".rstrip(" ")
        shared = shared.rstrip("\n") + gate + "\n"
    train = [f"aux {aux}"] if aux else []
    if z:
        train.append("z 1")
    return (f"moe 1\ndim {rows}\n\n{_PACKED}\n"
            f"model moe_layer(x: f32[{rows}, {d_model}]) -> f32[{rows}, {d_model}] {{\n"
            f"  return moe@_(x) {{\n"
            f"    route   {route}\n"
            f"    experts {n_experts} of packed({d_expert}, act = {act})\n"
            f"{shared}  }}\n}}\n\nprecision {{ storage f32 }}\n"
            + (f"train {{ {'; '.join(train)} }}\n" if train else ""))


def experts(d_model: int, d_expert: int, n_experts: int, top_k: int, *, act: str = "silu") -> str:
    """Experts whose choices are given: y[t] = sum over j of gates[t, j] * expert_{ids[t, j]}(x[t]). Ids of n_experts and above
    add nothing. This is IR: compile it under a name that ends in .moir."""
    _positive(d_model=d_model, d_expert=d_expert, n_experts=n_experts, top_k=top_k)
    if act not in ACTIVATIONS:
        raise Error(f"act is {act!r}; it must be one of {', '.join(ACTIVATIONS)}")
    d, f, e, k = d_model, d_expert, n_experts, top_k
    rows = f"{k}*T" if k > 1 else "T"
    return f"""moir 1 stage=tensor
dim T
meta "precision.storage" = "f32"

model @moe_experts(%x: f32[T, {d}], %ids: i32[T, {k}], %gates: f32[T, {k}]) -> (f32[T, {d}]) {{
  %offsets, %tokens, %slots, %g = moe.dispatch %gates, %ids {{experts = {e}}} : i32[{e + 1}], i32[{rows}], i32[{rows}], f32[{rows}]
  %rows = moe.permute %x, %tokens, %offsets : f32[{rows}, {d}]
  %0 = weight {{path = "gate_up_proj", role = "experts"}} : f32[{e}, {2 * f}, {d}]
  %1 = grouped_matmul %rows, %0, %offsets : f32[{rows}, {2 * f}]
  %2, %3 = split %1 {{sizes = [{f}, {f}]}} : f32[{rows}, {f}], f32[{rows}, {f}]
  %4 = {act} %2 : f32[{rows}, {f}]
  %5 = mul %4, %3 : f32[{rows}, {f}]
  %6 = weight {{path = "down_proj", role = "experts"}} : f32[{e}, {d}, {f}]
  %7 = grouped_matmul %5, %6, %offsets : f32[{rows}, {d}]
  %y = moe.unpermute %7, %offsets, %tokens, %g : f32[T, {d}]
  return %y
}}
"""
