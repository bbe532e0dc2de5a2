#!/usr/bin/env bash
# Builds the libFuzzer targets and runs one of them, or all: fuzz.sh [NAME [SECONDS]], NAME as in tests/fuzz/fuzz_NAME.c.
# New inputs are kept in build/fuzz/found/NAME; an input that breaks something is build/fuzz/crash-NAME-*.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-all} seconds=${2:-60}
build=${MOEC_BUILD:-build}/fuzz
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g" -DCMAKE_C_COMPILER=clang \
    -DMOEC_FUZZ=ON -DMOEC_LLVM=OFF -DMOEC_TESTS=OFF -DMOEC_SANITIZE=address,undefined >/dev/null
names=()
for source in tests/fuzz/fuzz_*.c; do
    stem=$(basename "$source" .c)
    if [ "$name" = all ] || [ "fuzz_$name" = "$stem" ]; then names+=("${stem#fuzz_}"); fi
done
[ ${#names[@]} -gt 0 ] || { echo "fuzz: no tests/fuzz/fuzz_$name.c" >&2; exit 2; }
cmake --build "$build" --target "${names[@]/#/fuzz_}" -- --quiet
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1
for n in "${names[@]}"; do
    echo "fuzz: $n, $seconds s"
    mkdir -p "$build/found/$n"
    if ! "$build/tests/fuzz/fuzz_$n" -max_total_time="$seconds" -max_len=8192 -timeout=20 -rss_limit_mb=4096 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="$build/crash-$n-" "$build/found/$n" "tests/fuzz/corpus/$n" >"$build/$n.log" 2>&1; then
        tail -n 60 "$build/$n.log"
        exit 1
    fi
    grep 'number_of_executed_units\|average_exec_per_sec' "$build/$n.log" | sed 's/stat:://' || true
done
echo "fuzz: ok"
