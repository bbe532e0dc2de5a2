#!/usr/bin/env bash
# Prints what moec costs: time to check and compile, size of what it makes, time from text to code in a process.
#   bench/report.sh [BUILD]      BUILD: a release build (default build/release)
# Times are the least of three. Figures of other machines differ; docs quote them with the machine.
set -euo pipefail
cd "$(dirname "$0")/.."

build=$(realpath "${1:-build/release}") moec=$(realpath "${1:-build/release}")/moec
cmake --build "$build" --target moec bench_jit >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export MOEC_CACHE=$work/cache

# least COMMAND...: milliseconds of the quickest of three runs
least() {
    local best=999999999 begin now
    for _ in 1 2 3; do
        begin=$(date +%s%N)
        "$@" >/dev/null 2>&1
        now=$((($(date +%s%N) - begin) / 10000))
        if [ "$now" -lt "$best" ]; then best=$now; fi
    done
    printf '%d.%02d' $((best / 100)) $((best % 100))
}

grep -m1 'model name' /proc/cpuinfo | sed 's/.*: //' || true
"$moec" --version

echo
echo "check, every example"
for f in examples/*.moe; do printf '  %-28s %8s ms\n' "$(basename "$f")" "$(least "$moec" check "$f")"; done

echo
echo "compile to an object, one layer and all of them"
for args in dsv3 'dsv3 -D L=2 -D dense=1' qwen3_235b 'qwen3_235b -D L=1'; do
    read -r name define <<<"$args"
    # shellcheck disable=SC2086
    time=$(least "$moec" compile $define --emit obj "examples/$name.moe" -o "$work/x.o")
    printf '  %-40s %8s ms\n' "$args" "$time"
done

echo
echo "artefacts, bytes"
for f in layer mixtral dsv3 qwen3_235b; do
    "$moec" compile "examples/$f.moe" -o "$work/$f" >/dev/null
    "$moec" compile "examples/$f.moe" --emit lib -o "$work/$f" >/dev/null
    printf '  %-28s executable %8s   .so %8s\n' $f.moe "$(stat -c %s "$work/$f")" "$(stat -c %s "$work/$f.so")"
done

echo
echo "just in time: compile and link in a process"
"$build/bench_jit" examples/layer.moe
"$build/bench_jit" examples/mixtral.moe L=1
"$build/bench_jit" examples/qwen3_235b.moe
"$build/bench_jit" bench/layer_train.moe
"$build/bench_jit" --train bench/layer_train.moe
"$build/bench_jit" --train examples/mixtral.moe L=1
