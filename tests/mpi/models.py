#!/usr/bin/env python3
"""Models on several ranks against the same models on one: models.py MOEC same|train|faults (environment as for run.py).

Everything that a program says and writes must be, byte for byte, what the program for one rank says and writes: also when
sequences or tokens do not divide among the ranks, and when some ranks have none.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import run as ranks

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "tests" / "reference"
RECOVER = ["--enable-recovery"]
DEADLINE = 2.0  # seconds: ranks of a busy machine also need them to find each other
IDS = "1,2,3;4,5,6;7,8,9;10,11,12;59,4,7"


def must(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def place(mesh, *more):
    settings = [f"mesh={mesh}", "experts=over = ep", *more] if mesh else []
    return [word for s in settings for word in ("--set", f"place.{s}")]


def compiled(moec, text, name, options):
    path = pathlib.Path.cwd() / name
    must(moec, "compile", *options, text, "-o", str(path))
    return str(path)


def launched(n, program, arguments, options=()):
    text, code, faults, seconds = ranks.run(os.environ["MPIRUN"], list(options), n, program, arguments)
    if code:
        faults.append(f"the launcher returned {code}")
    return text, faults, seconds


def compare(name, one, n, program, arguments, output):
    """arguments end with the option that writes a file; output: that file's name for one rank and for several."""
    want = must(one, *arguments, output + "one.npy")
    text, faults, seconds = launched(n, program, [*arguments, output + "many.npy"])
    if text != want:
        faults.append(f"printed is {text!r}, not {want!r}")
    files = [pathlib.Path(output.split("=")[-1] + end) for end in ("one.npy", "many.npy")]
    if not files[1].exists() or files[0].read_bytes() != files[1].read_bytes():
        faults.append("other bytes in the file")
    files[1].unlink(missing_ok=True)
    return ranks.report(name, faults, text, seconds)


# mesh, ranks, other settings
MESHES = [("ep = 2", 2, []), ("ep = 4", 4, ["layout=round_robin"]), ("dp = 2, ep = 2", 4, ["exchange=expert"]),
          ("dp = 3, ep = 1", 3, [])]
TEXTS = [("5 sequences", ["--ids", IDS, "--max-new", "6"]),
         ("1 sequence", ["--ids", "7,8,9,3,1,0,2", "--max-new", "4"]),
         ("drawn", ["--ids", IDS, "--max-new", "6", "--temperature", "1.5", "--top-p", "0.9", "--seed", "3", "--eos", "5,6"])]


def language_model(moec, reference, meshes):
    failed = False
    checkpoint = str(REFERENCE / reference)
    text = reference + ".moe"
    must(moec, "import", checkpoint, "-o", text)
    one = compiled(moec, text, reference + ".one", [])
    for number, (mesh, n, more) in enumerate(meshes):
        program = compiled(moec, text, f"{reference}.{number}", place(mesh, *more))
        for name, arguments in TEXTS:
            arguments = ["--weights", checkpoint, "--threads", "1", *arguments, "--logits"]
            failed |= compare(f"{reference}, {mesh} {' '.join(more)}: {name}", one, n, program, arguments, "logits_")
    arguments = ["--weights", checkpoint, "--threads", "1", *TEXTS[0][1]]
    want = must(one, *arguments)
    got, faults, seconds = launched(2, moec, ["run", *place("ep = 2"), text, *arguments])
    if got != want:
        faults.append("moec run says something else")
    return failed | ranks.report(f"{reference}: moec run", faults, got, seconds)


