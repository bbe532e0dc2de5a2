"""The package without torch: structures against the C headers, compiling, a layer's numbers against plain Python, bad input."""
import array
import ctypes
import ctypes.util
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import unittest

import common

import moec
from moec import _lib

D, F, E, K, T = 8, 6, 4, 2, 11


def matvec(w, x):
    return [sum(a * b for a, b in zip(row, x)) for row in w]


def silu(v):
    return v / (1 + math.exp(-v))


def reference(x, gate, gate_up, down):
    """softmax | top 2 | renorm over SwiGLU experts, in Python's doubles."""
    out = []
    for row in x:
        logits = matvec(gate, row)
        top = max(logits)
        exps = [math.exp(v - top) for v in logits]
        probs = [v / sum(exps) for v in exps]
        chosen = sorted(range(E), key=lambda e: (-probs[e], e))[:K]
        total = sum(probs[e] for e in chosen)
        y = [0.0] * D
        for e in sorted(chosen):
            both = matvec(gate_up[e], row)
            h = [silu(both[i]) * both[F + i] for i in range(F)]
            y = [a + probs[e] / total * b for a, b in zip(y, matvec(down[e], h))]
        out.append(y)
    return out


def numbers(rng, *shape):
    if not shape:
        return rng.uniform(-1, 1)
    return [numbers(rng, *shape[1:]) for _ in range(shape[0])]


