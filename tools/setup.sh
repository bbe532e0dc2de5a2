#!/usr/bin/env bash
# Installs what a build (and, with --tests, the tests) needs on Debian 12 or newer, if it is not there yet.
# Other systems: install the packages named below by their names there, then run cmake as README.md says.
set -euo pipefail

packages=(gcc libc6-dev cmake ninja-build libjansson-dev libxxhash-dev)
tests=(check g++ pkg-config clang python3 python3-venv openmpi-bin libopenmpi-dev)
llvm=
for v in 22 21 20 19; do
    if command -v "llvm-config-$v" >/dev/null; then llvm=$v; break; fi
done

missing=()
need() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -q '^installed$' || missing+=("$1"); }
if ! command -v dpkg-query >/dev/null; then
    echo "setup: not a Debian system: taking for granted that ${packages[*]} ${tests[*]} and LLVM >= 19 are there" >&2
    exit 0
fi
for p in "${packages[@]}"; do need "$p"; done
if [ "${1:-}" = --tests ]; then
    for p in "${tests[@]}"; do need "$p"; done
    # libFuzzer lies in a package of its own, whose name has clang's version
    probe='int LLVMFuzzerTestOneInput(const char *d, unsigned long n); int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d + !n; }'
    if ! clang -x c -fsanitize=fuzzer -o /dev/null - <<<"$probe" 2>/dev/null; then
        major=$(clang -dumpversion 2>/dev/null || true)
        missing+=("libclang-rt${major:+-${major%%.*}}-dev")
    fi
fi
[ -n "$llvm" ] && [ ${#missing[@]} = 0 ] && exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
if [ -z "$llvm" ]; then
    for v in 22 21 20 19; do
        if apt-cache show "llvm-$v-dev" >/dev/null 2>&1; then llvm=$v; missing+=("llvm-$v-dev"); break; fi
    done
    [ -n "$llvm" ] || { echo "setup: no package llvm-N-dev with N >= 19; see apt.llvm.org, or build with -DMOEC_LLVM=OFF" >&2; exit 1; }
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
