#!/usr/bin/env python3
"""artefacts.py MOEC CC CXX: libraries made by `moec compile --emit lib`, used from C and C++ in every way, give the same
bits everywhere and export nothing but moec_*."""
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TEXT = """moe 1
dim T in 1..64
model {name}(x: f32[T, 32]) -> f32[T, 32] {{
  return x + moe@ffn(x) {{
    route linear@router | softmax | top {k} | renorm
    experts {experts} of swiglu(48)
  }}
}}
"""
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-O1"]


def main():
    moec, cc, cxx = sys.argv[1:4]
    with tempfile.TemporaryDirectory(prefix="moec-api-") as folder:

        def run(*command):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return done.stdout

        for name, k, experts in (("first", 2, 4), ("second", 1, 3)):
            (pathlib.Path(folder) / f"{name}.moe").write_text(TEXT.format(name=name, k=k, experts=experts))
            run(moec, "compile", f"{name}.moe", "--emit", "lib")
            symbols = [line.split()[-1] for line in run("nm", "-D", "--defined-only", f"{name}.so").splitlines()]
            foreign = [s for s in symbols if not s.startswith("moec_")]
            if foreign or f"moec_abi_query_{name}" not in symbols or "moec_session_run" not in symbols:
                sys.exit(f"{name}.so exports {foreign or symbols}")

        system = ["-lm", "-lpthread", "-ldl"]
        include = [f"-I{folder}", f"-I{HERE}"]
        run(cc, "-std=c11", *WARNINGS, *include, str(HERE / "archive.c"), "first.a", "second.a", "-o", "c", *system)
        run(cxx, "-std=c++17", "-x", "c++", *WARNINGS, *include, str(HERE / "archive.c"), "-x", "none", "first.a", "second.a",
            "-o", "cxx", *system)
        run(cc, "-std=gnu11", *WARNINGS, *include, str(HERE / "shared.c"), "first.a", "-o", "shared", *system)
        run(cc, "-std=c11", *WARNINGS, *include, str(HERE / "archive.c"), "./first.so", "./second.so", "-o", "linked", *system)
        outputs = {program: run(f"./{program}") for program in ("c", "cxx", "shared", "linked")}
        if len(set(outputs.values())) != 1 or not outputs["c"].startswith("first "):
            sys.exit("\n".join(f"{k}:\n{v}" for k, v in outputs.items()))
        if len(outputs["c"].splitlines()) != 2 or len(set(outputs["c"].splitlines()[0].split())) < 30:
            sys.exit("no two plausible results:\n" + outputs["c"])

        (pathlib.Path(folder) / "trained.moe").write_text(TEXT.format(name="trained", k=2, experts=4))
        run(moec, "compile", "--train", "trained.moe")
        source, posix = str(HERE / "train.c"), "-D_POSIX_C_SOURCE=200809L"
        run(cc, "-std=c11", posix, *WARNINGS, *include, source, "trained.a", "-o", "train-c", *system)
        run(cc, "-std=c11", posix, *WARNINGS, *include, source, "./trained.so", "-o", "train-linked", *system)
        run(cxx, "-std=c++17", "-x", "c++", *WARNINGS, *include, source, "-x", "none", "trained.a", "-o", "train-cxx", *system)
        bits = {program: run(f"./{program}") for program in ("train-c", "train-linked", "train-cxx")}
        lines = bits["train-c"].splitlines()
        if len(set(bits.values())) != 1 or len(lines) != 6 or any(len(set(line.split())) < 30 for line in lines):
            sys.exit("\n".join(f"{k}:\n{v}" for k, v in bits.items()))
        (pathlib.Path(folder) / "learner.moe").write_text(TEXT.format(name="learner", k=2, experts=4))
        run(moec, "compile", "--train", "learner.moe")
        run(cc, "-std=c11", *WARNINGS, *include, str(HERE / "training.c"), "learner.a", "-o", "train_c", *system)
        run(cxx, "-std=c++17", "-x", "c++", *WARNINGS, *include, str(HERE / "training.c"), "-x", "none", "./learner.so", "-o",
            "train_cxx", *system)
        outputs = [run(f"./{program}", threads) for program in ("train_c", "train_cxx") for threads in "13"]
        if len(set(outputs)) != 1 or " to " not in outputs[0] or outputs[0].count("parameter") != 4:
            sys.exit("training differs:\n" + "\n".join(outputs))
    print("artefacts: ok")


if __name__ == "__main__":
    main()
