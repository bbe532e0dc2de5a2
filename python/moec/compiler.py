"""Compiling .moe texts, and training layers made of them, on plain buffers.

    layer = moec.layer(text)                       # compiled for training, or taken from the cache
    x = moec.tensor(rows)                          # memoryviews of f32; any buffer of that shape will do, numpy's too
    step = layer.forward([x], params, threads=2)   # step.outputs["y"] ...
    grads = step.backward({"y": dy})               # grads.params[i], grads.inputs[i]

Torch needs none of this: moec.torch passes its own memory to the same calls.
"""
from __future__ import annotations

import os
import threading
from collections import deque
from ctypes import byref, c_char_p, c_size_t, c_void_p, string_at
from typing import NamedTuple, Optional, Sequence

from . import _lib
from ._lib import DTYPE_NAMES, DTYPES, Error, check, lib

_SEVERITIES = ("error", "warning", "remark")


class Diagnostic(NamedTuple):
    """One report of the compiler. `rendered` is the whole of it, with the source line; lines and columns begin at 1."""
    severity: str
    code: str
    message: str
    file: str
    line: int
    column: int
    rendered: str


class Sizes(NamedTuple):
    """Bytes for one call: what forward keeps for backward, and what a call needs while it runs."""
    saved: int
    workspace: int


class Param(NamedTuple):
    path: str
    role: str
    init: str
    dtype: str
    shape: tuple
    has_gradient: bool


class Saved(NamedTuple):
    """A tensor that forward keeps; `shape` as text, such as "[2*T, 3584]"."""
    name: str
    dtype: str
    shape: str


class TensorSpec(NamedTuple):
    """An input or output. Each dim is a number times symbols: (2, ("T",)) is 2*T, (64, ()) is 64."""
    name: str
    dtype: str
    dims: tuple
    limit: int
    has_gradient: bool

    def shape(self, symbols):
        """The shape for values of the symbols, which may be anything that multiplies (torch's symbolic numbers)."""
        return tuple(_value(dim, symbols) for dim in self.dims)

    def __str__(self):
        return f"{self.dtype}[{', '.join('*'.join([str(m)] * (m != 1 or not s) + list(s)) for m, s in self.dims)}]"


def _value(dim, symbols):
    mul, names = dim
    for name in names:
        mul = symbols[name] * mul
    return mul


def _read_shape(text):
    """"[2*T, 64]" as ((2, ("T",)), (64, ()))."""
    dims = []
    for part in text.strip("[] ").split(","):
        if not part.strip():
            continue
        mul, names = 1, []
        for factor in part.split("*"):
            factor = factor.strip()
            if factor.isdigit():
                mul *= int(factor)
            else:
                names.append(factor)
        dims.append((mul, tuple(names)))
    return tuple(dims)


# ---- compiling -------------------------------------------------------------------------------------------------------------

def _bytes(text):
    return None if text is None else os.fsencode(text)


def _strings(items):
    items = [f"{k}={v}" for k, v in items.items()] if isinstance(items, dict) else list(items or ())
    return (c_char_p * len(items))(*[_bytes(i) for i in items]), len(items)


def _globs(frozen):
    return ",".join(frozen) if isinstance(frozen, (list, tuple)) else frozen


