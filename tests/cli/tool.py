#!/usr/bin/env python3
"""What case files need and a shell has not: small files in binary formats, comparisons, limits. Plain Python only.

    tool.py npy FILE                      dtype and shape of a .npy file
    tool.py close A.npy B.npy TOL         greatest difference, relative to the greatest value of B, at most TOL
    tool.py trace FILE EXPERTS.npy        a trace's steps, and whether its choices are those of i32 [layers, tokens, k]
    tool.py zeros OUT.npy DIMS            f32 zeros, DIMS as 3x8
    tool.py nans FILE.npy                 how many of its numbers are not numbers
    tool.py safetensors OUT NAME=A.npy..  a checkpoint of f32 tensors
    tool.py tensor OUT DTYPE DIMS NAME..  a checkpoint of zeros, DIMS as 2x3
    tool.py header OUT JSON [N_BYTES]     any header, and N_BYTES of zeros
    tool.py poke FILE OFFSET HEX          overwrites bytes; a negative offset counts from the end
    tool.py fill FILE NAME HEX            overwrites one tensor of a checkpoint with copies of a few bytes
    tool.py limit BYTES COMMAND...        runs a command that may not write longer files
    tool.py terminal COMMAND...           runs it with standard error on a terminal; prints what is left on the last line,
                                          and whether a progress line was there
    tool.py interrupt WORD COMMAND..  runs it until it prints a line that begins with WORD, then presses Ctrl-C; prints how it
                                      ended
    tool.py tiles FILE.s REGISTER         matmul tiles of an assembly file: use REGISTER, keep nothing on the stack
    tool.py size FILE                     "small" when at most 1 MB
    tool.py widest                        of standard input: lines and columns fit 24 x 100
"""
import ast
import json
import math
import os
import pathlib
import pty
import re
import resource
import signal
import struct
import subprocess
import sys

FORMATS = {"<f4": "f", "<i4": "i", "<i8": "q", "<f8": "d"}


def read_npy(path):
    data = pathlib.Path(path).read_bytes()
    n = struct.unpack_from("<H", data, 8)[0]
    head = ast.literal_eval(data[10 : 10 + n].decode())
    body = data[10 + n :]
    return head["descr"], head["shape"], body


def numbers(path):
    descr, shape, body = read_npy(path)
    return shape, struct.unpack(f"<{math.prod(shape)}{FORMATS[descr]}", body)


def npy(path):
    descr, shape, _ = read_npy(path)
    print(descr, list(shape))


def close(a, b, tolerance):
    (shape_a, va), (shape_b, vb) = numbers(a), numbers(b)
    if shape_a != shape_b:
        sys.exit(f"shapes {shape_a} and {shape_b}")
    worst = max(abs(x - y) for x, y in zip(va, vb)) / max(abs(y) for y in vb)
    if not worst <= float(tolerance):
        sys.exit(f"differ by {worst:.3g} of the greatest value")
    print("close")


def read_trace(path):
    """Written from the format's description (runtime/trace.h) alone: layers' (name, experts, k), and records."""
    data = pathlib.Path(path).read_bytes()
    magic, version, id_bytes, _, n_layers, n_texts = struct.unpack_from("<8sIIQII", data)
    assert magic == b"MOECTRC\0" and version == 1
    heads = [struct.unpack_from("<IIII", data, 32 + 16 * i) for i in range(n_layers)]
    at = 32 + 16 * n_layers
    texts = data[at : at + n_texts].decode()
    model, names = texts.split("\0", 1)
    layers = []
    for experts, k, n, _ in heads:
        layers.append((names[:n], experts, k))
        names = names[n:]
    at += n_texts + -n_texts % 8
    records = []
    while data[at : at + 4] == b"RECD":
        layer, step, rank, tokens = struct.unpack_from("<IQII", data, at + 4)
        n = tokens * layers[layer][2]
        ids = struct.unpack_from(f"<{n}{'i' if id_bytes == 4 else 'h'}", data, at + 24)
        records.append((step, layer, rank, tokens, ids))
        at += 24 + n * id_bytes + -(n * id_bytes) % 8
    assert data[at : at + 4] == b"DONE" and struct.unpack_from("<Q", data, at + 8)[0] == len(records)
    return model, layers, records


