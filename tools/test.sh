#!/usr/bin/env bash
# Sets the machine up and runs every test. Options: --fast (only the structure checks and the release build).
#   structure, a build without LLVM, fuzzing for a moment, threads under the thread sanitizer, everything under the address
#   and undefined-behaviour sanitizers, and last the release build
set -euo pipefail
cd "$(dirname "$0")/.."

fast=
[ "${1:-}" = --fast ] && fast=1
tools/setup.sh --tests
jobs=$(nproc)
build=${MOEC_BUILD:-build}
nvrtc=$(tools/nvrtc.sh)

step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

# build FOLDER [CMAKE OPTION...]     $targets: what to build, default everything
targets=(all)
build() {
    local folder=$build/$1
    shift
    step "build $folder"
    cmake -S . -B "$folder" -G Ninja -DMOEC_NVRTC="$nvrtc" -DMOEC_CUBINS="$(realpath -m "$build/cubins")" "$@" >/dev/null
    cmake --build "$folder" --target "${targets[@]}" -- -j "$jobs" --quiet
}

# check FOLDER [CTEST OPTION...]
check() {
    local folder=$build/$1
    shift
    step "tests of $folder"
    ctest --test-dir "$folder" --output-on-failure -j "$jobs" "$@"
}

step "structure"
python3 tools/check_includes.py
python3 tools/check_tables.py
python3 tools/check_style.py

if [ -z "$fast" ]; then
    build no-llvm -DMOEC_LLVM=OFF
    check no-llvm -R '^(cli_|install|test_gpu_(ops|kernels|device|schedule)$)' # the rest is the same code as in what follows

    step "fuzzing"
    tools/fuzz.sh all 5

    targets=(test_runtime test_train_calls test_comm test_comm_faults test_comm_nccl test_ep test_ep_gather test_ep_faults api_threads)
    build tsan -DMOEC_SANITIZE=thread
    targets=(all)
    MOEC_EP_CASES=100 check tsan -R '^(test_runtime|test_train_calls|test_comm|test_comm_faults|test_comm_nccl|test_ep|test_ep_gather|test_ep_faults|api_threads)$'

    build asan -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g1" -DMOEC_SANITIZE=address,undefined
    check asan
fi

build release -DMOEC_PYTHON="$(tools/python.sh)"
if [ -n "$fast" ]; then
    check release
else
    check release -LE plain # those ran sanitized, and are the same with LLVM and without
fi