class Layer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        rng = random.Random(7)
        cls.layer = moec.layer(moec.texts.moe(D, F, E, K, aux="switch", z=True))
        cls.x = numbers(rng, T, D)
        cls.weights = {"gate.weight": numbers(rng, E, D), "experts.gate_up_proj.weight": numbers(rng, E, 2 * F, D),
                       "experts.down_proj.weight": numbers(rng, E, D, F)}
        cls.params = [moec.tensor(cls.weights[p.path]) for p in cls.layer.params]

    def test_what_it_has(self):
        self.assertEqual([(p.path, p.shape, p.dtype, p.has_gradient) for p in self.layer.params],
                         [("gate.weight", (E, D), "f32", True), ("experts.gate_up_proj.weight", (E, 2 * F, D), "f32", True),
                          ("experts.down_proj.weight", (E, D, F), "f32", True)])
        self.assertEqual([s.name for s in self.layer.outputs if s.has_gradient][1:], ["aux", "z"])
        self.assertEqual(self.layer.symbols, ("T",))
        self.assertIs(self.layer, moec.layer(moec.texts.moe(D, F, E, K, aux="switch", z=True)))

    def test_forward(self):
        step = self.layer.forward([moec.tensor(self.x)], self.params)
        y = step.outputs[self.layer.outputs[0].name].tolist()
        for got, want in zip(y, reference(self.x, *[self.weights[p.path] for p in self.layer.params])):
            for a, b in zip(got, want):
                self.assertAlmostEqual(a, b, delta=1e-5)
        load = next(v for k, v in step.outputs.items() if k.endswith("load")).tolist()
        self.assertEqual(sum(load[0]), T * K)
        self.assertAlmostEqual(sum(load[1]), T, delta=1e-4)

    def test_any_buffer_will_do(self):
        flat = array.array("f", [v for row in self.x for v in row])
        x = memoryview(flat).cast("B").cast("f", [T, D])
        name = self.layer.outputs[0].name
        self.assertEqual(self.layer.forward([x.toreadonly()], self.params).outputs[name].tolist(),
                         self.layer.forward([moec.tensor(self.x)], self.params).outputs[name].tolist())

    def test_backward_against_differences(self):
        rng = random.Random(3)
        dy = numbers(rng, T, D)
        name = self.layer.outputs[0].name

        def loss(x, weights):
            return sum(a * b for r, q in zip(reference(x, *weights), dy) for a, b in zip(r, q))

        step = self.layer.forward([moec.tensor(self.x)], self.params)
        grads = step.backward({name: moec.tensor(dy)})
        weights = [self.weights[p.path] for p in self.layer.params]
        h = 1e-5
        for tensor, grad in [(self.x, grads.inputs[0]), *zip(weights, grads.params)]:
            for _ in range(12):
                at, place = tensor, []
                while isinstance(at[0], list):
                    place.append(rng.randrange(len(at)))
                    at = at[place[-1]]
                i = rng.randrange(len(at))
                old = at[i]
                at[i] = old + h
                up = loss(self.x, weights)
                at[i] = old - h
                down = loss(self.x, weights)
                at[i] = old
                got = grad.tolist()
                for p in place:
                    got = got[p]
                self.assertAlmostEqual(got[i], (up - down) / (2 * h), delta=2e-4)

    def test_gradients_are_added(self):
        name = self.layer.outputs[0].name
        dy = moec.tensor([[1.0] * D] * T)
        step = self.layer.forward([moec.tensor(self.x)], self.params)
        once = step.backward({name: dy})
        twice = step.backward({name: dy}, [moec.tensor(g.tolist()) for g in once.params])
        for a, b in zip(once.params, twice.params):
            for p, q in zip(memoryview(a).cast("B").cast("f"), memoryview(b).cast("B").cast("f")):
                self.assertAlmostEqual(2 * p, q, delta=1e-3 + 1e-5 * abs(p))
        frozen = step.backward({name: dy}, [None, None, moec.empty(self.layer.params[2].shape)])
        self.assertEqual(frozen.params[2].tolist(), once.params[2].tolist())

    def test_same_bits_for_any_number_of_threads(self):
        name = self.layer.outputs[0].name
        dy = moec.tensor([[1.0] * D] * T)
        seen = set()
        for threads in (1, 2, 3):
            step = self.layer.forward([moec.tensor(self.x)], self.params, threads=threads)
            grads = step.backward({name: dy})
            seen.add((bytes(step.outputs[name]), bytes(grads.inputs[0]), *(bytes(g) for g in grads.params)))
        self.assertEqual(len(seen), 1)

    def test_many_threads_at_once(self):
        name = self.layer.outputs[0].name
        want = self.layer.forward([moec.tensor(self.x)], self.params).outputs[name].tolist()
        wrong = []

        def work():
            for _ in range(20):
                step = self.layer.forward([moec.tensor(self.x)], self.params)
                step.backward({name: step.outputs[name]})
                if step.outputs[name].tolist() != want:
                    wrong.append(1)

        workers = [threading.Thread(target=work) for _ in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        self.assertEqual(wrong, [])

    def test_sizes(self):
        sizes = self.layer.sizes(T=100)
        self.assertGreater(sizes.saved, 100 * (2 * K * F) * 4)
        self.assertGreater(sizes.workspace, 0)
        self.assertTrue(any("gate_up_proj" in s.name for s in self.layer.saved), self.layer.saved)
        small = moec.layer(moec.texts.moe(D, F, E, K, aux="switch", z=True), recompute=True).sizes(T=100)
        self.assertLess(small.saved, sizes.saved)

    # ---- bad input: a sentence that names the tensor ----

    def refused(self, words, call, *args, **kwargs):
        with self.assertRaises(moec.Error) as caught:
            call(*args, **kwargs)
        for word in words.split("|"):
            self.assertIn(word, str(caught.exception))
        return caught.exception

    def test_bad_inputs(self):
        x = moec.tensor(self.x)
        forward = self.layer.forward
        self.refused("x|shape|[T, 8]", forward, [moec.tensor([[1.0] * (D + 1)])], self.params)
        self.refused("x has 1 dims", forward, [moec.tensor([1.0] * D)], self.params)
        self.refused("x has elements of format 'd'|f32", forward, [memoryview(bytearray(8 * T * D)).cast("d", [T, D])], self.params)
        self.refused("takes 1 inputs", forward, [x, x], self.params)
        self.refused("3 parameters", forward, [x], self.params[:2])
        self.refused("gate.weight|shape", forward, [x], [moec.tensor([[1.0]])] + self.params[1:])
        self.refused("x is a list", forward, [self.x], self.params)
        self.refused("gate.weight is a NoneType", forward, [x], [None] + self.params[1:])
        wide = memoryview(bytearray(4 * 2 * T * D)).cast("f", [2 * T, D])[::2]
        self.refused("x|row-major", forward, [wide], self.params)

    def test_bad_backward(self):
        step = self.layer.forward([moec.tensor(self.x)], self.params)
        name = self.layer.outputs[0].name
        dy = moec.tensor([[1.0] * D] * T)
        self.refused("no output is called 'nothing'", step.backward, {"nothing": dy})
        self.refused(f"the cotangent of {name}|shape", step.backward, {name: moec.tensor([[1.0] * D])})
        grads = [moec.empty(p.shape) for p in self.layer.params]
        self.refused("the gradient of gate.weight is read-only", step.backward, {name: dy}, [grads[0].toreadonly()] + grads[1:])
        error = self.refused("", step.backward, {name: moec.tensor([[math.nan] * D] * T)}, grads, check_finite=True)
        self.assertEqual(error.status, "range")
        self.assertIn(name, str(error))
        self.assertEqual(set(bytes(grads[2])), {0})  # nothing was written
        self.refused("kept nothing", self.layer.forward([moec.tensor(self.x)], self.params, keep=False).backward, {name: dy})

    def test_saved_of_another_forward(self):
        name = self.layer.outputs[0].name
        step = self.layer.forward([moec.tensor(self.x)], self.params)
        other = self.layer.forward([moec.tensor(self.x + self.x)], self.params)
        step.saved = other.saved
        error = self.refused("saved", step.backward, {name: moec.tensor([[1.0] * D] * T)})
        self.assertEqual(error.status, "mismatch")
        stranger = moec.layer(moec.texts.moe(D, F, E, K)).forward([moec.tensor(self.x)], self.params)
        step.saved = stranger.saved if len(stranger.saved) >= step.sizes.saved else moec.empty([step.sizes.saved], "u8")
        self.refused("saved", step.backward, {name: moec.tensor([[1.0] * D] * T)})

    def test_bad_sizes(self):
        self.refused("T", self.layer.sizes)
        self.refused("Z", self.layer.sizes, T=4, Z=3)


class Compiling(unittest.TestCase):
    def test_reports(self):
        with self.assertRaises(moec.Error) as caught:
            moec.compile("moe 1\ndim T\nmodel m(x: f32[T, 4]) -> f32[T, 4] {\n  return x + y\n}\n", filename="bad.moe")
        self.assertEqual(caught.exception.status, "syntax")
        report = caught.exception.diagnostics[0]
        self.assertEqual((report.severity, report.file, report.line), ("error", "bad.moe", 4))
        self.assertIn("bad.moe:4", str(caught.exception))

    def test_file_not_found(self):
        with self.assertRaises(moec.Error) as caught:
            moec.compile_file("no-such-file.moe")
        self.assertIn("no-such-file.moe", str(caught.exception))

    def test_for_inference(self):
        compiled = moec.compile(moec.texts.moe(16, 8, 4, 2))
        self.assertTrue(compiled.object.startswith(b"\x7fELF"))
        self.assertIn("fused", compiled.summary)
        with self.assertRaises(moec.Error) as caught:
            compiled.layer()
        self.assertIn("train=True", str(caught.exception))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "layer.o")
            compiled.write("object", path)
            with open(path, "rb") as f:
                self.assertEqual(f.read(4), b"\x7fELF")
            with self.assertRaises(moec.Error):
                compiled.write("poem", path)

    def test_cache(self):
        text = moec.texts.moe(24, 8, 4, 2)
        with tempfile.TemporaryDirectory() as folder:
            first = moec.compile(text, train=True, cache=folder)
            again = moec.compile(text, train=True, cache=folder)
            self.assertEqual((first.from_cache, again.from_cache), (False, True))
            self.assertFalse(moec.compile(text, train=True, recompute=True, cache=folder).from_cache)
            self.assertEqual(again.object, first.object)
            again.layer()

    def test_arguments(self):
        for wrong in (dict(d_model=0), dict(n_experts=2.5), dict(act="sine"), dict(aux="some")):
            with self.assertRaises(moec.Error) as caught:
                moec.texts.moe(**{**dict(d_model=8, d_expert=8, n_experts=4), **wrong})
            self.assertIn(next(iter(wrong)), str(caught.exception))

    def test_given_choices(self):
        layer = moec.layer(moec.texts.experts(D, F, E, K), filename="experts.moir")
        rng = random.Random(5)
        x, gate_up, down = numbers(rng, T, D), numbers(rng, E, 2 * F, D), numbers(rng, E, D, F)
        ids = [[rng.randrange(E + 1), rng.randrange(E)] for _ in range(T)]  # E itself adds nothing
        gates = numbers(rng, T, K)
        step = layer.forward([moec.tensor(x), moec.tensor(ids, "i32"), moec.tensor(gates)], [moec.tensor(gate_up), moec.tensor(down)])
        y = step.outputs[layer.outputs[0].name].tolist()
        for t in range(T):
            want = [0.0] * D
            for e, g in zip(ids[t], gates[t]):
                if e == E:
                    continue
                both = matvec(gate_up[e], x[t])
                out = matvec(down[e], [silu(both[i]) * both[F + i] for i in range(F)])
                want = [a + g * b for a, b in zip(want, out)]
            for a, b in zip(y[t], want):
                self.assertAlmostEqual(a, b, delta=1e-5)
        self.assertEqual([spec.has_gradient for spec in layer.inputs], [True, False, True])


