#!/usr/bin/env python3
"""install.py BUILD CC LIBDIR: installs a build to a fresh prefix and uses what is there: the command, pkg-config, find_package."""
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
EXPECTED = [
    "bin/moec",
    "{lib}/libmoec.so",
    "{lib}/libmoec_rt.a",
    "include/moec/moec.h",
    "include/moec/base.h",
    "include/moec/compiler.h",
    "include/moec/runtime.h",
    "include/moec/train.h",
    "{lib}/pkgconfig/moec.pc",
    "{lib}/cmake/moec/moecConfig.cmake",
    "share/man/man1/moec.1",
    "share/bash-completion/completions/moec",
]


def main():
    build, cc, lib = sys.argv[1:4]
    with tempfile.TemporaryDirectory(prefix="moec-install-") as folder:
        prefix = pathlib.Path(folder) / "prefix"
        env = {k: v for k, v in os.environ.items() if k not in ("DESTDIR", "CFLAGS", "LDFLAGS")}
        env["PKG_CONFIG_PATH"] = str(prefix / lib / "pkgconfig")
        env["LD_LIBRARY_PATH"] = str(prefix / lib)

        def run(*command):
            done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True, env=env)
            if done.returncode:
                sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return done.stdout

        run("cmake", "--install", build, "--prefix", prefix)
        missing = [n for n in EXPECTED if not (prefix / n.format(lib=lib)).exists()]
        if missing:
            sys.exit(f"not installed: {missing}")
        symbols = [s.split()[-1] for s in run("nm", "-D", "--defined-only", prefix / lib / "libmoec.so").splitlines()]
        if not {"moec_compile_text", "moec_session_run", "moec_train_backward"} <= set(symbols):
            sys.exit("libmoec.so lacks its interface")
        foreign = [s for s in symbols if not s.startswith("moec_")]
        if foreign:
            sys.exit(f"libmoec.so exports {foreign}")
        symbols = [s.split() for s in run("nm", "-g", "--defined-only", prefix / lib / "libmoec_rt.a").splitlines()]
        foreign = [s[-1] for s in symbols if len(s) == 3 and not s[-1].startswith("moec_")]
        if foreign:
            sys.exit(f"libmoec_rt.a exports {foreign}")

        if not run(prefix / "bin/moec", "--version").startswith("moec "):
            sys.exit("bin/moec does not say its version")
        # the prefix of an install elsewhere than configured is given to pkg-config
        flags = run("pkg-config", f"--define-variable=prefix={prefix}", "--cflags", "--libs", "moec").split()
        run(cc, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", HERE / "use.c", "-o", "use", *flags)
        options = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_COMPILER={cc}"]
        run("cmake", "-S", HERE / "project", "-B", "project", "-G", "Ninja", *options)
        run("cmake", "--build", "project")
        for program, said in (("./use", "tiny 1 1\n"), ("project/use", "tiny 1 1\n"), ("project/runtime", "bf16 2\n")):
            if run(program) != said:
                sys.exit(f"{program}: unexpected output")
        command = (pathlib.Path(folder) / "project/command").read_text()
        if not os.path.samefile(command, prefix / "bin/moec"):
            sys.exit(f"MOEC_EXECUTABLE is {command}")
    print("install: ok")


if __name__ == "__main__":
    main()