def layer(moec):
    failed = False
    text = (ROOT / "examples" / "layer.moe").read_text()
    pathlib.Path("layer.moe").write_text(text.replace("bf16", "f32").replace("D = 1024", "D = 40").replace("3584", "56"))
    source = REFERENCE / "moe_layer"
    tensors = [f"{name}={source / file}" for name, file in (("router.weight", "router.npy"), ("w13", "w13.npy"), ("w2", "w2.npy"))]
    must(sys.executable, str(ROOT / "tests" / "cli" / "tool.py"), "safetensors", "layer.safetensors", *tensors)
    storage = ["--set", "precision.storage=f32"]
    one = compiled(moec, "layer.moe", "layer.one", storage)
    for mesh, n, more in MESHES[:2]:
        program = compiled(moec, "layer.moe", f"layer.{n}", [*storage, *place(mesh, *more)])
        for t in (1, 7, 64):
            arguments = ["--weights", "layer.safetensors", "--threads", "1", "--input", f"x={source / f'x_{t}.npy'}", "--output"]
            failed |= compare(f"layer, {mesh}, {t} tokens", one, n, program, arguments, "output0=out_")
    return failed


def beside(moec):
    """Packed weights beside the program: a file for each number; and the wrong number of ranks."""
    checkpoint = str(REFERENCE / "deepseekv3_tiny")
    arguments = ["--threads", "1", *TEXTS[0][1]]
    program = compiled(moec, "deepseekv3_tiny.moe", "beside", ["--weights", checkpoint, *place("dp = 2, ep = 2")])
    want = must(str(pathlib.Path.cwd() / "deepseekv3_tiny.one"), "--weights", checkpoint, *arguments)
    got, faults, seconds = launched(4, program, arguments)
    if got != want or sorted(p.name for p in pathlib.Path.cwd().glob("beside.*")) != ["beside.weights.0-of-2", "beside.weights.1-of-2"]:
        faults.append("no files of two numbers, or another text")
    failed = ranks.report("packed beside the program", faults, got, seconds)
    got, code, faults, seconds = ranks.run(os.environ["MPIRUN"], [], 2, program, arguments)
    if code != 75 or "is planned for 4 ranks (ep = 2, dp = 2), the group has 2: start it with mpirun -np 4" not in got:
        faults.append(f"the launcher returned {code}")
    return failed | ranks.report("2 ranks instead of 4", faults, got, seconds)


def same(moec):
    failed = language_model(moec, "deepseekv3_tiny", MESHES)
    failed |= language_model(moec, "deepseekv3_fp8_tiny", [("ep = 2", 2, []), ("ep = 3", 3, ["layout=round_robin"])])
    return failed | layer(moec) | beside(moec)


# ---- training ------------------------------------------------------------------------------------------------------

def train(moec):
    """Checkpoints of a run on several ranks are those of one rank, also when it is cut and goes on."""
    failed = False
    text, data = str(ROOT / "examples" / "train_tiny.moe"), str(ROOT / "examples" / "kjv" / "heldout.bin")
    options = ["--data", data, "--steps", "6", "--batch", "8", "--length", "16", "--accumulate", "2", "--threads", "1"]
    must(moec, "train", text, *options, "--out", "one")
    want = pathlib.Path("one/step-000006/model.safetensors").read_bytes()
    meshes = [("ep = 2", 2, []), ("dp = 2, ep = 2", 4, ["layout=round_robin"]), ("ep = 2", 2, ["order=tree"])]
    for number, (mesh, n, more) in enumerate(meshes):
        name, out = f"training, {mesh} {' '.join(more)}", f"run{number}"
        run = ["train", text, *place(mesh, *more), "--out", out]
        got, faults, seconds = launched(n, moec, [*run, *options, "--checkpoint-every", "3"])
        made = pathlib.Path(out, "step-000006", "model.safetensors")
        if not made.exists() or (made.read_bytes() == want) == ("order=tree" in more):
            faults.append("other parameters than on one rank" if "order=tree" not in more else "a tree, and the same bits")
        failed |= ranks.report(name, faults, got, seconds)
        first = made.read_bytes() if made.exists() else b""
        for path in (made, made.parent / "optimizer.safetensors"):
            path.unlink(missing_ok=True)
        made.parent.rmdir()
        got, faults, seconds = launched(n, moec, [*run, "--data", data, "--resume", "--threads", "1"])
        if not made.exists() or made.read_bytes() != first:
            faults.append("other parameters than without the cut")
        failed |= ranks.report(name + ", resumed", faults, got, seconds)
    got, code, faults, seconds = ranks.run(os.environ["MPIRUN"], [], 2, moec, ["train", text, *place("ep = 2"), "--data", data, "--batch", "3"])
    if code != 75 or "--batch 3 does not divide among 2 ranks" not in got:
        faults.append(f"the launcher returned {code}")
    return failed | ranks.report("a batch that does not divide", faults, got, seconds)