class Bias(unittest.TestCase):
    def test_sign(self):
        bias = moec.tensor([0.0, 0.5, 0.0])
        moec.bias_update(bias, moec.tensor([1.0, 5.0, 3.0]), rate=0.25)
        self.assertEqual(bias.tolist(), [0.25, 0.25, 0.0])

    def test_ema(self):
        bias, ema = moec.tensor([0.0, 0.0]), moec.tensor([0.5, 0.5])
        moec.bias_update(bias, moec.tensor([3.0, 1.0]), rule="ema", rate=1.0, decay=0.5, ema=ema)
        self.assertEqual(ema.tolist(), [0.625, 0.375])
        self.assertEqual(bias.tolist(), [-0.125, 0.125])

    def test_refused(self):
        for kwargs, word in ((dict(rule="guess"), "guess"), (dict(rule="ema"), "ema"), (dict(rate=math.nan), "")):
            with self.assertRaises(moec.Error) as caught:
                moec.bias_update(moec.tensor([0.0, 0.0]), moec.tensor([1.0, 1.0]), **kwargs)
            self.assertIn(word, str(caught.exception))
        bias = moec.tensor([0.0, 0.0])
        with self.assertRaises(moec.Error):
            moec.bias_update(bias.toreadonly(), moec.tensor([1.0, 1.0]))
        with self.assertRaises(moec.Error):
            moec.bias_update(bias, moec.tensor([math.inf, 1.0]))
        self.assertEqual(bias.tolist(), [0.0, 0.0])


