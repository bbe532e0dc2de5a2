"""What is in a transformers MoE block: the arguments of moec.torch.MoE that make the same layer, and its tensors by state_dict key."""
from __future__ import annotations

import torch
from torch import nn

from ._lib import Error

ACTS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
         "relu": "relu", "relu2": "relu2", "SiLU": "silu", "SiLUActivation": "silu", "GELUActivation": "gelu", "GELU": "gelu",
         "NewGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh", "ReLU": "relu"}
BLOCKS = ("MixtralSparseMoeBlock", "Qwen2MoeSparseMoeBlock", "Qwen3MoeSparseMoeBlock", "OlmoeSparseMoeBlock", "DeepseekV3MoE")


def activation(experts, config):
    act = getattr(config, "hidden_act", None)
    if act is None:
        act = type(getattr(experts, "act_fn", None)).__name__
    if act not in ACTS:
        raise Error(f"from_transformers: activation {act!r} is none of {', '.join(sorted(set(ACTS.values())))}", "unsupported")
    return ACTS[act]


def _packed(experts):
    """gate_up_proj [E, 2 F, D] and down_proj [E, D, F], and one of the modules that hold them."""
    if hasattr(experts, "gate_up_proj") and not isinstance(experts, nn.ModuleList):
        if getattr(experts, "is_transposed", False) or getattr(experts, "has_bias", False):
            raise Error("from_transformers: transposed or biased experts are not supported", "unsupported")
        return experts.gate_up_proj, experts.down_proj, experts
    names = ("w1", "w3", "w2") if hasattr(experts[0], "w1") else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (torch.stack([getattr(e, name).weight.detach() for e in experts]) for name in names)
    return nn.Parameter(torch.cat([gate, up], dim=1)), nn.Parameter(down), experts[0]


def read_block(block, config):
    """(arguments of MoE, its tensors by state_dict key)"""
    kind = type(block).__name__
    if kind not in BLOCKS:
        raise Error(f"from_transformers: {kind} is none of {', '.join(BLOCKS)}", "unsupported")
    config = config if config is not None else getattr(block, "config", None)
    router = block.gate

    def setting(*names):
        for holder in (router, block, config):
            for name in names:
                if getattr(holder, name, None) is not None:
                    return getattr(holder, name)
        raise Error(f"from_transformers: {kind} does not say its {names[0]}: pass the model's config", "not found")

    gate_up, down, one = _packed(block.experts)
    n_experts, d_model, d_expert = down.shape
    tensors = {"gate.weight": router.weight, "experts.gate_up_proj": gate_up, "experts.down_proj": down}
    arguments = dict(d_model=d_model, d_expert=d_expert, n_experts=n_experts, top_k=int(setting("top_k", "num_experts_per_tok")),
                     act=activation(one, config))
    if kind == "DeepseekV3MoE":
        tensors["gate.e_score_correction_bias"] = router.e_score_correction_bias
        arguments.update(score="sigmoid", bias=True, groups=int(setting("num_group", "n_group")), keep_groups=int(setting("topk_group")),
                         renorm=bool(setting("norm_topk_prob")), eps=1e-20, scale=float(setting("routed_scaling_factor")))
        shared, label = block.shared_experts, "shared_experts"
    elif kind == "MixtralSparseMoeBlock":
        arguments.update(renorm=True, jitter=float(getattr(block, "jitter_noise", 0) or 0))
        shared, label = None, "shared_experts"
    else:
        arguments.update(renorm=bool(setting("norm_topk_prob")))
        shared, label = getattr(block, "shared_expert", None), "shared_expert"
    if shared is not None:
        arguments.update(d_shared=shared.gate_proj.weight.shape[0], shared_label=label)
        for name in ("gate_proj", "up_proj", "down_proj"):
            tensors[f"{label}.{name}.weight"] = getattr(shared, name).weight
        if label == "shared_expert":
            arguments["shared_gate"] = True
            tensors["shared_expert_gate.weight"] = block.shared_expert_gate.weight
    return arguments, tensors
