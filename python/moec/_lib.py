"""The C interface of libmoec.so (moec/base.h, runtime.h, compiler.h, train.h) for ctypes, and nothing more.

The structures mirror the headers field by field; tests/python/test_lib.py holds their sizes against a C compiler. A step is
one call with one pointer to a prepared moec_train_call.
"""
from __future__ import annotations

import ctypes
import os
import sys
import threading
from ctypes import (CFUNCTYPE, POINTER, Structure, byref, c_bool, c_char, c_char_p, c_double, c_int, c_int64, c_size_t,
                    c_uint32, c_uint64, c_void_p)

MAX_RANK = 6
STATUS = ("ok", "argument", "syntax", "not found", "mismatch", "unsupported", "io", "memory", "range", "internal")
ARTEFACTS = {"executable": 0, "shared_library": 1, "archive": 2, "object": 3, "header": 4}
BIAS_RULES = {"sign": 0, "ema": 1}
# name: (number, bytes, letter of the buffer protocol)
DTYPES = {"f32": (1, 4, "f"), "bf16": (2, 2, None), "f16": (3, 2, "e"), "f8e4m3": (4, 1, None), "f8e5m2": (5, 1, None),
          "f64": (6, 8, "d"), "i32": (7, 4, "i"), "i64": (8, 8, "q"), "i8": (9, 1, "b"), "u8": (10, 1, "B"), "bool": (11, 1, "?")}
DTYPE_NAMES = {number: name for name, (number, _, _) in DTYPES.items()}


class Error(Exception):
    """What went wrong, in the library's words.

    status: "argument", "syntax", "not found", "mismatch", "unsupported", "io", "memory", "range" or "internal".
    diagnostics: of a compile, what was reported (a list of Diagnostic).
    """

    def __init__(self, message, status="argument", diagnostics=()):
        super().__init__(message)
        self.status = status
        self.diagnostics = list(diagnostics)


class ErrorText(Structure):
    _fields_ = [("text", c_char * 1024)]


class Limit(Structure):
    _fields_ = [("name", c_char_p), ("max", c_int64)]


class Tensor(Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int), ("rank", c_uint32), ("dims", c_int64 * MAX_RANK), ("data", c_void_p),
                ("n_bytes", c_size_t)]


class TensorInfo(Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int), ("rank", c_uint32), ("dims", c_int64 * MAX_RANK),
                ("shape", c_char * 128), ("limit", c_int64)]


class ParamInfo(Structure):
    _fields_ = [("path", c_char_p), ("role", c_char_p), ("init", c_char_p), ("dtype", c_int), ("rank", c_uint32),
                ("dims", c_int64 * MAX_RANK), ("has_gradient", c_bool)]


class SavedInfo(Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int), ("rank", c_uint32), ("shape", c_char * 128)]


class TrainSizes(Structure):
    _fields_ = [("saved_bytes", c_size_t), ("workspace_bytes", c_size_t)]


class TrainCall(Structure):
    _fields_ = [("threads", c_void_p), ("inputs", POINTER(Tensor)), ("n_inputs", c_size_t), ("params", POINTER(c_void_p)),
                ("saved", c_void_p), ("saved_bytes", c_size_t), ("workspace", c_void_p), ("workspace_bytes", c_size_t),
                ("outputs", POINTER(Tensor)), ("n_outputs", c_size_t), ("cotangents", POINTER(Tensor)),
                ("n_cotangents", c_size_t), ("input_grads", POINTER(Tensor)), ("n_input_grads", c_size_t),
                ("param_grads", POINTER(c_void_p)), ("check_finite", c_bool),
                ("gpu", c_void_p), ("stream", c_void_p), ("comm", c_void_p), ("reserved", c_uint64 * 1)]


class DiagnosticInfo(Structure):
    _fields_ = [("severity", c_int), ("code", c_char_p), ("message", c_char_p), ("file", c_char_p), ("line", c_int),
                ("column", c_int), ("rendered", c_char_p), ("json", c_char_p)]


DiagnosticFn = CFUNCTYPE(None, c_void_p, POINTER(DiagnosticInfo))


class CompileOptions(Structure):
    _fields_ = [("model", c_char_p), ("defines", POINTER(c_char_p)), ("n_defines", c_size_t), ("settings", POINTER(c_char_p)),
                ("n_settings", c_size_t), ("config", c_char_p), ("map", c_char_p), ("target", c_char_p), ("gpu", c_char_p),
                ("dump_dir", c_char_p), ("name", c_char_p), ("pipeline", c_char_p), ("cache", c_char_p), ("train", c_bool), ("recompute", c_bool), ("mesh", c_char_p), ("frozen", c_char_p),
                ("remarks", c_bool), ("color", c_bool), ("on_diagnostic", DiagnosticFn), ("user", c_void_p)]


