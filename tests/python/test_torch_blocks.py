"""moec.torch against transformers' MoE blocks: outputs and gradients to 1e-5 relative in f32, routing flips counted apart (and none),
on the same tensors, with the same state_dict."""
import copy
import sys
import unittest

import common

common.need("torch", "transformers")

import torch
from transformers import (DeepseekV3Config, MixtralConfig, MixtralForCausalLM, OlmoeConfig, Qwen2MoeConfig, Qwen2MoeForCausalLM,
                          Qwen3MoeConfig)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

import moec.torch
from moec.torch import Error, Experts, MoE

D, F, E, K = 96, 72, 8, 2
FAMILIES = {
    "mixtral": (MixtralSparseMoeBlock, MixtralConfig, dict(intermediate_size=F, num_local_experts=E, num_experts_per_tok=K)),
    "qwen2_moe": (Qwen2MoeSparseMoeBlock, Qwen2MoeConfig, dict(moe_intermediate_size=F, shared_expert_intermediate_size=80, num_experts=E,
                                                              num_experts_per_tok=K, norm_topk_prob=False)),
    "qwen3_moe": (Qwen3MoeSparseMoeBlock, Qwen3MoeConfig, dict(moe_intermediate_size=F, num_experts=16, num_experts_per_tok=4,
                                                              norm_topk_prob=True)),
    "olmoe": (OlmoeSparseMoeBlock, OlmoeConfig, dict(intermediate_size=F, num_experts=E, num_experts_per_tok=K, norm_topk_prob=False)),
    "deepseek_v3": (DeepseekV3MoE, DeepseekV3Config, dict(moe_intermediate_size=F, n_routed_experts=16, num_local_experts=16, n_shared_experts=2,
                                                          num_experts_per_tok=4, n_group=4, topk_group=2, norm_topk_prob=True,
                                                          routed_scaling_factor=2.5)),
}


