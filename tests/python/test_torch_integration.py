"""moec.torch inside PyTorch: opcheck, gradcheck, torch.compile, activation checkpointing, copies, threads, and bad input."""
import copy
import io
import threading
import unittest

import common

common.need("torch")

import torch
from torch.utils.checkpoint import checkpoint

import moec.torch
from moec.torch import Error, Experts, MoE

D, F, E, K = 32, 24, 4, 2


def made(seed=0, **options):
    torch.manual_seed(seed)
    layer = MoE(D, F, E, K, **options)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.normal_(0, 0.5 if name == "gate.weight" else 0.2)
    return layer


def rows(n, seed=1, grad=False):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def tensors(layer):
    return [getattr(holder, name) for holder, name, _ in layer._slots]


class Operators(unittest.TestCase):
    def test_opcheck(self):
        for layer in (made(aux="switch", z=True), made(d_shared=16, shared_gate=True), made(score="sigmoid", bias=True)):
            params = [p.detach() for p in tensors(layer)]
            x = rows(9)
            # What forward keeps has undefined bytes in it, so only a call that keeps nothing is compared value by value.
            torch.library.opcheck(torch.ops.moec.forward.default, (layer._plan, [x], params, False))
            quiet = ("test_schema", "test_faketensor", "test_autograd_registration")
            torch.library.opcheck(torch.ops.moec.forward.default, (layer._plan, [x], params, True), test_utils=quiet)
            *outputs, saved = torch.ops.moec.forward(layer._plan, [x], params, True)
            given = [torch.ones_like(o) if d else None for o, d in zip(outputs, moec.torch._find(layer._plan).differentiable)]
            for wanted in ([True] * (1 + len(params)), [False] + [True] * len(params), [True] + [False] * len(params)):
                wanted = [w and (i == 0 or layer._slots[i - 1][2]) for i, w in enumerate(wanted)]
                torch.library.opcheck(torch.ops.moec.backward.default, (layer._plan, [x], params, saved, given, wanted))

    def test_opcheck_experts(self):
        layer = Experts(D, F, E)
        ids = torch.randint(0, E, (9, K), dtype=torch.int32)
        layer(rows(9), ids, torch.rand(9, K))
        number = next(n for n, p in moec.torch._plans.items() if p.layer.compiled.name == "moe_experts")
        torch.library.opcheck(torch.ops.moec.forward.default,
                              (number, [rows(9), ids, torch.rand(9, K)], [p.detach() for p in layer.parameters()], False))

    def test_gradcheck(self):
        """In f32, so with a wide step; gates lie far enough apart that no step changes the routing."""
        layer = made(3, aux="switch", z=True)
        x = rows(5, seed=2, grad=True)
        with torch.no_grad():
            top = (x @ layer.gate.weight.T).softmax(-1).topk(K + 1).values
        self.assertGreater((top[:, K - 1] - top[:, K]).min().item(), 0.02)

        def f(x, *params):
            y, aux, z, _ = moec.torch._call(layer._plan, (x,), params)
            return y, aux, z

        torch.autograd.gradcheck(f, (x, *tensors(layer)), eps=2e-3, atol=5e-3, rtol=2e-2, nondet_tol=0.0)

    def test_gradcheck_experts(self):
        layer = Experts(D, F, E)
        ids = torch.tensor([[0, 1], [2, 1], [3, 3], [4, 0]])  # the same expert twice, and one that does not exist
        gates = torch.rand(4, K, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.autograd.gradcheck(lambda x, g, a, b: moec.torch.experts(x, ids, g, a, b),
                                 (rows(4, grad=True), gates, layer.gate_up_proj, layer.down_proj), eps=2e-2, atol=5e-3, rtol=2e-2)

    def test_double_backward_is_refused(self):
        layer, x = made(), rows(3, grad=True)
        grad, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with self.assertRaises(RuntimeError):
            grad.sum().backward()


class Transformations(unittest.TestCase):
    def run_once(self, call, layer, x, **kwargs):
        layer.zero_grad(set_to_none=True)
        x = x.detach().clone().requires_grad_()
        y = call(x)
        (y.square().sum() + 0.1 * layer.aux).backward()
        return [y.detach(), x.grad] + [p.grad for p in layer.parameters()]

    def test_compile_fullgraph(self):
        layer = made(aux="switch")
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for n in (7, 7, 12):
            want = self.run_once(layer, layer, rows(n))
            for a, b in zip(self.run_once(compiled, layer, rows(n)), want):
                self.assertTrue(torch.equal(a, b))

    def test_compile_inductor_dynamic(self):
        layer = made(aux="switch")
        try:
            compiled = torch.compile(lambda x: torch.nn.functional.gelu(layer(x) * 2), fullgraph=True, dynamic=True)
            compiled(rows(3, grad=True)).sum().backward()
            compiled(rows(4, grad=True)).sum().backward()
        except Exception as e:
            if "compiler" in str(e).lower() and "not found" in str(e).lower():
                self.skipTest("no C++ compiler for inductor")
            raise
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (5, 8, 31):
                x = rows(n, grad=True)
                torch.testing.assert_close(compiled(x), torch.nn.functional.gelu(layer(x) * 2))
                compiled(x).sum().backward()

    def test_compile_3d_and_losses(self):
        layer = made(aux="sequence", z=True)
        x = torch.randn(2, 6, D)

        @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
        def loss(x):
            y, losses = layer(x, losses=True)
            return y.sum() + losses.aux + losses.z

        for shape in ((2, 6), (3, 5)):
            x = torch.randn(*shape, D)
            y, losses = layer(x, losses=True)
            torch.testing.assert_close(loss(x), y.sum() + losses.aux + losses.z)

    def test_checkpoint_decides_equally(self):
        for options in ({}, dict(recompute=True)):
            layer = made(aux="switch", **options)
            loads = []
            hook = layer.register_forward_hook(lambda m, i, o: loads.append(m.load.clone()))
            want = self.run_once(layer, layer, rows(40))
            with torch.utils.checkpoint.set_checkpoint_early_stop(False):  # or the hook is not reached a second time
                got = self.run_once(lambda x: checkpoint(layer, x, use_reentrant=False), layer, rows(40))
            hook.remove()
            for a, b in zip(got, want):
                self.assertTrue(torch.equal(a, b))
            self.assertEqual(len(loads), 3)  # once plain; forward and recomputation
            self.assertTrue(all(torch.equal(loads[0], load) for load in loads))

    def test_checkpoint_compiled(self):
        layer = made()

        @torch.compile(fullgraph=True, backend="aot_eager")
        def f(x):
            return checkpoint(lambda v: layer(v, losses=True)[0], x, use_reentrant=False)

        x = rows(6, grad=True)
        want, = torch.autograd.grad(layer(x).square().sum(), x)
        got, = torch.autograd.grad(f(x).square().sum(), x)
        self.assertTrue(torch.equal(want, got))

    def test_saved_tensor_hooks(self):
        layer = made(aux="switch")
        want = self.run_once(layer, layer, rows(6))

        def away(t):  # to another address, as offloading does, and a bad one
            raw = torch.empty(t.numel() * t.element_size() + 3, dtype=torch.uint8) if t.dtype == torch.uint8 else None
            return t if raw is None else raw[3:3 + t.numel()].copy_(t)

        with torch.autograd.graph.saved_tensors_hooks(away, lambda t: t):
            got = self.run_once(layer, layer, rows(6))
        for a, b in zip(got, want):
            self.assertTrue(torch.equal(a, b))

    def test_copies(self):
        layer = made(aux="switch")
        y = layer(rows(5))
        for other in (copy.deepcopy(layer), torch.load(self.stored(layer), weights_only=False)):
            self.assertTrue(torch.equal(other(rows(5)), y))
            with self.assertRaisesRegex(Error, "no forward yet"):
                copy.deepcopy(other).aux
        fresh = made(9, aux="switch")
        fresh.load_state_dict(layer.state_dict())
        self.assertTrue(torch.equal(fresh(rows(5)), y))

    @staticmethod
    def stored(layer):
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return file

    def test_frozen_and_no_grad(self):
        layer = made()
        x = rows(6, grad=True)
        layer(x).sum().backward()
        want = layer.experts.down_proj.grad.clone()
        layer.zero_grad(set_to_none=True)
        layer.experts.gate_up_proj.requires_grad_(False)
        layer.gate.weight.requires_grad_(False)
        layer(x).sum().backward()
        self.assertIsNone(layer.gate.weight.grad)
        self.assertIsNone(layer.experts.gate_up_proj.grad)
        self.assertTrue(torch.equal(layer.experts.down_proj.grad, want))
        with torch.no_grad():
            self.assertFalse(layer(x).requires_grad)

    def test_idle_experts_have_zero_gradients(self):
        layer = made()
        with torch.no_grad():
            layer.gate.weight[E - 1] = 0
            layer.gate.weight[:E - 1] = layer.gate.weight[:1].sign() * torch.arange(1, E)[:, None]
        layer((rows(6).abs() + 0.1) * layer.gate.weight[0].sign().detach()).sum().backward()
        self.assertEqual(layer.load[0][E - 1].item(), 0)
        self.assertEqual(layer.experts.down_proj.grad[E - 1].abs().max().item(), 0)
        self.assertGreater(layer.experts.down_proj.grad.abs().max().item(), 0)

    def test_any_number_of_threads_gives_the_same_bits(self):
        layer, before, seen = made(aux="switch"), torch.get_num_threads(), []
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                seen.append(self.run_once(layer, layer, rows(50)))
        finally:
            torch.set_num_threads(before)
        for other in seen[1:]:
            for a, b in zip(seen[0], other):
                self.assertTrue(torch.equal(a, b))

    def test_python_threads(self):
        layer = made()
        x = rows(33)
        want = torch.autograd.grad(layer(x).sum(), layer.experts.down_proj)[0]
        wrong = []

        def work():
            for _ in range(10):
                if not torch.equal(torch.autograd.grad(layer(x, losses=True)[0].sum(), layer.experts.down_proj)[0], want):
                    wrong.append(1)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        self.assertEqual(wrong, [])

    def test_plans_are_shared_and_numbered_by_content(self):
        a, b, c = made(), made(1), made(aux="switch")
        self.assertEqual(a._plan, b._plan)
        self.assertNotEqual(a._plan, c._plan)
        saved = torch.ops.moec.forward(a._plan, [rows(100)], [p.detach() for p in tensors(a)], True)[-1]
        exact = moec.torch._find(a._plan).layer.sizes(T=100).saved
        self.assertGreaterEqual(saved.numel(), exact)
        self.assertLess(saved.numel(), exact + 4096)

    def test_no_tokens(self):
        layer = made(aux="switch")
        x = torch.empty(0, D, requires_grad=True)
        y = layer(x)
        self.assertEqual(tuple(y.shape), (0, D))
        (y.sum() + layer.aux).backward()
        self.assertEqual(layer.gate.weight.grad.abs().max().item(), 0)

    def test_strided_input_and_gradient(self):
        layer = made()
        wide = torch.randn(10, 2 * D)
        x = wide[:, ::2].requires_grad_()
        y = layer(x)
        self.assertTrue(torch.equal(y, layer(x.contiguous())))
        y.t().backward(torch.ones(D, 1).expand(D, 10))
        self.assertEqual(x.grad.shape, x.shape)

    def test_cast(self):
        layer = made(cast=True)
        x = rows(6).bfloat16().requires_grad_()
        y = layer(x)
        self.assertEqual(y.dtype, torch.bfloat16)
        y.sum().backward()
        self.assertEqual(x.grad.dtype, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).sum().backward()

    def test_a_route_as_text(self):
        layer = made(route="linear@gate | top 2 | softmax")
        other = made()
        self.assertTrue(torch.allclose(layer(rows(7)), other(rows(7)), atol=1e-5))


class BadInput(unittest.TestCase):
    def setUp(self):
        self.layer = made()
        self.params = [p.detach() for p in tensors(self.layer)]

    def refused(self, words, call, *args):
        with self.assertRaisesRegex(Error, words):
            call(*args)

    def test_inputs(self):
        self.refused("hidden_states is float64.*float32.*cast=True", self.layer, rows(3).double())
        self.refused(r"hidden_states has shape \[3, 33\]", self.layer, torch.randn(3, D + 1))
        self.refused("hidden_states has shape", self.layer, torch.randn(D))
        self.refused("x is float64", torch.ops.moec.forward, self.layer._plan, [rows(3).double()], self.params, True)
        self.refused("x has 3 dims", torch.ops.moec.forward, self.layer._plan, [rows(3)[None]], self.params, True)
        self.refused("takes 1 inputs", torch.ops.moec.forward, self.layer._plan, [], self.params, True)
        self.refused("this graph refers to a layer", torch.ops.moec.forward, 12345, [rows(3)], self.params, True)

    def test_parameters(self):
        def with_param(i, t):
            return torch.ops.moec.forward(self.layer._plan, [rows(3)], self.params[:i] + [t] + self.params[i + 1:], True)

        self.refused("parameter gate.weight is float64.*module.float", with_param, 0, self.params[0].double())
        self.refused(r"parameter gate.weight has shape \[4, 31\].*\[4, 32\]", with_param, 0, self.params[0][:, 1:].contiguous())
        turned = self.params[1].transpose(1, 2).contiguous().transpose(1, 2)
        self.refused("parameter experts.gate_up_proj.weight is not dense.*contiguous", with_param, 1, turned)
        self.refused("3 parameters, not 2", torch.ops.moec.forward, self.layer._plan, [rows(3)], self.params[:2], True)
        self.refused("is bfloat16", made().bfloat16().float().bfloat16(), rows(3))

    def test_saved(self):
        forward, backward, plan = torch.ops.moec.forward, torch.ops.moec.backward, self.layer._plan
        y, load, saved = forward(plan, [rows(300)], self.params, True)
        wanted = [True] * 4
        other = forward(plan, [rows(301)], self.params, True)[-1]
        self.refused("saved holds .* bytes", backward, plan, [rows(300)], self.params, other, [y, None], wanted)
        sly = other[:saved.numel()].clone()
        self.refused("saved", backward, plan, [rows(300)], self.params, sly, [y, None], wanted)
        stranger = made(score="sigmoid")
        foreign = forward(stranger._plan, [rows(300)], self.params, True)[-1]
        foreign = torch.nn.functional.pad(foreign, (0, max(0, saved.numel() - foreign.numel())))[:saved.numel()].contiguous()
        self.refused("saved", backward, plan, [rows(300)], self.params, foreign, [y, None], wanted)
        backward(plan, [rows(300)], self.params, saved, [y, None], wanted)

    def test_cotangents(self):
        y, load, saved = torch.ops.moec.forward(self.layer._plan, [rows(3)], self.params, True)

        def back(*cotangents):
            return torch.ops.moec.backward(self.layer._plan, [rows(3)], self.params, saved, list(cotangents), [True] * 4)

        name = moec.torch._find(self.layer._plan).layer.outputs[0].name
        self.refused(f"the cotangent of {name} is float64", back, y.double(), None)
        self.refused(f"the cotangent of {name} .*must be float32", back, y[:2], None)
        self.refused("has no gradient", back, y, load)

    def test_experts(self):
        layer = Experts(D, F, E)
        self.refused("ids is float32", layer, rows(3), torch.rand(3, K), torch.rand(3, K))
        self.refused("they must be", layer, rows(3), torch.zeros(3, K, dtype=torch.int64), torch.rand(3, K + 1))
        self.refused("gates is float64", layer, rows(3), torch.zeros(3, K, dtype=torch.int64), torch.rand(3, K).double())

    def test_a_route_that_makes_no_sense(self):
        with self.assertRaisesRegex(Error, "E03"):
            MoE(D, F, E, K, route="linear@gate | softmax | bottom 2")

    def test_losses_that_were_not_asked_for(self):
        self.layer(rows(3))
        with self.assertRaisesRegex(Error, 'aux="switch"'):
            self.layer.aux
        with self.assertRaisesRegex(Error, "z=True"):
            self.layer.z

    @unittest.skipUnless(torch.cuda.is_available(), "needs another device")
    def test_device(self):
        self.refused("cuda.*CPU", self.layer, rows(3).cuda())


if __name__ == "__main__":
    common.main()