class Compiled:
    """A compiled text. Made by compile() and compile_file()."""

    def __init__(self, handle, diagnostics, train):
        self._handle = handle
        self._model = None
        self._lock = threading.Lock()
        self.diagnostics = diagnostics
        self.trained = train

    def __del__(self):
        handle, self._handle = getattr(self, "_handle", None), None
        if handle:
            try:
                lib.moec_compiled_destroy(handle)
            except Exception:  # the interpreter is going down
                pass

    @property
    def name(self) -> str:
        return lib.moec_compiled_name(self._handle).decode()

    @property
    def summary(self) -> str:
        """What was fused, and what is stored how: one line."""
        return (lib.moec_compiled_summary(self._handle) or b"").decode()

    @property
    def from_cache(self) -> bool:
        return lib.moec_compiled_from_cache(self._handle)

    @property
    def object(self) -> bytes:
        """The object file (ELF)."""
        n = c_size_t()
        return string_at(lib.moec_compiled_object(self._handle, byref(n)), n.value)

    def write(self, kind: str, path) -> None:
        """Writes "executable", "shared_library", "archive", "object" or "header"."""
        if kind not in _lib.ARTEFACTS:
            raise Error(f"write: {kind!r} is none of {', '.join(_lib.ARTEFACTS)}")
        error = _lib.ErrorText()
        check(lib.moec_compiled_write(self._handle, _lib.ARTEFACTS[kind], _bytes(path), byref(error)), error, str(path))

    def model(self) -> int:
        """The code linked into this process: a moec_model, owned by this object."""
        with self._lock:
            if self._model is None:
                model, error = c_void_p(), _lib.ErrorText()
                check(lib.moec_compiled_load(self._handle, byref(model), byref(error)), error, "loading the compiled code")
                self._model = model.value
        return self._model

    def layer(self) -> "Layer":
        return Layer(self)


def _compile(call, what, *, model, defines, settings, config, map, target, name, cache, train, recompute, frozen, remarks):
    reports = []

    def report(_, info):
        d = info.contents
        text = [(getattr(d, f) or b"").decode(errors="replace") for f in ("code", "message", "file", "rendered")]
        reports.append(Diagnostic(_SEVERITIES[d.severity], text[0], text[1], text[2], d.line, d.column, text[3]))

    options = _lib.CompileOptions(model=_bytes(model), config=_bytes(config), map=_bytes(map), target=_bytes(target), name=_bytes(name),
                                  cache=_bytes(cache), train=train, recompute=recompute, frozen=_bytes(_globs(frozen)),
                                  remarks=remarks, on_diagnostic=_lib.DiagnosticFn(report))
    options.defines, options.n_defines = _strings(defines)
    options.settings, options.n_settings = _strings(settings)
    handle = c_void_p()
    status = call(byref(options), byref(handle))
    if status:
        errors = [d.rendered.rstrip() for d in reports if d.severity == "error"]
        raise Error("\n".join(errors) or f"{what}: {_lib.STATUS[status]} error", _lib.STATUS[status], reports)
    return Compiled(handle.value, reports, train)


def compile(text: str, *, filename: str = "layer.moe", model: Optional[str] = None, defines=(), settings=(), config=None,
            map: Optional[str] = None, target: Optional[str] = None, name: Optional[str] = None, cache: Optional[str] = None,
            train: bool = False, recompute: bool = False, frozen=None, remarks: bool = False) -> Compiled:
    """Compiles a text; `filename` appears in reports (and ending in .moir it says that the text is IR).

    defines: {"D": 1024}; settings: {"precision.storage": "f32"}; cache: a directory, "" for none. train, recompute and frozen
    (globs of parameter paths without gradient) as in moec_compile_options. Raises Error with everything that was reported.
    """
    data = text.encode()
    return _compile(lambda options, out: lib.moec_compile_text(os.fsencode(filename), data, len(data), options, out), filename,
                    model=model, defines=defines, settings=settings, config=config, map=map, target=target, name=name, cache=cache,
                    train=train, recompute=recompute, frozen=frozen, remarks=remarks)


def compile_file(path, *, model: Optional[str] = None, defines=(), settings=(), config=None, map: Optional[str] = None,
                 target: Optional[str] = None, name: Optional[str] = None, cache: Optional[str] = None, train: bool = False,
                 recompute: bool = False, frozen=None, remarks: bool = False) -> Compiled:
    """Compiles a file; otherwise as compile()."""
    return _compile(lambda options, out: lib.moec_compile_file(os.fsencode(path), options, out), str(path), model=model,
                    defines=defines, settings=settings, config=config, map=map, target=target, name=name, cache=cache, train=train,
                    recompute=recompute, frozen=frozen, remarks=remarks)