def trace(path, experts):
    shape, want = numbers(experts)
    model, layers, records = read_trace(path)
    got = []
    for layer in range(len(layers)):
        for step, of, rank, tokens, ids in sorted(records):
            got += ids if of == layer else ()
    steps = [tokens for step, layer, rank, tokens, ids in sorted(records) if layer == 0]
    print(f"{model}, {len(layers)} layers from {layers[0][0]} on, {layers[0][2]} of {layers[0][1]}; steps {steps}")
    if len(layers) != shape[0] or tuple(got) != want:
        sys.exit(f"{sum(a != b for a, b in zip(got, want))} of {len(want)} choices differ, {len(got)} are there")


def zeros(path, dims):
    shape = tuple(int(d) for d in dims.split("x"))
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    body = struct.pack("<6sBBH", b"\x93NUMPY", 1, 0, len(head)) + head.encode() + bytes(4 * math.prod(shape))
    pathlib.Path(path).write_bytes(body)


def nans(path):
    values = numbers(path)[1]
    print(f"{sum(math.isnan(v) for v in values)} of {len(values)}")


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)"""
    head, offset = {}, 0
    for name, (dtype, shape, body) in tensors.items():
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(body)]}
        offset += len(body)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(t[2] for t in tensors.values())
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + body)


def safetensors(out, *pairs):
    tensors = {}
    for pair in pairs:
        name, path = pair.split("=")
        descr, shape, body = read_npy(path)
        assert descr == "<f4", descr
        tensors[name] = ("F32", shape, body)
    write_safetensors(out, tensors)


def tensor(out, dtype, dims, *names):
    shape = [int(d) for d in dims.split("x")]
    bits = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16}.get(dtype, 8)
    body = bytes(math.prod(shape) * bits // 8)
    write_safetensors(out, {name: (dtype, shape, body) for name in names})


def header(out, text, n_bytes="0"):
    text = text.encode()
    pathlib.Path(out).write_bytes(struct.pack("<Q", len(text)) + text + bytes(int(n_bytes)))


def poke(path, offset, data):
    body, offset, data = bytearray(pathlib.Path(path).read_bytes()), int(offset), bytes.fromhex(data)
    offset += len(body) if offset < 0 else 0
    body[offset : offset + len(data)] = data
    pathlib.Path(path).write_bytes(body)


def fill(path, name, data):
    body, data = bytearray(pathlib.Path(path).read_bytes()), bytes.fromhex(data)
    n = struct.unpack_from("<Q", body)[0]
    first, last = json.loads(body[8 : 8 + n])[name]["data_offsets"]
    body[8 + n + first : 8 + n + last] = data * ((last - first) // len(data))
    pathlib.Path(path).write_bytes(body)


def limit(n_bytes, *command):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(n_bytes), int(n_bytes)))
    os.execvp(command[0], command)


def terminal(*command):
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    process.wait()
    lines = seen.decode().replace("\r\n", "\n").split("\n")
    print("progress" if any("moec: linking, " in line for line in lines) else "no progress")
    left = "".join(line.rsplit("\r\033[K", 1)[-1] for line in lines)
    print(left or "clean")


def interrupt(word, *command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(word):
            process.send_signal(signal.SIGINT)
            break
    process.communicate()
    print("exit code", process.returncode)


def tiles(path, register):
    """The loops of the matrix kernels hold their sums in registers: no vector goes to the stack and comes back."""
    name, n_tiles, found = None, 0, 0
    for line in pathlib.Path(path).read_text().splitlines():
        label = re.match(r"(\w+):", line)
        if label:
            name = label.group(1) if label.group(1).startswith("tile_") else None
            n_tiles += name is not None
        if line.strip().startswith(".size"):
            name = None
        if name is None:
            continue
        found += re.search(register, line) is not None
        if re.search(r"(16|32|64)-byte (Folded )?(Spill|Reload)", line) and re.search(r"\b(q\d+|[xyz]mm\d+)\b", line):
            sys.exit(f"{name}: {line.strip()}")
    print(f"{n_tiles} tiles" if found else f"no {register}")


def size(path):
    n = os.path.getsize(path)
    print("small" if n <= 1_000_000 else f"{n} bytes")


def widest():
    lines = sys.stdin.read().splitlines()
    columns = max(len(line) for line in lines)
    print("fits" if len(lines) <= 24 and columns <= 100 else f"{len(lines)} lines, {columns} columns")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
