#!/usr/bin/env python3
"""Who may include whom. The rule is the table below (docs/ARCHITECTURE.md explains it); a forbidden edge fails."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# folder -> prefixes that its files may include (each may also include itself)
ALLOWED = {
    "include/moec": ["moec/"],
    "runtime/base": ["moec/base.h"],
    "runtime": ["runtime/base/", "moec/"],
    "ir": ["runtime/base/", "moec/base.h"],
    "frontend": ["ir/", "runtime/base/", "moec/base.h"],
    "passes": ["ir/", "runtime/base/", "moec/base.h"],
    "codegen": ["ir/", "runtime/base/", "runtime/abi.h", "moec/base.h"],
    "driver/train": ["runtime/", "moec/"],
    "driver": [""],
}


def folder_of(path):
    for folder in sorted(ALLOWED, key=len, reverse=True):
        if path.startswith(folder + "/"):
            return folder
    return None


def main():
    bad = 0
    stems = {}
    for path in sorted(ROOT.rglob("*.[ch]")):
        name = path.relative_to(ROOT).as_posix()
        folder = folder_of(name)
        if folder is None:
            continue
        if path.suffix == ".c":  # backends have files of the same name for the same family of operations
            backend = re.match(r"codegen/\w+", name)
            key = (backend.group() if backend else "", path.stem)
            if key in stems:
                print(f"{name}: another file is called {path.stem}.c: {stems[key]}")
                bad += 1
            stems[key] = name
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if not match:
                continue
            target = match.group(1)
            itself = folder.replace("include/moec", "moec") + "/"
            if not any(target.startswith(p) for p in ALLOWED[folder] + [itself]):
                print(f"{name}:{number}: {folder} may not include {target}")
                bad += 1
    if bad:
        sys.exit(f"check_includes: {bad} faults")
    print("check_includes: ok")


if __name__ == "__main__":
    main()
