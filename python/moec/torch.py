"""moec as torch.nn modules.

    from moec.torch import MoE, replace_moe_blocks

    layer = MoE(d_model=512, d_expert=1024, n_experts=8, top_k=2, aux="switch", z=True)
    y = layer(x)                                   # x [B, S, D] or [T, D], f32, on the CPU
    loss = task(y) + 0.01 * layer.aux + 1e-3 * layer.z

    model = MixtralForCausalLM(config)
    replace_moe_blocks(model)                      # same parameters, same state_dict; gradients by moec

Everything a step needs is memory of torch's: outputs, what is kept for backward (one uint8 tensor), gradients, and a workspace that
calls share; large blocks are used again (release_memory). Shapes follow from T and the layer's sizes alone. Statistics are outputs, never state: recomputing a layer (activation
checkpointing) decides its routing again from the same bits, and therefore equally.
"""
from __future__ import annotations

import ctypes
import hashlib
import threading
import weakref
from collections import deque
from typing import NamedTuple, Optional, Sequence

import torch
from torch import nn

from . import _lib, compiler, texts
from ._blocks import BLOCKS, activation, read_block
from ._lib import Error

__all__ = ["Error", "Experts", "Losses", "MoE", "experts", "register_experts", "release_memory", "replace_moe_blocks"]

_TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64, "i32": torch.int32,
                 "i64": torch.int64, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool}


# ---- plans: compiled layers by number --------------------------------------------------------------------------------------

class _Plan:
    """A compiled layer, and how many bytes it keeps as a polynomial of its run-time dimensions, so that a size can be told for
    symbolic ones too."""

    def __init__(self, layer: compiler.Layer):
        self.layer, self.key = layer, b""
        self.inputs = [(spec.name, _TORCH_DTYPES[spec.dtype]) for spec in layer.inputs]
        self.params = [(p.path, _TORCH_DTYPES[p.dtype], p.shape) for p in layer.params]
        self.outputs = [_TORCH_DTYPES[spec.dtype] for spec in layer.outputs]
        self.differentiable = [spec.has_gradient for spec in layer.outputs]
        self.bound: dict = {}  # shapes of the inputs -> symbols
        self.terms = self._fit()

    def _fit(self):
        """saved(T) = a T + b (and so on for two dimensions) where every T is a multiple of 64, since each kept tensor is padded
        to 64 bytes; 64 bytes more for each of them cover the sizes in between."""
        layer, names = self.layer, self.layer.symbols
        corners = {}
        for mask in range(1 << len(names)):
            corners[mask] = layer.sizes(**{n: 128 if mask >> i & 1 else 64 for i, n in enumerate(names)}).saved
        terms = {}
        for mask in corners:  # the coefficient of the product of the symbols in mask, in units of (s - 64) / 64
            terms[mask] = sum((-1) ** bin(mask ^ sub).count("1") * corners[sub] for sub in corners if sub & mask == sub)
        slack = 64 * (len(layer.saved) + 2)
        probe = {n: 192 for n in names}
        exact = self._evaluate(terms, probe) == layer.sizes(**probe).saved
        return (terms, slack) if exact else None

    def _evaluate(self, terms, symbols):
        total = 0
        for mask, coefficient in terms.items():
            product, unit = coefficient, 1
            for i, name in enumerate(self.layer.symbols):
                if mask >> i & 1:
                    product = product * (symbols[name] - 64)
                    unit *= 64
            total = total + product // unit
        return total

    def saved_bytes(self, symbols):
        if self.terms is None:
            return self.layer.sizes(**symbols).saved
        terms, slack = self.terms
        return self._evaluate(terms, symbols) + slack

    def symbols(self, inputs):
        shapes = tuple(tuple(t.shape) for t in inputs)
        found = self.bound.get(shapes)
        if found is None:
            found = self.layer.bind(shapes)
            if len(self.bound) > 1024:
                self.bound.clear()
            self.bound[shapes] = found
        return found


_plans: dict[int, _Plan] = {}
_numbers: dict[tuple, int] = {}
_plans_lock = threading.Lock()