def layer(text: str, **options) -> "Layer":
    """compile(text, train=True) as a Layer. A text compiled before in this process, with the same options, gives the same Layer."""
    options.setdefault("settings", {})
    key = (text, repr(sorted((k, v if not isinstance(v, dict) else sorted(v.items())) for k, v in options.items())))
    with _layers_lock:  # one compile at a time: threads that ask for the same layer wait for it
        if key not in _layers:
            _layers[key] = compile(text, train=True, **options).layer()
        return _layers[key]


_layers: dict = {}
_layers_lock = threading.Lock()


# ---- buffers ---------------------------------------------------------------------------------------------------------------

def empty(shape: Sequence[int], dtype: str = "f32") -> memoryview:
    """Zeroed memory at an address that is a multiple of 64, as a memoryview of this shape. No dim may be 0."""
    _, size, letter = DTYPES[dtype]
    if letter is None:
        raise Error(f"Python has no elements of type {dtype}")
    n = size
    for dim in shape:
        n *= dim
    memory = bytearray(n + 63)
    view = memoryview(memory)
    skip = -_lib.address_of(view) % 64
    return view[skip:skip + n].cast(letter, list(shape)) if size > 1 or len(shape) != 1 else view[skip:skip + n]


def tensor(rows, dtype: str = "f32") -> memoryview:
    """Nested lists of numbers as a memoryview."""
    shape, at = [], rows
    while isinstance(at, (list, tuple)):
        shape.append(len(at))
        at = at[0] if at else 0
    flat = rows if shape else [rows]
    for depth in range(1, len(shape)):
        flat = [x for row in flat for x in row]
    view = empty(shape, dtype)
    out = view.cast("B").cast(DTYPES[dtype][2])
    if len(out) != len(flat):
        raise Error("tensor: rows of different lengths")
    for i, x in enumerate(flat):
        out[i] = x
    return view


def _view(value, spec_shape, dtype, what, writable=False):
    """The buffer as a contiguous memoryview of this type and shape, or an Error that names it."""
    try:
        view = memoryview(value)
    except TypeError:
        raise Error(f"{what} is a {type(value).__name__}, not a buffer (a memoryview, an array, numpy's arrays)") from None
    number, size, letter = DTYPES[dtype]
    kinds = {"f": "fd", "e": "e", "d": "fd", "i": "ilq", "q": "ilq", "b": "b", "B": "B", "?": "?"}
    given = view.format.lstrip("@=<")
    if given not in kinds.get(letter, "") or view.itemsize != size:
        raise Error(f"{what} has elements of format {view.format!r}, {view.itemsize} bytes each; it must be {dtype}")
    if not view.c_contiguous:
        raise Error(f"{what} is not dense and row-major (strides {view.strides}): copy it first")
    if writable and view.readonly:
        raise Error(f"{what} is read-only, but is written to")
    if tuple(view.shape) != tuple(spec_shape):
        raise Error(f"{what} has shape {list(view.shape)}; it must be {list(spec_shape)}", "mismatch")
    return view


# ---- training --------------------------------------------------------------------------------------------------------------

