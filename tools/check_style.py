#!/usr/bin/env python3
"""House rules that a machine can check: sizes, line lengths, what may allocate, what must not be written anywhere."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ["runtime", "ir", "frontend", "passes", "codegen", "driver", "include", "tests", "bench"]
MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 80
MAX_COLUMNS = 140  # clang-format holds code to 120; tables and long messages may pass it

# Who may call the C allocator; everything else in the compiler uses arenas.
ALLOCATING = ("runtime/", "tests/", "bench/", "driver/", "codegen/cpu/llvm_", "codegen/ref/ref_state.c",
              "codegen/gpu/nvrtc.c")  # a library is loaded once for the process
FORBIDDEN = [
    (re.compile(r"\b(TODO|FIXME|XXX)\b"), "unfinished business belongs in an issue"),
    (re.compile(r"/(root|home|work|farm)/"), "a path of somebody's machine"),
]


def functions(lines):
    """(name, first line, length) of each function of a C file formatted with the name at column one."""
    start = None
    for i, line in enumerate(lines):
        if line == "{" and i and not lines[i - 1].startswith((" ", "}", "#")):
            start = i
        elif line == "{" and i and start is None:
            start = i
        if line.startswith("}") and start is not None:
            if not line.startswith(("};", "} ")):
                yield lines[start - 1], start + 1, i - start
            start = None


def check_c(name, text, report):
    lines = text.splitlines()
    if len(lines) > MAX_FILE_LINES:
        report(f"{name}: {len(lines)} lines, more than {MAX_FILE_LINES}: is it one idea?")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_COLUMNS and "clang-format off" not in text:
            report(f"{name}:{number}: {len(line)} columns")
        if re.search(r"\b(malloc|calloc|realloc)\s*\(", line) and not name.startswith(ALLOCATING):
            report(f"{name}:{number}: allocates from the heap; use an arena")
    for head, number, length in functions(lines):
        if length > MAX_FUNCTION_LINES:
            report(f"{name}:{number}: a function of {length} lines: {head}")


def tracked():
    """Files that git tracks; without git or its history, every file outside build folders and hidden ones."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        names = (path.relative_to(ROOT).as_posix() for path in sorted(ROOT.rglob("*")))
        return [name for name in names if not re.match(r"(build|\.git/)|.*__pycache__", name)]


def main():
    faults = []
    for name in tracked():
        path = ROOT / name
        if not path.is_file() or path.suffix in {".npy", ".safetensors", ".bin", ".png"}:
            continue
        text = path.read_text(errors="replace")
        if name != "tools/check_style.py":
            for pattern, why in FORBIDDEN:
                for match in pattern.finditer(text):
                    number = text.count("\n", 0, match.start()) + 1
                    faults.append(f"{name}:{number}: '{match.group(0)}': {why}")
        if path.suffix in {".c", ".h"} and name.split("/")[0] in SOURCE_FOLDERS:
            check_c(name, text, faults.append)
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(f"check_style: {len(faults)} faults")
    print("check_style: ok")


if __name__ == "__main__":
    main()