def _plan(text: str, **options) -> int:
    """The number of a compiled layer. It follows from the text, the options and what the layer keeps, so that a graph that torch has on
    disk means the same layer in another process, and none after an update that changed it."""
    asked = (text, *sorted(options.items()))
    known = _numbers.get(asked)
    if known is not None:
        return known
    layer = compiler.layer(text, **options)  # compiles once, however many threads ask
    with _plans_lock:
        if asked not in _numbers:
            plan = _Plan(layer)
            plan.key = repr((asked, layer.about, plan.terms)).encode()
            number = int.from_bytes(hashlib.sha256(plan.key).digest()[:8], "big") >> 1
            if _plans.setdefault(number, plan).key != plan.key:
                raise Error("two layers have the same hash", "internal")
            _numbers[asked] = number
        return _numbers[asked]


def _find(number: int) -> _Plan:
    try:
        return _plans[number]
    except KeyError:
        raise Error("this graph refers to a layer that this process has not made: create the MoE module first", "not found") from None


# ---- memory ----------------------------------------------------------------------------------------------------------------

class _Pool:
    """Memory of tensors that died, for the next ones of their size: torch gives large blocks of the CPU back to the system at once, and
    taking them anew, page by page, costs more than filling them. All memory comes from torch, and never more is held than was in use
    at one time.

    A tensor handed out lies in a ctypes array over the block; when the last one that shares its storage dies, the array does, too."""
    LEAST = 1 << 20

    def __init__(self):
        self.lock = threading.Lock()
        self.free: dict[int, list[torch.Tensor]] = {}
        self.returned: deque = deque()  # filled by finalizers, which may run anywhere
        self.in_use = self.held = self.most = 0

    @staticmethod
    def size_class(n_bytes):
        step = max(1 << 16, 1 << max(0, n_bytes.bit_length() - 4))
        return (n_bytes + step - 1) // step * step

    def take(self, shape, dtype):
        n_bytes = dtype.itemsize
        for dim in shape:
            n_bytes *= dim
        if n_bytes < self.LEAST:
            return torch.empty(shape, dtype=dtype)
        size = self.size_class(n_bytes)
        with self.lock:
            while self.returned:
                block = self.returned.popleft()
                self.free.setdefault(block.numel(), []).append(block)
                self.in_use -= block.numel()
                self.held += block.numel()
            blocks = self.free.get(size)
            block = blocks.pop() if blocks else None
            self.held -= size if block is not None else 0
            self.in_use += size
            self.most = max(self.most, self.in_use)
            while self.in_use + self.held > self.most:  # the size that was first returned goes first
                oldest = next(iter(self.free))
                if self.free[oldest]:
                    self.free[oldest].pop()
                    self.held -= oldest
                else:
                    del self.free[oldest]
        if block is None:
            block = torch.empty(size, dtype=torch.uint8)
        memory = (ctypes.c_char * n_bytes).from_address(block.data_ptr())
        weakref.finalize(memory, self.returned.append, block).atexit = False
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def clear(self):
        with self.lock:
            self.free.clear()
            self.most -= self.held
            self.held = 0


_pool = _Pool()
_workspaces: list[torch.Tensor] = []  # append and pop are atomic; a call takes the last one and gives it back


def release_memory() -> None:
    """Gives back the memory that is kept for the next step: workspace, and blocks of gradients and saved tensors that died."""
    _workspaces.clear()
    _pool.clear()


def _take_workspace(n_bytes: int) -> torch.Tensor:
    try:
        found = _workspaces.pop()
    except IndexError:
        found = None
    if found is None or found.numel() < n_bytes:
        found = None  # freed before the greater one is made
        found = torch.empty(max(64, n_bytes), dtype=torch.uint8)
    return found


def _give_workspace(workspace: torch.Tensor) -> None:
    if len(_workspaces) < 4:
        _workspaces.append(workspace)


def _aligned(t: torch.Tensor) -> torch.Tensor:
    """torch's own memory is aligned; what a hook brought back may not be."""
    if t.data_ptr() % 64 == 0 and t.is_contiguous():
        return t
    raw = torch.empty(t.numel() + 64, dtype=torch.uint8)
    skip = -raw.data_ptr() % 64
    return raw[skip:skip + t.numel()].copy_(t.reshape(-1))


# ---- the two operators -----------------------------------------------------------------------------------------------------

_library = torch.library.Library("moec", "DEF")
_library.define("forward(int plan, Tensor[] inputs, Tensor[] params, bool keep) -> Tensor[]")
_library.define("backward(int plan, Tensor[] inputs, Tensor[] params, Tensor saved, Tensor?[] cotangents, bool[] wanted) -> Tensor[]")