class Call:
    """A moec_train_call with room for everything; filled anew for each call, by one thread at a time."""

    def __init__(self, layer):
        self.c = c = _lib.TrainCall()
        self.error = _lib.ErrorText()
        self.inputs = self._tensors(layer.inputs)
        self.outputs = self._tensors(layer.outputs)
        self.cotangents = self._tensors(layer.outputs)
        self.input_grads = self._tensors(layer.inputs)
        self.params = (c_void_p * max(1, len(layer.params)))()
        self.param_grads = (c_void_p * max(1, len(layer.params)))()
        c.inputs, c.n_inputs, c.params = self.inputs, len(layer.inputs), self.params
        self.symbols = None
        self.layer = layer

    @staticmethod
    def _tensors(specs):
        tensors = (_lib.Tensor * max(1, len(specs)))()
        for t, spec in zip(tensors, specs):
            t.name, t.dtype, t.rank = spec.name.encode(), DTYPES[spec.dtype][0], len(spec.dims)
        return tensors

    def shape(self, symbols):
        """Sets dims and sizes of every tensor for these run-time dimensions."""
        if symbols == self.symbols:
            return
        self.symbols = None  # stays so if something below fails
        for tensors, specs in ((self.inputs, self.layer.inputs), (self.outputs, self.layer.outputs),
                               (self.cotangents, self.layer.outputs), (self.input_grads, self.layer.inputs)):
            for t, spec in zip(tensors, specs):
                n = DTYPES[spec.dtype][1]
                for i, dim in enumerate(spec.shape(symbols)):
                    t.dims[i] = dim
                    n *= dim
                t.n_bytes = n
        self.symbols = dict(symbols)

    def buffers(self, threads, saved, saved_bytes, workspace, workspace_bytes):
        c = self.c
        c.threads, c.saved, c.saved_bytes = threads, saved, saved_bytes
        c.workspace, c.workspace_bytes = workspace, workspace_bytes

    def forward(self):
        c = self.c
        c.outputs, c.n_outputs = self.outputs, len(self.layer.outputs)
        c.n_cotangents = c.n_input_grads = 0
        c.param_grads = None
        status = lib.moec_train_forward(self.layer.model, byref(c), byref(self.error))
        if status:
            check(status, self.error, "forward")

    def backward(self, input_grads, n_input_grads, check_finite):
        c = self.c
        c.n_outputs = 0
        c.cotangents, c.n_cotangents = self.cotangents, len(self.layer.outputs)
        c.input_grads, c.n_input_grads = input_grads, n_input_grads
        c.param_grads, c.check_finite = self.param_grads, check_finite
        status = lib.moec_train_backward(self.layer.model, byref(c), byref(self.error))
        if status:
            check(status, self.error, "backward")


