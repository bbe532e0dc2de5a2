#!/usr/bin/env bash
# Sets the machine up and runs every test: a release build, and a debug build under the address and undefined-behaviour
# sanitizers. Options: --fast (release build only).
set -euo pipefail
cd "$(dirname "$0")/.."

fast=; [ "${1:-}" = --fast ] && fast=1
tools/setup.sh --tests
jobs=$(nproc)

step() { printf '\n== %s\n' "$*"; }

step "structure"
python3 tools/check_includes.py
python3 tools/check_tables.py
python3 tools/check_style.py

step "release build"
cmake -S . -B build/release -G Ninja >/dev/null
cmake --build build/release
step "release tests"
ctest --test-dir build/release --output-on-failure -j "$jobs"

[ -n "$fast" ] && exit 0

step "sanitized build"
cmake -S . -B build/asan -G Ninja -DCMAKE_BUILD_TYPE=Debug -DMOEC_SANITIZE=address,undefined >/dev/null
cmake --build build/asan
step "sanitized tests"
ctest --test-dir build/asan --output-on-failure -j "$jobs"