def _check_input(name, dtype, t):
    if t.dtype != dtype:
        raise Error(f"{name} is {_name(t.dtype)}, but the layer computes in {_name(dtype)}: convert it ({name}.to(torch.{_name(dtype)})), or "
                    f"make the module with cast=True")
    return t if t.is_contiguous() else t.contiguous()


def _check_param(spec, t):
    path, dtype, shape = spec
    if t.dtype != dtype:
        raise Error(f"parameter {path} is {_name(t.dtype)}; moec trains {_name(dtype)} parameters: convert the module (module.float())")
    if tuple(t.shape) != shape:
        raise Error(f"parameter {path} has shape {list(t.shape)}; this layer was made for {list(shape)}", "mismatch")
    if not t.is_contiguous():
        raise Error(f"parameter {path} is not dense and row-major (strides {list(t.stride())}), and moec reads it where it lies: make it "
                    f"so once (with torch.no_grad(): p.data = p.data.contiguous())")


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _fill(plan, call, symbols, inputs, params, saved, workspace, threads):
    call.shape(symbols)
    for t, value in zip(call.inputs, inputs):
        t.data = value.data_ptr()
    addresses = call.params
    for i, value in enumerate(params):
        addresses[i] = value.data_ptr()
    n = saved.numel() if saved is not None else 0
    call.buffers(_lib.threads(threads), saved.data_ptr() if n else None, n, workspace.data_ptr(), workspace.numel())


def _prepare(number, inputs, params):
    plan = _find(number)
    symbols = plan.symbols(inputs)
    inputs = [_check_input(name, dtype, t) for (name, dtype), t in zip(plan.inputs, inputs)]
    if len(params) != len(plan.params):
        raise Error(f"this layer has {len(plan.params)} parameters, not {len(params)}")
    for spec, t in zip(plan.params, params):
        _check_param(spec, t)
    return plan, symbols, inputs


def _forward(number: int, inputs: Sequence[torch.Tensor], params: Sequence[torch.Tensor], keep: bool):
    plan, symbols, inputs = _prepare(number, inputs, params)
    layer = plan.layer
    if not all(symbols.values()):  # no tokens: nothing to launch
        saved = torch.empty(plan.saved_bytes(symbols) if keep else 0, dtype=torch.uint8)
        return [torch.zeros(spec.shape(symbols), dtype=d) for spec, d in zip(layer.outputs, plan.outputs)] + [saved]
    outputs = [_pool.take(spec.shape(symbols), d) for spec, d in zip(layer.outputs, plan.outputs)]
    threads = torch.get_num_threads()
    sizes = layer.sizes(threads, **symbols)
    saved = _pool.take((plan.saved_bytes(symbols) if keep else 0,), torch.uint8)
    if keep and saved.numel() < sizes.saved:
        raise Error(f"the layer keeps {sizes.saved} bytes, its formula says {saved.numel()}", "internal")
    # what is not kept for backward lies in the workspace
    workspace, call = _take_workspace(sizes.workspace + (0 if keep else sizes.saved)), layer.take_call()
    _fill(plan, call, symbols, inputs, params, saved, workspace, threads)
    for t, value in zip(call.outputs, outputs):
        t.data = value.data_ptr()
    call.forward()
    layer.give_call(call)
    _give_workspace(workspace)
    return outputs + [saved]


def _backward(number: int, inputs: Sequence[torch.Tensor], params: Sequence[torch.Tensor], saved: torch.Tensor,
              cotangents: Sequence[Optional[torch.Tensor]], wanted: Sequence[bool]):
    plan, symbols, inputs = _prepare(number, inputs, params)
    layer, n = plan.layer, len(inputs)
    if not all(symbols.values()):
        return [torch.zeros_like(t) for t, want in zip([*inputs, *params], wanted) if want]
    threads = torch.get_num_threads()
    sizes = layer.sizes(threads, **symbols)
    expected = plan.saved_bytes(symbols)
    if saved.dtype != torch.uint8 or saved.numel() != expected:
        raise Error(f"saved holds {saved.numel()} bytes; a forward of these shapes keeps {expected}: it belongs to another forward", "mismatch")
    saved = _aligned(saved)
    kept = [None if c is None else _cotangent(spec, c, symbols) for spec, c in zip(layer.outputs, cotangents)]
    input_grads = [_pool.take(t.shape, t.dtype) if want else None for t, want in zip(inputs, wanted)]
    param_grads = [_pool.take(t.shape, torch.float32).zero_() if want else None for t, want in zip(params, wanted[n:])]
    workspace, call = _take_workspace(sizes.workspace), layer.take_call()
    _fill(plan, call, symbols, inputs, params, saved, workspace, threads)
    for t, value in zip(call.cotangents, kept):
        t.data = None if value is None else value.data_ptr()
    for i, value in enumerate(param_grads):
        call.param_grads[i] = None if value is None else value.data_ptr()
    asked = (_lib.Tensor * max(1, n))()
    n_asked = 0
    for i, value in enumerate(input_grads):
        if value is not None:
            asked[n_asked] = call.input_grads[i]
            asked[n_asked].data = value.data_ptr()
            n_asked += 1
    call.backward(asked, n_asked, False)
    layer.give_call(call)
    _give_workspace(workspace)
    return [g for g in [*input_grads, *param_grads] if g is not None]