class Layer:
    """A model compiled for training: a layer, experts with given choices, or a whole language model. Immutable; any number of
    threads may use it."""

    def __init__(self, compiled: Compiled):
        self.compiled = compiled
        self.model = compiled.model()
        if not lib.moec_model_is_trainable(self.model):
            raise Error(f"{compiled.name} was compiled for inference: compile it with train=True", "unsupported")
        self.about = lib.moec_model_compiler(self.model).decode()  # which compiler made it
        self.inputs = self._specs(lib.moec_model_n_inputs, lib.moec_model_input, lib.moec_train_input_has_gradient)
        self.outputs = self._specs(lib.moec_model_n_outputs, lib.moec_model_output, lib.moec_train_output_has_gradient)
        self.params = tuple(self._param(i) for i in range(lib.moec_train_n_params(self.model)))
        self.symbols = tuple(dict.fromkeys(name for spec in self.inputs for _, names in spec.dims for name in names))
        self._sizes: dict = {}
        self._calls: deque = deque()  # a pool: append and pop are atomic

    def _specs(self, count, read, has_gradient):
        specs = []
        for i in range(count(self.model)):
            info = _lib.TensorInfo()
            check(read(self.model, i, byref(info)), None, "moec_model_input")
            dims = _read_shape(info.shape.decode())
            specs.append(TensorSpec(info.name.decode(), DTYPE_NAMES[info.dtype], dims, info.limit, has_gradient(self.model, i)))
        return tuple(specs)

    def _param(self, index):
        info = _lib.ParamInfo()
        check(lib.moec_train_param(self.model, index, byref(info)), None, "moec_train_param")
        return Param(info.path.decode(), info.role.decode(), (info.init or b"").decode(), DTYPE_NAMES[info.dtype],
                     tuple(info.dims[:info.rank]), info.has_gradient)

    @property
    def saved(self):
        """What forward keeps, tensor by tensor."""
        out = []
        for i in range(lib.moec_train_n_saved(self.model)):
            info = _lib.SavedInfo()
            check(lib.moec_train_saved(self.model, i, byref(info)), None, "moec_train_saved")
            out.append(Saved((info.name or b"").decode(), DTYPE_NAMES[info.dtype], info.shape.decode()))
        return out

    def sizes(self, threads: int = 1, **dims: int) -> Sizes:
        """Bytes of saved and workspace for these run-time dimensions, such as sizes(T=512)."""
        key = (threads, *(dims.get(name) for name in self.symbols))
        known = self._sizes.get(key)
        if known is None or len(dims) != len(self.symbols):
            limits = (_lib.Limit * max(1, len(dims)))(*[_lib.Limit(n.encode(), v) for n, v in dims.items()])
            out, error = _lib.TrainSizes(), _lib.ErrorText()
            check(lib.moec_train_query(self.model, limits, len(dims), threads, byref(out), byref(error)), error, "sizes")
            known = Sizes(out.saved_bytes, out.workspace_bytes)
            if len(self._sizes) > 1024:
                self._sizes.clear()
            self._sizes[key] = known
        return known

    def bind(self, shapes) -> dict:
        """The run-time dimensions that the shapes of the inputs mean, or an Error that names the input."""
        symbols: dict = {}
        if len(shapes) != len(self.inputs):
            raise Error(f"{self.compiled.name} takes {len(self.inputs)} inputs ({', '.join(s.name for s in self.inputs)}), "
                        f"not {len(shapes)}")
        for spec, shape in zip(self.inputs, shapes):
            if len(shape) != len(spec.dims):
                raise Error(f"{spec.name} has {len(shape)} dims, {list(shape)}; it is {spec}", "mismatch")
            for (mul, names), size in zip(spec.dims, shape):
                if len(names) == 1 and names[0] not in symbols and size % mul == 0:
                    symbols[names[0]] = size // mul
        for spec, shape in zip(self.inputs, shapes):
            if any(name not in symbols for _, names in spec.dims for name in names) or spec.shape(symbols) != tuple(shape):
                raise Error(f"{spec.name} has shape {list(shape)}; it is {spec}"
                            + (f" with {', '.join(f'{k} = {v}' for k, v in symbols.items())}" if symbols else ""), "mismatch")
        return symbols

    def take_call(self) -> Call:
        try:
            return self._calls.pop()
        except IndexError:
            return Call(self)

    def give_call(self, call: Call) -> None:
        if len(self._calls) < 16:
            self._calls.append(call)

    # ---- on plain buffers ----

    def forward(self, inputs, params, *, threads: int = 1, keep: bool = True) -> "Step":
        """inputs: buffers in the order of self.inputs; params: of self.params. keep=False: nothing for backward is kept."""
        views = []
        for i, spec in enumerate(self.inputs[:len(inputs)]):
            try:
                views.append(memoryview(inputs[i]))
            except TypeError:
                raise Error(f"{spec.name} is a {type(inputs[i]).__name__}, not a buffer") from None
        symbols = self.bind([v.shape for v in views] if len(views) == len(inputs) else inputs)
        views = [_view(v, spec.shape(symbols), spec.dtype, spec.name) for v, spec in zip(views, self.inputs)]
        if len(params) != len(self.params):
            raise Error(f"{self.compiled.name} has {len(self.params)} parameters, not {len(params)}")
        weights = [_view(p, spec.shape, spec.dtype, spec.path) for p, spec in zip(params, self.params)]
        sizes = self.sizes(threads, **symbols)
        step = Step(self, symbols, threads, views, weights, empty([max(1, sizes.saved)], "u8") if keep else None, sizes)
        call = self.take_call()
        step._fill(call)
        for t, spec in zip(call.outputs, self.outputs):
            t.data = _lib.address_of(step.outputs[spec.name])
        call.forward()
        self.give_call(call)
        return step


class Grads(NamedTuple):
    params: list  # None for a parameter without gradient
    inputs: list