_ERROR = POINTER(ErrorText)
# name: (result, arguments). Status-returning functions give an int.
FUNCTIONS = {
    "moec_compile_text": (c_int, [c_char_p, c_char_p, c_size_t, POINTER(CompileOptions), POINTER(c_void_p)]),
    "moec_compile_file": (c_int, [c_char_p, POINTER(CompileOptions), POINTER(c_void_p)]),
    "moec_compiled_destroy": (None, [c_void_p]),
    "moec_compiled_object": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "moec_compiled_name": (c_char_p, [c_void_p]),
    "moec_compiled_summary": (c_char_p, [c_void_p]),
    "moec_compiled_from_cache": (c_bool, [c_void_p]),
    "moec_compiled_load": (c_int, [c_void_p, POINTER(c_void_p), _ERROR]),
    "moec_compiled_write": (c_int, [c_void_p, c_int, c_char_p, _ERROR]),
    "moec_model_check_cpu": (c_int, [c_void_p, _ERROR]),
    "moec_model_name": (c_char_p, [c_void_p]),
    "moec_model_compiler": (c_char_p, [c_void_p]),
    "moec_model_n_inputs": (c_size_t, [c_void_p]),
    "moec_model_n_outputs": (c_size_t, [c_void_p]),
    "moec_model_input": (c_int, [c_void_p, c_size_t, POINTER(TensorInfo)]),
    "moec_model_output": (c_int, [c_void_p, c_size_t, POINTER(TensorInfo)]),
    "moec_threads_create": (c_int, [c_uint32, POINTER(c_void_p), _ERROR]),
    "moec_threads_destroy": (None, [c_void_p]),
    "moec_threads_count": (c_uint32, [c_void_p]),
    "moec_model_is_trainable": (c_bool, [c_void_p]),
    "moec_train_n_params": (c_size_t, [c_void_p]),
    "moec_train_param": (c_int, [c_void_p, c_size_t, POINTER(ParamInfo)]),
    "moec_train_output_has_gradient": (c_bool, [c_void_p, c_size_t]),
    "moec_train_input_has_gradient": (c_bool, [c_void_p, c_size_t]),
    "moec_train_query": (c_int, [c_void_p, POINTER(Limit), c_size_t, c_uint32, POINTER(TrainSizes), _ERROR]),
    "moec_train_n_saved": (c_size_t, [c_void_p]),
    "moec_train_saved": (c_int, [c_void_p, c_size_t, POINTER(SavedInfo)]),
    "moec_train_forward": (c_int, [c_void_p, POINTER(TrainCall), _ERROR]),
    "moec_train_backward": (c_int, [c_void_p, POINTER(TrainCall), _ERROR]),
    "moec_bias_update": (c_int, [c_int, c_double, c_double, c_size_t, c_void_p, c_void_p, c_void_p, _ERROR]),
}

_HOW = ("set MOEC_LIBRARY to the path of libmoec.so, put libmoec.so beside the Python package (the wheel has it there), or install moec "
        "where the loader looks (cmake --install; ldconfig)")


def _candidates():
    """(path or name, where it comes from); the first that exists is taken."""
    named = os.environ.get("MOEC_LIBRARY")
    if named:
        yield named, "MOEC_LIBRARY"
        return
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libmoec.so")
    if os.path.exists(beside):
        yield beside, "the package's folder"
    for name in ("libmoec.so.0", "libmoec.so"):
        yield name, "the loader's path"


def _open():
    tried = []
    for path, origin in _candidates():
        try:
            return ctypes.CDLL(path), path
        except OSError as e:
            tried.append(f"{path} ({origin}): {e}")
    raise Error("libmoec.so cannot be loaded: " + "; ".join(tried) + ". What to do: " + _HOW, "not found")


class _Library:
    """The functions of FUNCTIONS as attributes; opened at the first use, so that importing the package costs nothing."""

    def __init__(self):
        self._lock = threading.Lock()
        self._cdll = None
        self.path = None

    def _load(self):
        with self._lock:
            if self._cdll is None:
                self._cdll, self.path = _open()
        return self._cdll

    def __getattr__(self, name):
        if name not in FUNCTIONS:
            raise AttributeError(name)
        try:
            function = getattr(self._load(), name)
        except AttributeError:
            raise Error(f"{self.path} has no {name}: it is not of the version that this package belongs to. What to do: {_HOW}",
                        "mismatch") from None
        function.restype, function.argtypes = FUNCTIONS[name]
        setattr(self, name, function)
        return function


lib = _Library()


def check(status, error=None, what=""):
    """Raises Error unless status is MOEC_OK."""
    if status == 0:
        return
    text = error.text.decode(errors="replace") if error is not None else ""
    name = STATUS[status] if 0 <= status < len(STATUS) else str(status)
    raise Error(text or f"{what}: {name} error", name)


def library_path():
    """Where libmoec.so was found."""
    lib._load()
    return lib.path


# ---- addresses of what Python code passes in -------------------------------------------------------------------------------

class _PyBuffer(Structure):
    _fields_ = [("buf", c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
                ("readonly", c_int), ("ndim", c_int), ("format", c_char_p), ("shape", POINTER(ctypes.c_ssize_t)),
                ("strides", POINTER(ctypes.c_ssize_t)), ("suboffsets", POINTER(ctypes.c_ssize_t)), ("internal", c_void_p)]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes, _get_buffer.restype = [ctypes.py_object, POINTER(_PyBuffer), c_int], c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes, _release_buffer.restype = [POINTER(_PyBuffer)], None


def address_of(view: memoryview) -> int:
    """The address of a memoryview's first byte. The view must stay alive, and contiguous it must be."""
    raw = _PyBuffer()
    _get_buffer(view, byref(raw), 0)  # PyBUF_SIMPLE; raises BufferError
    try:
        return raw.buf or 0
    finally:
        _release_buffer(byref(raw))


# ---- threads: one set per number of threads, made when first asked for ------------------------------------------------------

_threads: dict[int, int] = {}
_threads_lock = threading.Lock()


def threads(n: int):
    """The moec_threads for n threads, as an address; None for one thread: the caller's own."""
    if n == 1:
        return None
    found = _threads.get(n)
    if found:
        return found
    with _threads_lock:
        if n not in _threads:
            made, error = c_void_p(), ErrorText()
            check(lib.moec_threads_create(n, byref(made), byref(error)), error, "moec_threads_create")
            _threads[n] = made.value
        return _threads[n]


def _after_fork():
    # The threads exist in the parent only; a child makes its own. What they held is left alone: it is not ours any more.
    global _threads_lock
    _threads_lock = threading.Lock()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
if sys.byteorder != "little":
    raise ImportError("moec needs a little-endian machine")