def _cotangent(spec, c, symbols):
    if not spec.has_gradient:
        raise Error(f"output {spec.name} has no gradient, so it takes no cotangent")
    if c.dtype != _TORCH_DTYPES[spec.dtype] or tuple(c.shape) != spec.shape(symbols):
        raise Error(f"the cotangent of {spec.name} is {_name(c.dtype)}{list(c.shape)}; it must be {_name(_TORCH_DTYPES[spec.dtype])}"
                    f"{list(spec.shape(symbols))}", "mismatch")
    return c.contiguous()


def _forward_fake(number, inputs, params, keep):
    plan = _find(number)
    symbols = plan.layer.bind([tuple(t.shape) for t in inputs])
    out = [inputs[0].new_empty(spec.shape(symbols), dtype=d) for spec, d in zip(plan.layer.outputs, plan.outputs)]
    return out + [inputs[0].new_empty(plan.saved_bytes(symbols) if keep else 0, dtype=torch.uint8)]


def _backward_fake(number, inputs, params, saved, cotangents, wanted):
    return [t.new_empty(t.shape, dtype=torch.float32) for t, want in zip([*inputs, *params], wanted) if want]


_library.impl("forward", _forward, "CPU")
_library.impl("backward", _backward, "CPU")
torch.library.register_fake("moec::forward", _forward_fake, lib=_library)
torch.library.register_fake("moec::backward", _backward_fake, lib=_library)