class Step:
    """One forward: its outputs by name, and what backward needs."""

    def __init__(self, layer, symbols, threads, inputs, params, saved, sizes):
        self.layer, self.symbols, self.threads = layer, symbols, threads
        self._inputs, self._params, self.saved = inputs, params, saved
        self.sizes = sizes
        self._workspace = empty([sizes.workspace + (0 if saved is not None else sizes.saved) + 1], "u8")
        self.outputs = {spec.name: empty(spec.shape(symbols), spec.dtype) for spec in layer.outputs}

    def _fill(self, call):
        call.shape(self.symbols)
        for t, view in zip(call.inputs, self._inputs):
            t.data = _lib.address_of(view)
        for i, view in enumerate(self._params):
            call.params[i] = _lib.address_of(view)
        call.buffers(_lib.threads(self.threads), _lib.address_of(self.saved) if self.saved is not None else None,
                     len(self.saved) if self.saved is not None else 0, _lib.address_of(self._workspace), len(self._workspace))

    def backward(self, cotangents, param_grads=None, check_finite: bool = False) -> Grads:
        """cotangents: {output name: buffer}; absent ones count as zero. param_grads: buffers to add to, None for a frozen
        one; made and zeroed when not given."""
        layer = self.layer
        if self.saved is None:
            raise Error("backward: this forward kept nothing (keep=False)")
        names = [spec.name for spec in layer.outputs]
        unknown = [name for name in cotangents if name not in names]
        if unknown:
            raise Error(f"backward: no output is called {unknown[0]!r}; there are {', '.join(names)}")
        given = [None if (c := cotangents.get(spec.name)) is None
                 else _view(c, spec.shape(self.symbols), spec.dtype, f"the cotangent of {spec.name}") for spec in layer.outputs]
        if param_grads is None:
            param_grads = [empty(p.shape) if p.has_gradient else None for p in layer.params]
        if len(param_grads) != len(layer.params):
            raise Error(f"{layer.compiled.name} has {len(layer.params)} parameters, not {len(param_grads)} gradients")
        grads = [None if g is None else _view(g, p.shape, "f32", f"the gradient of {p.path}", writable=True)
                 for g, p in zip(param_grads, layer.params)]
        call = layer.take_call()
        self._fill(call)
        for t, view in zip(call.cotangents, given):
            t.data = None if view is None else _lib.address_of(view)
        for i, view in enumerate(grads):
            call.param_grads[i] = None if view is None else _lib.address_of(view)
        input_grads = [empty(s.shape(self.symbols), s.dtype) if s.has_gradient else None for s in layer.inputs]
        wanted = (_lib.Tensor * max(1, len(input_grads)))()
        n = 0
        for i, g in enumerate(input_grads):
            if g is not None:
                wanted[n] = call.input_grads[i]
                wanted[n].data = _lib.address_of(g)
                n += 1
        call.backward(wanted, n, check_finite)
        layer.give_call(call)
        return Grads(param_grads, input_grads)


# ---- balancing without a loss ----------------------------------------------------------------------------------------------

def bias_update(bias, counts, *, rule: str = "sign", rate: float = 1e-3, decay: float = 0.9, ema=None) -> None:
    """Moves a selection bias (f32 [E], changed in place) by one step, from the counts of each expert summed over everything
    that trains together. rule "ema" also changes `ema`, f32 [E]."""
    if rule not in _lib.BIAS_RULES:
        raise Error(f"bias_update: rule {rule!r} is none of {', '.join(_lib.BIAS_RULES)}")
    shape = memoryview(bias).shape
    views = [_view(bias, shape, "f32", "bias", writable=True), _view(counts, shape, "f32", "counts")]
    if rule == "ema":
        if ema is None:
            raise Error("bias_update: rule 'ema' keeps a moving average: give it as ema, f32 of the shape of bias")
        views.append(_view(ema, shape, "f32", "ema", writable=True))
    at = [_lib.address_of(v) for v in views] + [None]
    error = _lib.ErrorText()
    check(lib.moec_bias_update(_lib.BIAS_RULES[rule], rate, decay, shape[0], at[1], at[2], at[0], byref(error)), error, "bias_update")
