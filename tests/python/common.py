"""What the tests of the Python package share. They run against the package in the source tree and the library in MOEC_LIBRARY."""
import os
import sys
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "python"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SKIPPED = 77  # ctest's SKIP_RETURN_CODE


def need(*modules):
    """Ends the test as skipped, by name, when a module cannot be imported."""
    for name in modules:
        try:
            __import__(name)
        except ImportError as e:
            print(f"skipped: {os.path.basename(sys.argv[0])} needs {name} ({e})")
            sys.exit(SKIPPED)


def relative(a, b):
    """The greatest difference of two torch tensors, relative to the greatest number of b."""
    a, b = a.detach().double(), b.detach().double()
    if b.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def main():
    unittest.main(verbosity=2)
