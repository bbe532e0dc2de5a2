"""moec: a compiler for mixture-of-experts models, from Python.

    import moec
    layer = moec.layer(moec.texts.moe(64, 128, 8, 2))     # forward and backward on plain buffers

    from moec.torch import MoE                            # the same as a torch.nn.Module; imports torch

Nothing beside the standard library is needed; libmoec.so is found through $MOEC_LIBRARY, beside this package, or on the loader's path.
"""
from . import texts
from ._lib import Error, library_path
from .compiler import (Compiled, Diagnostic, Grads, Layer, Param, Saved, Sizes, Step, TensorSpec, bias_update, compile, compile_file,
                       empty, layer, tensor)

__version__ = "0.1.0"
__all__ = ["Compiled", "Diagnostic", "Error", "Grads", "Layer", "Param", "Saved", "Sizes", "Step", "TensorSpec", "bias_update",
           "compile", "compile_file", "empty", "layer", "library_path", "tensor", "texts"]