class Library(unittest.TestCase):
    STRUCTS = {"moec_error": _lib.ErrorText, "moec_limit": _lib.Limit, "moec_tensor": _lib.Tensor, "moec_tensor_info": _lib.TensorInfo,
               "moec_param_info": _lib.ParamInfo, "moec_saved_info": _lib.SavedInfo, "moec_train_sizes": _lib.TrainSizes,
               "moec_train_call": _lib.TrainCall, "moec_diagnostic": _lib.DiagnosticInfo, "moec_compile_options": _lib.CompileOptions}

    @unittest.skipUnless(shutil.which("cc"), "needs a C compiler")
    def test_structures_mirror_the_headers(self):
        lines = ['#include <stddef.h>', '#include <stdio.h>', '#include "moec/compiler.h"', '#include "moec/train.h"', 'int main(void) {']
        want = []
        for name, struct in self.STRUCTS.items():
            lines.append(f'printf("%zu\\n", sizeof({name}));')
            want.append(ctypes.sizeof(struct))
            for field, _ in struct._fields_:
                lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
                want.append(getattr(struct, field).offset)
        for name, value in [*((f"MOEC_{k.upper()}", v[0]) for k, v in _lib.DTYPES.items()), ("MOEC_MAX_RANK", _lib.MAX_RANK),
                            ("MOEC_BIAS_SIGN", 0), ("MOEC_BIAS_EMA", 1), ("MOEC_ERR_INTERNAL", len(_lib.STATUS) - 1),
                            *((f"MOEC_{k.upper()}", v) for k, v in _lib.ARTEFACTS.items())]:
            lines.append(f'printf("%d\\n", (int){name});')
            want.append(value)
        with tempfile.TemporaryDirectory() as folder:
            source, program = os.path.join(folder, "a.c"), os.path.join(folder, "a")
            with open(source, "w") as f:
                f.write("\n".join(lines + ["return 0; }"]))
            subprocess.run(["cc", "-I", os.path.join(common.ROOT, "include"), source, "-o", program], check=True)
            got = [int(v) for v in subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()]
        self.assertEqual(got, want)

    def test_every_function_is_there(self):
        for name in _lib.FUNCTIONS:
            getattr(_lib.lib, name)

    def run_python(self, code, **env):
        full = {**os.environ, "PYTHONPATH": os.path.join(common.ROOT, "python"), **env}
        return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=full, capture_output=True, text=True, timeout=300)

    def test_not_found_says_what_to_do(self):
        done = self.run_python("import moec\ntry: moec.library_path()\nexcept moec.Error as e: print(e)", MOEC_LIBRARY="/nowhere/libmoec.so")
        self.assertIn("/nowhere/libmoec.so", done.stdout)
        self.assertIn("set MOEC_LIBRARY", done.stdout)

    def test_another_library_is_refused(self):
        other = ctypes.util.find_library("m")
        done = self.run_python("import moec\ntry: moec.layer('moe 1')\nexcept moec.Error as e: print(e)", MOEC_LIBRARY=other or "libm.so.6")
        self.assertIn("has no moec_", done.stdout, done.stderr)

    def test_import_is_quick_and_without_torch(self):
        done = self.run_python("import time; a = time.perf_counter(); import moec; b = time.perf_counter()\n"
                               "import sys; print('torch' in sys.modules, 'numpy' in sys.modules, b - a)")
        torch, numpy, seconds = done.stdout.split()
        self.assertEqual((torch, numpy), ("False", "False"))
        self.assertLess(float(seconds), 1.0)

    def test_a_forked_child_makes_threads_of_its_own(self):
        layer = moec.layer(moec.texts.moe(D, F, E, K))
        x = moec.tensor([[0.5] * D] * T)
        params = [moec.tensor(numbers(random.Random(1), *p.shape)) for p in layer.params]
        name = layer.outputs[0].name
        want = bytes(layer.forward([x], params, threads=2).outputs[name])
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if bytes(layer.forward([x], params, threads=2).outputs[name]) == want else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitpid(child, 0)[1], 0)


if __name__ == "__main__":
    common.main()
