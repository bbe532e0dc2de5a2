"""What the programs that write the cases of this directory share: random numbers, and the text of a case."""
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
CHECK = "--check" in sys.argv
changed = []
rng = np.random.RandomState(7)


def grid(*shape, scale=2.0):
    """Multiples of 1/16: exact in f32 and short in decimal."""
    return np.round(rng.uniform(-scale, scale, shape) * 16) / 16


def num(v):
    if np.isnan(v):
        return "nan"
    if np.isinf(v):
        return "inf" if v > 0 else "-inf"
    s = ("%.6f" % v).rstrip("0").rstrip(".")
    return "0" if s == "-0" else s


def nums(a):
    flat = [num(v) for v in np.asarray(a, np.float64).ravel()]
    lines = [" ".join(flat[i:i + 16]) for i in range(0, len(flat), 16)]
    return ("\n#:   ".join(lines)) if lines else ""


def type_of(a, dtype):
    return "%s[%s]" % (dtype, ", ".join(map(str, a.shape)))


def weight(path, role, type_text):
    return "  %%%s = weight {path = \"%s\", role = \"%s\"} : %s\n" % (path, path, role, type_text)


def case(name, comment, text, steps, weights=()):
    out = "".join("# %s\n" % line for line in comment.split("\n")) + "moir 1 stage=tensor\n" if "moir 1" not in text else ""
    if not out:
        out = "".join("# %s\n" % line for line in comment.split("\n"))
    out += text.strip("\n") + "\n\n"
    for path, dtype, a in weights:
        out += "#: weight %s %s = %s\n" % (path, type_of(a, dtype), nums(a))
    for step in steps:
        out += "#: run\n"
        for dtype, a in step["inputs"]:
            out += "#: input %s = %s\n" % (type_of(a, dtype), nums(a))
        if "steps" in step:
            out += "#: steps %s\n" % " ".join(map(str, step["steps"]))
        for i, want in enumerate(step["expect"]):
            if want is None:
                continue
            exact = "EXACT " if np.asarray(want).dtype.kind == "i" else ""
            out += "#: expect %s%d = %s\n" % (exact, i, nums(want))
    path = os.path.join(HERE, name + ".moir")
    old = open(path).read() if os.path.exists(path) else None
    if old == out:
        return
    changed.append(name)
    if not CHECK:
        open(path, "w").write(out)


def finish():
    """Says what changed and ends the program."""
    for name in changed:
        print(("would change " if CHECK else "wrote ") + name)
    sys.exit(1 if CHECK and changed else 0)