def block_of(family, seed=0):
    cls, config_cls, settings = FAMILIES[family]
    config = config_cls(hidden_size=D, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, hidden_act="silu", **settings)
    config._experts_implementation = "eager"
    block = cls(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in block.named_parameters():
            p.normal_(0, 0.3 if name.startswith("gate") else 0.1, generator=generator)
        for _, b in block.named_buffers():
            b.normal_(0, 0.05, generator=generator)
    return block, config


def gradients(module, x, dy):
    for p in module.parameters():
        p.grad = None
    x = x.clone().requires_grad_()
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(dy)
    return y.detach(), {"x": x.grad, **{n: p.grad for n, p in module.named_parameters()}}


class Families(unittest.TestCase):
    def compare(self, family, seed, shape, **options):
        block, config = block_of(family, seed)
        ours = MoE.from_transformers(copy.deepcopy(block), config, **options)
        generator = torch.Generator().manual_seed(seed + 100)
        x, dy = torch.randn(*shape, D, generator=generator), torch.randn(*shape, D, generator=generator)
        y0, g0 = gradients(block, x, dy)
        y1, g1 = gradients(ours, x, dy)
        router = block.gate(x.reshape(-1, D) if family != "deepseek_v3" else x)
        chosen = torch.bincount(router[2].reshape(-1), minlength=ours.n_experts).float()
        away = ((y0 - y1).abs().amax(-1) > 1e-3 * y0.abs().max()).sum().item()
        flips = max(away, int((ours.load[0] - chosen).abs().sum().item()))
        self.assertEqual(flips, 0, f"{family}: {flips} tokens were routed differently")
        self.assertEqual(set(g0), set(g1))
        errors = {"y": common.relative(y1, y0), **{n: common.relative(g1[n], g0[n]) for n in g0}}
        worst = max(errors, key=errors.get)
        print(f"  {family} {list(shape)} {options or ''}: worst {errors[worst]:.1e} ({worst})", file=sys.stderr)
        for name, error in errors.items():
            self.assertLessEqual(error, 1e-5, f"{family}: {name}")

    def test_gradients(self):
        for family in FAMILIES:
            for seed, shape in enumerate([(2, 33), (1, 1), (3, 70)]):
                with self.subTest(family=family, shape=shape):
                    self.compare(family, seed, shape)

    def test_recompute(self):
        for family in FAMILIES:
            with self.subTest(family=family):
                self.compare(family, 5, (2, 40), recompute=True)

    def test_same_tensors_same_state(self):
        for family in FAMILIES:
            block, config = block_of(family)
            ours = MoE.from_transformers(block, config)
            with self.subTest(family=family):
                theirs = {**dict(block.named_parameters()), **dict(block.named_buffers())}
                mine = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
                self.assertEqual(set(theirs), set(mine))
                for name, t in theirs.items():
                    self.assertIs(t, mine[name], name)
                self.assertEqual(set(block.state_dict()), set(ours.state_dict()))
                ours.load_state_dict(block.state_dict())

    def test_experts_one_by_one(self):
        """The layout of transformers 4: a list of experts, each with matrices of its own."""
        block, config = block_of("olmoe")
        old = torch.nn.Module()
        old.__class__ = type("OlmoeSparseMoeBlock", (torch.nn.Module,), {})
        old.gate, old.top_k, old.norm_topk_prob = torch.nn.Linear(D, E, bias=False), K, False
        old.gate.weight = block.gate.weight
        old.experts = torch.nn.ModuleList()
        for gate_up, down in zip(block.experts.gate_up_proj.detach(), block.experts.down_proj.detach()):
            expert = torch.nn.Module()
            for name, w in (("gate_proj", gate_up[:F]), ("up_proj", gate_up[F:]), ("down_proj", down)):
                linear = torch.nn.Linear(*w.shape[::-1], bias=False)
                linear.weight = torch.nn.Parameter(w.clone())
                expert.add_module(name, linear)
            old.experts.append(expert)
        x = torch.randn(7, D)
        torch.testing.assert_close(MoE.from_transformers(old, config)(x), block(x[None])[0], rtol=1e-5, atol=1e-6)

    def test_refused(self):
        block, config = block_of("mixtral")
        with self.assertRaisesRegex(Error, "gate.weight is bfloat16.*block.float"):
            MoE.from_transformers(block.bfloat16(), config)
        with self.assertRaisesRegex(Error, "Linear is none of MixtralSparseMoeBlock"):
            MoE.from_transformers(torch.nn.Linear(2, 2))


class Losses(unittest.TestCase):
    def test_aux_and_z(self):
        block, config = block_of("mixtral", 3)
        ours = MoE.from_transformers(copy.deepcopy(block), config, aux="switch", z=True)
        x = torch.randn(2, 50, D, generator=torch.Generator().manual_seed(4))
        for p in block.parameters():
            p.grad = None
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        logits = block.gate(a)[0]
        aux = load_balancing_loss_func((logits,), E, K) / K  # ours counts choices / (k tokens)
        z = logits.logsumexp(-1).square().mean()
        (block(a).square().mean() + 0.3 * aux + 0.7 * z).backward()
        (ours(b).square().mean() + 0.3 * ours.aux + 0.7 * ours.z).backward()
        self.assertLessEqual(common.relative(ours.aux, aux), 1e-5)
        self.assertLessEqual(common.relative(ours.z, z), 1e-5)
        self.assertLessEqual(common.relative(b.grad, a.grad), 1e-5)
        for (name, p), (_, q) in zip(sorted(block.named_parameters()), sorted(ours.named_parameters())):
            self.assertLessEqual(common.relative(q.grad, p.grad), 1e-5, name)

    def test_sequence_aux(self):
        layer = MoE(D, F, E, K, score="sigmoid", aux="sequence")
        torch.nn.init.normal_(layer.gate.weight, 0, 0.3, generator=torch.Generator().manual_seed(1))
        x = torch.randn(3, 20, D, generator=torch.Generator().manual_seed(2))
        layer(x)
        s = (x @ layer.gate.weight.T).sigmoid()
        ids = s.topk(K, -1)[1]
        f = torch.nn.functional.one_hot(ids, E).sum((1, 2)) / (K * 20)
        p = (s / s.sum(-1, keepdim=True)).mean(1)
        want = (E * (f * p).sum(-1)).mean()
        self.assertLessEqual(common.relative(layer.aux, want), 1e-5)
        layer.gate.weight.grad = None
        layer.aux.backward()
        self.assertLessEqual(common.relative(layer.gate.weight.grad, torch.autograd.grad(want, layer.gate.weight)[0]), 1e-5)

    def test_update_bias(self):
        layer = MoE(D, F, E, K, score="sigmoid", bias=True, renorm=True)
        layer(torch.randn(64, D))
        counts = layer.load[0].clone()
        layer.update_bias(rate=0.01)
        torch.testing.assert_close(layer.gate.e_score_correction_bias, 0.01 * torch.sign(counts.mean() - counts))
        layer.update_bias(counts, rule="ema", rate=0.01, decay=0.5)
        self.assertIn("load_ema", layer.state_dict())
        with self.assertRaisesRegex(Error, "bias=True"):
            MoE(D, F, E, K).update_bias()


class WholeModels(unittest.TestCase):
    def model(self, cls=MixtralForCausalLM, config_cls=MixtralConfig, **more):
        torch.manual_seed(0)
        config = config_cls(vocab_size=97, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, **more)
        return cls(config)

    def same(self, theirs, ours):
        ids = torch.randint(0, 97, (2, 31), generator=torch.Generator().manual_seed(1))
        a, b = theirs(input_ids=ids, labels=ids).loss, ours(input_ids=ids, labels=ids).loss
        self.assertLessEqual(abs(a.item() - b.item()), 1e-5)
        a.backward()
        b.backward()
        for (name, p), (other, q) in zip(sorted(theirs.named_parameters()), sorted(ours.named_parameters())):
            self.assertEqual(name, other)
            self.assertLessEqual(common.relative(q.grad, p.grad), 2e-5, name)

    def test_replace_moe_blocks(self):
        theirs = self.model(num_local_experts=4, num_experts_per_tok=2)
        ours = copy.deepcopy(theirs)
        before = set(ours.state_dict())
        names = moec.torch.replace_moe_blocks(ours)
        self.assertEqual(len(names), 2)
        self.assertEqual(set(ours.state_dict()), before)
        self.same(theirs, ours)
        with self.assertRaisesRegex(Error, "has none of"):
            moec.torch.replace_moe_blocks(torch.nn.Linear(2, 2))

    def test_shared_expert_model(self):
        theirs = self.model(Qwen2MoeForCausalLM, Qwen2MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
                            shared_expert_intermediate_size=40, mlp_only_layers=[])
        ours = copy.deepcopy(theirs)
        self.assertEqual(len(moec.torch.replace_moe_blocks(ours)), 2)
        self.same(theirs, ours)

    def test_experts_implementation(self):
        """transformers' own routers (with router logits and its balance loss), our experts."""
        moec.torch.register_experts()
        theirs = self.model(num_local_experts=4, num_experts_per_tok=2, output_router_logits=True)
        ours = copy.deepcopy(theirs)
        ours.set_experts_implementation("moec")
        called = []
        real = moec.torch.experts
        moec.torch.experts = lambda *a, **k: called.append(1) or real(*a, **k)
        try:
            self.same(theirs, ours)
        finally:
            moec.torch.experts = real
        self.assertEqual(len(called), 2)

    def test_experts_module(self):
        block, _ = block_of("mixtral")
        ours = Experts(D, F, E)
        ours.load_state_dict(block.experts.state_dict())
        x = torch.randn(40, D)
        _, gates, ids = block.gate(x)
        gates = gates.detach()
        ga, gb = gates.clone().requires_grad_(), gates.clone().requires_grad_()
        dy = torch.randn(40, D)
        block.experts(x, ids, ga).backward(dy)
        ours(x, ids, gb).backward(dy)
        self.assertLessEqual(common.relative(gb.grad, ga.grad), 1e-5)
        for (name, p), (_, q) in zip(block.experts.named_parameters(), ours.named_parameters()):
            self.assertLessEqual(common.relative(q.grad, p.grad), 1e-5, name)


if __name__ == "__main__":
    common.main()
