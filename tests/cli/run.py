#!/usr/bin/env python3
"""Runs a case file of the command line: run.py MOEC FILE.

A case file is a list of shell commands and what each must print:

    # a comment
    $ moec check good.moe
    > good.moe: moe_layer: *          standard output, line by line; `...` in a line stands for anything in it,
    > ...                             and alone for any number of lines
    ! moec: no such thing             standard error likewise
    = 1                               the exit code when it is not 0
    @ avx512                          the rest of the file is for such a machine only (`!avx512`: for others)

All commands of a file run in one fresh directory, with `moec` on the path, $ROOT (the source tree), $HERE (the directory
of the case file) and a cache of its own; HOME does not exist. BLESS=1 rewrites what does not agree.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SKIP = 77


class Case:
    def __init__(self, line, command):
        self.line, self.command = line, command
        self.out, self.err, self.code = [], [], 0


def parse(text):
    """The file as a list of str (kept lines) and Case."""
    parts, case = [], None
    for number, line in enumerate(text.splitlines(), 1):
        mark, rest = line[:1], line[2:]
        if mark == "$":
            case = Case(number, rest)
            parts.append(case)
        elif mark in ("", "#", "@"):
            case = None
            parts.append(line)
        elif case is None or mark not in ">!=":
            sys.exit(f"line {number}: not understood: {line}")
        elif mark == "=":
            case.code = int(rest)
        else:
            (case.out if mark == ">" else case.err).append(rest)
    return parts


def agrees(patterns, lines):
    """Whether the lines are what the patterns say; `...` as in the head of this file."""
    if not patterns:
        return not lines
    if patterns[0] == "...":
        return any(agrees(patterns[1:], lines[i:]) for i in range(len(lines) + 1))
    if not lines:
        return False
    pattern = ".*".join(re.escape(p) for p in patterns[0].split("..."))
    return re.fullmatch(pattern, lines[0]) is not None and agrees(patterns[1:], lines[1:])


def machine_has(feature):
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    words = {"avx512": " avx512f ", "avx2": " avx2 ", "x86": "GenuineIntel|AuthenticAMD"}
    return re.search(words[feature], flags.replace("\n", " \n")) is not None


def environment(moec, folder, case_file):
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "moec").symlink_to(moec)
    kept = {k: os.environ[k] for k in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "FAKE_NVRTC", "FAKE_CUDA") if k in os.environ}
    return {
        **kept,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "ROOT": str(ROOT),
        "HERE": str(case_file.parent),
        "PYTHON": sys.executable,
        "MOEC_CACHE": str(folder / "cache"),
        "HOME": str(folder / "nobody"),
        "TMPDIR": str(folder / "tmp"),
        "LC_ALL": "C",
    }


def show(title, lines):
    return [f"  {title}"] + [f"    {line}" for line in lines]


def report(name, case, result, out, err):
    text = [f"{name}:{case.line}: $ {case.command}"]
    if result != case.code:
        text.append(f"  exit code {result}, not {case.code}")
    for title, got, want in (("standard output", out, case.out), ("standard error", err, case.err)):
        if not agrees(want, got):
            text += show(title + ":", got) + show("expected:", want)
    return "\n".join(text)


def run_case(case, folder, env):
    done = subprocess.run(["sh", "-c", case.command], cwd=folder / "work", env=env, capture_output=True, timeout=280)
    out, err = ([line.rstrip() for line in s.decode(errors="replace").splitlines()] for s in (done.stdout, done.stderr))
    return done.returncode, out, err


def bless(path, parts):
    lines = []
    for part in parts:
        if isinstance(part, str):
            lines.append(part)
            continue
        lines.append("$ " + part.command)
        lines += [f"> {line}".rstrip() for line in part.out] + [f"! {line}".rstrip() for line in part.err]
        if part.code:
            lines.append(f"= {part.code}")
    path.write_text("\n".join(lines) + "\n")


def main():
    moec, path = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    parts = parse(path.read_text())
    folder = pathlib.Path(tempfile.mkdtemp(prefix="moec-cli-"))
    failures, skipped = [], None
    try:
        for name in ("work", "tmp"):
            (folder / name).mkdir()
        env = environment(moec, folder, path)
        for part in parts:
            if isinstance(part, str):
                if part.startswith("@"):
                    word = part[2:].strip()
                    if machine_has(word.lstrip("!")) == word.startswith("!"):
                        skipped = word
                        break
                continue
            code, out, err = run_case(part, folder, env)
            if code == part.code and agrees(part.out, out) and agrees(part.err, err):
                continue
            if os.environ.get("BLESS"):
                part.code = code
                part.out = part.out if agrees(part.out, out) else out
                part.err = part.err if agrees(part.err, err) else err
            else:
                failures.append(report(path.name, part, code, out, err))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if os.environ.get("BLESS"):
        bless(path, parts)
    if failures:
        sys.exit("\n".join(failures))
    if skipped:
        print(f"{path.name}: the rest needs a machine that is {skipped}")
        sys.exit(SKIP)


if __name__ == "__main__":
    main()
