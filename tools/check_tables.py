#!/usr/bin/env python3
"""Are the tables complete? Every op has a golden text, every pass its cases, every diagnostic code a page, a use in the
code and a test that triggers it, every public function its row in driver/exports.def."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def rows(path, macro, column=0):
    text = (ROOT / path).read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    found = []
    for match in re.finditer(macro + r"\(([^\n]*)", text):
        cells = [c.strip() for c in match.group(1).split(",")]
        found.append(cells[column].strip('"'))
    return found


def all_text(*patterns):
    parts = []
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                parts.append(path.read_text(errors="replace"))
    return "\n".join(parts)


def check_ops(fault):
    texts = all_text("tests/golden/ir/ops/*.moir")
    for op in rows("ir/ops.def", "MC_OP", 1):
        if not re.search(r"(=|^)\s*" + re.escape(op) + r"\b", texts, re.M):
            fault(f"op {op}: no golden text in tests/golden/ir/ops")


def check_passes(fault):
    for name in rows("passes/passes.def", "MC_PASS", 2):
        cases = list((ROOT / "tests/golden/passes" / name).glob("*.moir"))
        if len(cases) < 3:
            fault(f"pass {name}: {len(cases)} golden cases; it needs one that fires, one that refuses, one already done")


def has_example(code):
    """Examples on a code's page are run by tests/unit/test_docs.c, which insists that they report it."""
    page = ROOT / f"docs/errors/{code}.md"
    return page.is_file() and re.search(r"^```(console|moe\w* (wrong|shows))", page.read_text(), re.M)


def check_codes(fault):
    code = all_text("ir/*.c", "frontend/*.c", "passes/**/*.c", "codegen/**/*.c", "driver/*.c", "runtime/*.c", "runtime/app/*.c")
    tests = all_text("tests/golden/**/*", "tests/unit/*.c", "tests/cli/**/*", "tests/exec/*")
    for name in rows("ir/diag.def", "MC_DIAG"):
        if name not in code:
            fault(f"{name}: never reported")
        if not (ROOT / f"docs/errors/{name}.md").is_file():
            fault(f"{name}: no page docs/errors/{name}.md")
        if name not in tests and not has_example(name):
            fault(f"{name}: no test triggers it")


def check_exports(fault):
    headers = all_text("include/moec/base.h", "include/moec/runtime.h", "include/moec/train.h", "include/moec/gpu.h",
                       "include/moec/comm.h")
    declared = set(re.findall(r"MOEC_API[^;]*?\b(moec_\w+)\(", headers))
    listed = set(rows("driver/exports.def", "MC_EXPORT"))
    listed = {name.rstrip(")") for name in listed}
    for name in sorted(declared ^ listed):
        fault(f"{name}: stands only in {'the headers' if name in declared else 'driver/exports.def'}")


def main():
    faults = []
    for check in (check_ops, check_passes, check_codes, check_exports):
        check(faults.append)
    for fault in faults:
        print(fault)
    if faults:
        sys.exit(f"check_tables: {len(faults)} faults")
    print("check_tables: ok")


if __name__ == "__main__":
    main()
