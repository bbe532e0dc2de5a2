#!/usr/bin/env bash
# Installs what a build (and, with --tests, the tests) needs on Debian 12 or newer, if it is not there yet.
# Other systems: install the packages named below by their names there, then run cmake as README.md says.
set -euo pipefail

packages=(gcc g++ make cmake ninja-build pkg-config libjansson-dev libxxhash-dev)
tests=(check clang llvm-14-tools python3 clang-format valgrind)
llvm=$(for v in 22 21 20 19; do command -v "llvm-config-$v" >/dev/null && echo "$v" && break; done || true)

missing=()
need() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -q '^installed$' || missing+=("$1"); }
for p in "${packages[@]}"; do need "$p"; done
if [ "${1:-}" = --tests ]; then for p in "${tests[@]}"; do need "$p"; done; fi
[ -n "$llvm" ] && need "llvm-$llvm-dev"

if [ -z "$llvm" ] || [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || { echo "setup: please install: ${missing[*]} and llvm-dev >= 19" >&2; exit 1; }
    as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
    $as_root apt-get update -qq
    if [ -z "$llvm" ]; then
        for v in 22 21 20 19; do
            if apt-cache show "llvm-$v-dev" >/dev/null 2>&1; then missing+=("llvm-$v-dev"); break; fi
        done
    fi
    echo "setup: installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