# ---- faults --------------------------------------------------------------------------------------------------------

def rank_of(pid):
    variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
    return int(found[0].split(b"=")[1]) if found else -1


def strike(program, who, signal, when, sign=None):
    """Waits until the rank computes, then sends it the signal. when: a list that gets the time. sign: a file that says
    that it computes; otherwise it gets some time to begin."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        for pid in ranks.processes(program):
            try:
                if rank_of(pid) != who or pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                    continue
                while sign and not sign.exists() and time.monotonic() < until:
                    time.sleep(0.002)
                time.sleep(0 if sign else 1.5)
                os.kill(pid, signal)
                when.append(time.monotonic())
            except OSError:
                pass
            return
        time.sleep(0.02)


def struck(program, n, who, signal, options):
    arguments = ["--weights", str(REFERENCE / "deepseekv3_tiny"), "--ids", IDS, "--max-new", "150000", "--deadline",
                 str(DEADLINE), "--threads", "1"]
    when = []
    thread = threading.Thread(target=strike, args=(program, who, signal, when))
    thread.start()
    text, code, faults, seconds = ranks.run(os.environ["MPIRUN"], options, n, program, arguments)
    after = time.monotonic() - when[0] if when else 0
    thread.join()
    if not when:
        faults.append("there was nobody to strike")
    for rank in range(n):
        if rank != who and not re.search(rf"rank {rank}: .*\brank {who}\b.* in step \d+", text):
            faults.append(f"rank {rank} does not say that rank {who} is late")
    if after > DEADLINE + 3:  # the ranks have a second more than the deadline, the launcher some to leave
        faults.append(f"it took {after:.2f} s")
    return ranks.report(f"signal {signal} for rank {who} of {n}", faults, text, seconds)


def one_fails(program):
    """A rank that cannot open its weights: the others hear of it at once, and why."""
    def words_of(weights):
        return [program, "--weights", str(weights), "--ids", "1"]

    _, *first = words_of(REFERENCE / "deepseekv3_tiny")
    text, code, faults, seconds = ranks.run(os.environ["MPIRUN"], [], 1, program, [*first, ":", "-np", "1", *words_of("nowhere")])
    for words in (r"rank 1: there is no .*nowhere", r"rank 0: rank 1 gave up: there is no .*nowhere"):
        if not re.search(words, text):
            faults.append(f"nobody says: {words}")
    if code != 75 or seconds > 10:
        faults.append(f"the launcher returned {code} after {seconds:.1f} s")
    return ranks.report("one rank without weights", faults, text, seconds)


def files_of(folder):
    return [(folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def told_status(program):
    """A program that runs that one and says what it returned."""
    path = pathlib.Path.cwd() / "told"
    path.write_text(f'#!/bin/sh\n{program} "$@"\nstatus=$?\necho "rank $OMPI_COMM_WORLD_RANK returned $status"\nexit $status\n')
    path.chmod(0o755)
    return str(path)


def interrupted_run(moec, who, signal, options, text, learn, whole, after_checkpoint):
    """Training that loses a rank after a checkpoint; whole: the checkpoints of the same run without that."""
    name, out, when = f"training, signal {signal} for rank {who} of 2", pathlib.Path(f"cut{who}.{signal}"), []
    run = ["train", text, *place("ep = 2"), "--threads", "1", "--out", str(out), "--deadline", str(DEADLINE)]
    steps, before = sorted(p.name for p in whole.iterdir()), ranks.processes(moec)
    thread = threading.Thread(target=strike, args=(moec, who, signal, when, out / steps[after_checkpoint]))
    thread.start()
    told = told_status(moec) if signal == 9 else moec  # a launcher that goes on without the dead returns 0
    got, code, faults, seconds = ranks.run(os.environ["MPIRUN"], options, 2, told, [*run, *learn])
    after = time.monotonic() - when[0] if when else 0
    thread.join()
    there = sorted(p.name for p in out.iterdir()) if out.exists() else []
    if not when or not there or steps[-1] in there:
        faults.append(f"it was not cut in the middle: {there}")
    if not re.search(rf"rank {1 - who}: .*\brank {who}\b.* in step \d+", got):
        faults.append(f"rank {1 - who} does not say that rank {who} is late")
    if (f"rank {1 - who} returned 75" not in got if signal == 9 else code != 75) or after > DEADLINE + 3:
        faults.append(f"not 75 (the launcher: {code}), or only after {after:.2f} s")
    if left := ranks.processes(moec) - before:
        faults.append(f"processes are left: {left}")
    for step in there:
        if step not in steps or files_of(out / step) != files_of(whole / step):
            faults.append(f"{step} is no checkpoint of a completed update")
    failed = ranks.report(name, faults, got, seconds)
    if failed:
        return failed
    got, faults, seconds = launched(2, moec, [*run, "--data", learn[1], "--resume"])
    if not (out / steps[-1]).exists() or files_of(out / steps[-1]) != files_of(whole / steps[-1]):
        faults.append("other parameters than without the cut")
    return ranks.report(name + ", resumed", faults, got, seconds)


def training_faults(moec):
    failed = False
    text, data = str(ROOT / "examples" / "train_tiny.moe"), str(ROOT / "examples" / "kjv" / "heldout.bin")
    learn = ["--data", data, "--steps", "30", "--batch", "8", "--length", "16", "--accumulate", "2", "--checkpoint-every", "5"]
    got, faults, seconds = launched(2, moec, ["train", text, *place("ep = 2"), *learn, "--threads", "1", "--out", "whole"])
    if ranks.report("training, whole", faults, got, seconds):
        return True
    for number, (who, signal, options) in enumerate(((0, 9, RECOVER), (1, 9, RECOVER), (1, 19, []))):
        failed |= interrupted_run(moec, who, signal, options, text, learn, pathlib.Path("whole"), number)
    return failed


def faults(moec):
    must(moec, "import", str(REFERENCE / "deepseekv3_tiny"), "-o", "m.moe")
    two = compiled(moec, "m.moe", "two", place("ep = 2"))
    four = compiled(moec, "m.moe", "four", place("dp = 2, ep = 2"))
    failed = False
    for program, n, who, signal, options in ((two, 2, 0, 9, RECOVER), (two, 2, 1, 9, RECOVER), (four, 4, 2, 9, RECOVER),
                                             (two, 2, 1, 19, []), (four, 4, 0, 19, [])):
        failed |= struck(program, n, who, signal, options)
    return failed | one_fails(two) | training_faults(moec)


def main():
    moec, part = sys.argv[1:]
    if not os.environ.get("MOEC_COMM_MPI") or not os.environ.get("MPIRUN"):
        print("skipped: there is no MPI here (Debian: apt install openmpi-bin libopenmpi-dev), or it was configured off")
        sys.exit(ranks.SKIP)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MOEC_CACHE"] = folder + "/cache"
        failed = {"same": same, "train": train, "faults": faults}[part](str(pathlib.Path(moec).resolve()))
        os.chdir("/")
    sys.exit(failed)


if __name__ == "__main__":
    main()