class _Run(torch.autograd.Function):
    """Outside of the operators, so that a step crosses the dispatcher twice and no more."""

    @staticmethod
    def forward(ctx, number, n_inputs, *tensors):
        out = torch.ops.moec.forward(number, list(tensors[:n_inputs]), list(tensors[n_inputs:]), True)
        ctx.number, ctx.n_inputs = number, n_inputs
        ctx.save_for_backward(*tensors, out[-1])
        ctx.mark_non_differentiable(*[t for t, d in zip(out, _find(number).differentiable) if not d])
        return tuple(out[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *cotangents):
        *tensors, saved = ctx.saved_tensors
        n = ctx.n_inputs
        wanted = list(ctx.needs_input_grad[2:])
        kept = [c if d else None for c, d in zip(cotangents, _find(ctx.number).differentiable)]
        grads = iter(torch.ops.moec.backward(ctx.number, tensors[:n], tensors[n:], saved, kept, wanted))
        return None, None, *[next(grads) if want else None for want in wanted]


def _call(number, inputs, params):
    """The outputs of a layer. Differentiable when something asks for a gradient."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *params)):
        return _Run.apply(number, len(inputs), *inputs, *params)
    return torch.ops.moec.forward(number, list(inputs), list(params), False)[:-1]


def _check_device(name, t):
    if t.device.type not in ("cpu", "meta"):
        raise Error(f"{name} is on {t.device}; this version of moec computes on the CPU", "unsupported")


# ---- modules ---------------------------------------------------------------------------------------------------------------

class Losses(NamedTuple):
    """What a forward gives beside y: raw losses (f32 scalars, or None when the layer has not been asked for them), and load
    [2, E]: how many choices each expert got, and the sum of their weights."""
    aux: Optional[torch.Tensor]
    z: Optional[torch.Tensor]
    load: Optional[torch.Tensor]


class _Last:
    """The losses of the latest forward. They hold on to its graph, so a copy of a module begins without."""

    def __init__(self):
        self.losses = Losses(None, None, None)

    def __deepcopy__(self, memo):
        return _Last()

    def __reduce__(self):
        return _Last, ()


class _Params(nn.Module):
    """Holds the parameters under one name, so that state_dict has transformers' keys."""

    def forward(self, *_):
        raise Error("this only holds parameters; call the layer")


def _key(param):
    """"experts.gate_up_proj.weight" -> ("experts", "gate_up_proj"); the selection bias lies beside the router's weight."""
    path = param.path
    if path == "e_score_correction_bias":
        path = "gate." + path
    if param.role == "experts":
        path = path.removesuffix(".weight")
    return path.split(".")


class MoE(nn.Module):
    """A mixture-of-experts layer: y = sum over the chosen experts of gate * expert(x) [+ shared expert].

    d_model, d_expert, n_experts, top_k: the sizes. Parameters are f32; expert weights are packed [E, 2 F, D] and [E, D, F], with
    transformers' names: gate.weight, experts.gate_up_proj, experts.down_proj, shared_experts.*.

    score ("softmax" or "sigmoid"), renorm, eps, bias (a selection bias for update_bias), groups, keep_groups, scale: the route;
    or route="linear@gate | softmax | top 2 | renorm": its stages as text (docs/LANGUAGE.md). act: silu, gelu, gelu_tanh, relu.
    d_shared: width of a shared expert; shared_gate: multiplied by sigmoid(linear(x)).
    aux ("switch", or "sequence" for [B, S, D]) and z: raw losses in self.aux and self.z after a forward, with gradients. "switch" is
    E sum_e f_e P_e with f_e = choices / (top_k tokens); transformers' load_balancing_loss_func counts choices / tokens, top_k times as much.
    recompute: keep the input and the routing only, and compute the rest again in backward.
    cast: convert x to f32 and y back, instead of refusing other types. jitter: x is multiplied by noise in 1 - jitter .. 1 + jitter in training.
    """

    def __init__(self, d_model: int, d_expert: int, n_experts: int, top_k: int = 2, *, route: Optional[str] = None,
                 score: str = "softmax", renorm: bool = True, eps: float = 0.0, bias: bool = False, groups: int = 1,
                 keep_groups: int = 1, scale: float = 1.0, act: str = "silu", d_shared: int = 0, shared_gate: bool = False,
                 shared_label: str = "shared_experts", aux=None, z: bool = False, recompute: bool = False, cast: bool = False,
                 jitter: float = 0.0, init_std: float = 0.02, _tensors=None):
        super().__init__()
        if route is None:
            route = texts.route(top_k, score=score, renorm=renorm, eps=eps, bias=bias, groups=groups, keep_groups=keep_groups, scale=scale)
        self.d_model, self.d_expert, self.n_experts, self.top_k = d_model, d_expert, n_experts, top_k
        self.route, self.cast, self.jitter, self.init_std = route, cast, jitter, init_std
        self.text = texts.moe(d_model, d_expert, n_experts, top_k, route=route, act=act, d_shared=d_shared, shared_gate=shared_gate,
                              shared_label=shared_label, aux=aux, z=z)
        self.recompute = recompute
        self._sequence = aux == "sequence"
        self._last = _Last()
        self._plan = _plan(self.text, recompute=recompute)
        layer = _find(self._plan).layer
        self._slots = []
        for param in layer.params:
            self._add(param, (_tensors or {}).get(".".join(_key(param))))
        if _tensors is None:
            self.reset_parameters()
        names = [spec.name for spec in layer.outputs]
        self._aux, self._z = (names.index(n) if n in names else None for n in ("aux", "z"))
        self._load = next((i for i, n in enumerate(names) if n.split(".")[-1] == "load"), None)

    def _add(self, param, tensor):
        *folders, name = _key(param)
        holder = self
        for folder in folders:
            if folder not in holder._modules:
                holder.add_module(folder, _Params())
            holder = holder._modules[folder]
        if tensor is None:
            tensor = torch.empty(param.shape, dtype=_TORCH_DTYPES[param.dtype])
        if param.has_gradient:
            holder.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
        else:
            holder.register_buffer(name, tensor)
        self._slots.append((holder, name, param.has_gradient))

    def reset_parameters(self) -> None:
        """Weights normal with init_std, selection biases zero."""
        for holder, name, trained in self._slots:
            tensor = getattr(holder, name)
            with torch.no_grad():
                tensor.normal_(0, self.init_std) if trained else tensor.zero_()

    def __setstate__(self, state):
        super().__setstate__(state)
        self._plan = _plan(self.text, recompute=self.recompute)

    # ---- the step ----

    def forward(self, hidden_states: torch.Tensor, losses: bool = False):
        """y, in the shape of hidden_states; with losses=True (y, Losses) and the attributes aux, z and load are left alone."""
        x = hidden_states
        _check_device("hidden_states", x)
        if x.dim() < 2 or x.shape[-1] != self.d_model:
            raise Error(f"hidden_states has shape {list(x.shape)}; it must be [tokens, {self.d_model}] or [batch, sequence, {self.d_model}]",
                        "mismatch")
        if self.cast:
            x = x.float()
        elif x.dtype != torch.float32:
            raise Error(f"hidden_states is {_name(x.dtype)}, but the layer computes in float32: pass hidden_states.float(), or make the "
                        "module with cast=True")
        if self.jitter and self.training:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        shape = x.shape
        if not self._sequence:
            x = x.reshape(-1, self.d_model)
        elif x.dim() != 3:
            x = x.reshape(1 if x.dim() == 2 else -1, x.shape[-2], self.d_model)
        out = _call(self._plan, (x,), [getattr(holder, name) for holder, name, _ in self._slots])
        y = out[0].view(shape)
        if self.cast:
            y = y.to(hidden_states.dtype)
        given = Losses(*(None if i is None else out[i] for i in (self._aux, self._z, self._load)))
        if losses:
            return y, given
        self._last.losses = given
        return y

    @property
    def aux(self) -> torch.Tensor:
        """The balance loss of the latest forward, raw."""
        return self._loss(self._last.losses.aux, "aux", 'aux="switch"')

    @property
    def z(self) -> torch.Tensor:
        """The z-loss of the latest forward, raw."""
        return self._loss(self._last.losses.z, "z", "z=True")

    @property
    def load(self) -> torch.Tensor:
        """[2, E] of the latest forward: choices of each expert, and the sum of their weights."""
        return self._loss(self._last.losses.load, "load", "a route")

    def _loss(self, value, name, how):
        if value is None:
            made = {"aux": self._aux, "z": self._z, "load": self._load}[name] is not None
            raise Error(f"{name}: " + ("there has been no forward yet" if made else f"this layer was made without it; make it with {how}"))
        return value

    def update_bias(self, counts: Optional[torch.Tensor] = None, *, rule: str = "sign", rate: float = 1e-3, decay: float = 0.9) -> None:
        """Moves the selection bias by one step, after the optimizer's. counts: choices of each expert, summed over all ranks and
        micro-batches; default: those of the latest forward."""
        bias = self._modules["gate"]._buffers.get("e_score_correction_bias") if "gate" in self._modules else None
        if bias is None:
            raise Error("update_bias: this layer has no selection bias; make it with bias=True")
        counts = (self.load[0] if counts is None else counts).detach().to(torch.float32).contiguous()
        if tuple(counts.shape) != tuple(bias.shape):
            raise Error(f"update_bias: counts has shape {list(counts.shape)}; it must be {list(bias.shape)}", "mismatch")
        ema = None
        if rule == "ema":
            if not hasattr(self, "load_ema"):
                self.register_buffer("load_ema", torch.full_like(bias, 1 / self.n_experts))
            ema = self.load_ema
        elif rule not in _lib.BIAS_RULES:
            raise Error(f"update_bias: rule {rule!r} is none of {', '.join(_lib.BIAS_RULES)}")
        error = _lib.ErrorText()
        status = _lib.lib.moec_bias_update(_lib.BIAS_RULES[rule], rate, decay, self.n_experts, counts.data_ptr(),
                                           None if ema is None else ema.data_ptr(), bias.data_ptr(), error)
        _lib.check(status, error, "update_bias")

    def extra_repr(self) -> str:
        return f"{self.d_model}, {self.d_expert}, n_experts={self.n_experts}, top_k={self.top_k}, route={self.route!r}"

    # ---- transformers ----

    @classmethod
    def from_transformers(cls, block: nn.Module, config=None, **options) -> "MoE":
        """A layer that computes what a transformers block computes (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V3), on the same
        parameters: the very tensors where experts are packed (transformers 5), copies where each expert has its own (4).
        options: aux, z, recompute, cast, as for MoE."""
        arguments, tensors = read_block(block, config)
        arguments.update(options)
        for name, t in tensors.items():
            if t.dtype != torch.float32:
                raise Error(f"from_transformers: {name} is {_name(t.dtype)}; moec trains float32 parameters: block.float() first")
        made = cls(**arguments, _tensors=tensors)
        unused = set(tensors) - {".".join(_key(p)) for p in _find(made._plan).layer.params}
        if unused:
            raise Error(f"from_transformers: the block's {', '.join(sorted(unused))} has no place in the layer", "internal")
        made.train(block.training)
        return made


def replace_moe_blocks(model: nn.Module, config=None, **options) -> list[str]:
    """Puts an MoE in the place of every MoE block of a transformers model, on the same parameters; returns their names.
    options as for MoE.from_transformers. Layers of one kind share one compiled plan."""
    config = config if config is not None else getattr(model, "config", None)
    names = [name for name, module in model.named_modules() if type(module).__name__ in BLOCKS]
    if not names:
        raise Error(f"replace_moe_blocks: the model has none of {', '.join(BLOCKS)}", "not found")
    for name in names:
        parent, _, leaf = name.rpartition(".")
        holder = model.get_submodule(parent) if parent else model
        setattr(holder, leaf, MoE.from_transformers(getattr(holder, leaf), config, **options))
    return names


# ---- experts with given choices --------------------------------------------------------------------------------------------

def experts(x: torch.Tensor, ids: torch.Tensor, gates: torch.Tensor, gate_up_proj: torch.Tensor, down_proj: torch.Tensor,
            act: str = "silu", recompute: bool = False) -> torch.Tensor:
    """y[t] = sum over j of gates[t, j] * expert_{ids[t, j]}(x[t]), in ascending expert order. x f32 [T, D], ids i32 or i64 [T, k], gates
    f32 [T, k], gate_up_proj f32 [E, 2 F, D], down_proj f32 [E, D, F]. Ids of E and above add nothing."""
    _check_device("x", x)
    if ids.dtype not in (torch.int32, torch.int64):
        raise Error(f"ids is {_name(ids.dtype)}; it must be int32 or int64")
    if x.dim() != 2 or ids.dim() != 2 or ids.shape != gates.shape or down_proj.dim() != 3:
        raise Error(f"x {list(x.shape)}, ids {list(ids.shape)}, gates {list(gates.shape)}, down_proj {list(down_proj.shape)}: they must be "
                    "[T, D], [T, k], [T, k] and [E, D, F]", "mismatch")
    n_experts, d_model, d_expert = down_proj.shape
    number = _plan(texts.experts(d_model, d_expert, n_experts, ids.shape[1], act=act), filename="experts.moir", recompute=recompute)
    return _call(number, (x, ids.to(torch.int32), gates), (gate_up_proj, down_proj))[0]


class Experts(nn.Module):
    """experts() with parameters of its own, called as transformers calls its experts: (x, ids, gates)."""

    def __init__(self, d_model: int, d_expert: int, n_experts: int, *, act: str = "silu", recompute: bool = False, init_std: float = 0.02):
        super().__init__()
        self.act, self.recompute = act, recompute
        self.gate_up_proj = nn.Parameter(torch.empty(n_experts, 2 * d_expert, d_model).normal_(0, init_std))
        self.down_proj = nn.Parameter(torch.empty(n_experts, d_model, d_expert).normal_(0, init_std))

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        return experts(hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj, self.act, self.recompute)

    def extra_repr(self) -> str:
        e, d, f = self.down_proj.shape
        return f"{d}, {f}, n_experts={e}, act={self.act}"


def register_experts(name: str = "moec") -> None:
    """Makes experts_implementation="moec" known to transformers (5 and later): its routers, our experts."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    def forward(self, hidden_states, top_k_index, top_k_weights):
        if getattr(self, "is_transposed", False) or getattr(self, "has_bias", False) or not getattr(self, "has_gate", True) \
                or not getattr(self, "is_concatenated", True):
            raise Error(f"{type(self).__name__}: moec's experts have a gate, no bias, and weights [E, 2 F, D]", "unsupported")
        return experts(hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj,
                       activation(self, getattr(self, "config", None)))

    ALL_EXPERTS_FUNCTIONS.register(name, forward)
