#!/usr/bin/env bash
# Checks the GPU backend on the GPU that is there, and measures it, in at most nine minutes. Needs a driver, NVRTC, CMake, gcc, and
# the libraries that any build needs; where they cannot be installed, tools/deps.sh makes a folder of them elsewhere:
#
#     MOEC_DEPS=FOLDER tools/gpu_check.sh [--no-bench] [--dry-run]
#
# --dry-run: with the fake driver and NVRTC of the tests, to see that this script works. The report goes to build/gpu/report.md.
#   every kernel against the interpreter (poisoned outputs, empty and skewed experts, odd shapes), repeats with equal bits,
#   memcheck and racecheck on small shapes, whole models, then a table: MoE layers beside PyTorch
set -euo pipefail
cd "$(dirname "$0")/.."

bench=1 dry=
for option in "$@"; do
    case $option in
    --no-bench) bench= ;;
    --dry-run) dry=1 bench= ;;
    *) echo "usage: tools/gpu_check.sh [--no-bench] [--dry-run]" >&2; exit 2 ;;
    esac
done
build=$(realpath -m "${MOEC_BUILD:-build}")/gpu
jobs=$(nproc)
report=$build/report.md
failed=0
mkdir -p "$build"
: >"$report"

say() { printf '%s\n' "$*" | tee -a "$report"; }
step() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
left() { echo $((${MOEC_LIMIT:-530} - SECONDS)); }

# check NAME COMMAND...: runs it within what is left of the time; a line in the report
check() {
    local name=$1 log="$build/${1// /-}.log" begin=$SECONDS
    shift
    step "$name"
    if [ "$(left)" -lt 5 ]; then
        say "- $name: NOT RUN, no time left"
        failed=1
    elif timeout "$(left)" "$@" >"$log" 2>&1; then
        say "- $name: ok, $((SECONDS - begin)) s: $(tail -n 1 "$log" | cut -c1-120)"
    else
        say "- $name: FAILED, $((SECONDS - begin)) s ($log)"
        tail -n 25 "$log"
        failed=1
    fi
}

if [ -z "$dry" ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | sed 's/^/# /' | tee -a "$report" || true
fi
step build
options=(-DMOEC_LLVM=OFF -DMOEC_WERROR=OFF)
[ -z "${MOEC_DEPS:-}" ] || options+=("-DCMAKE_PREFIX_PATH=$(cd "$MOEC_DEPS" && pwd)/usr")
if command -v ninja >/dev/null; then options+=(-G Ninja); fi
cmake -S . -B "$build" "${options[@]}" >/dev/null
targets=(moec test_gpu_device check_nccl bench_gpu_layer)
[ -z "$dry" ] || targets+=(fakenvrtc fakecuda)
cmake --build "$build" --target "${targets[@]}" -j "$jobs" >"$build/build.log" 2>&1 || { tail -n 30 "$build/build.log"; exit 1; }

export MOEC_CACHE=$build/cache CK_TIMEOUT_MULTIPLIER=20 MOEC_TEST_BINARY=$build/moec
mkdir -p "$MOEC_CACHE"
some=norms,linear,moe_golden_a
if [ -n "$dry" ]; then
    export MOEC_NVRTC=$build/tests/gpu/libfakenvrtc.so MOEC_CUDA_DRIVER=$build/tests/gpu/libfakecuda.so
    check "operations, a few" env MOEC_EXEC=$some MOEC_REPEATS=2 "$build/tests/test_gpu_device"
else
    check "operations" env MOEC_REPEATS=2 "$build/tests/test_gpu_device"
    check "operations, 20 times" env MOEC_REPEATS=20 MOEC_EXEC=moe_,grad_,sdpa,linear "$build/tests/test_gpu_device"
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            check "$tool" env CK_FORK=no MOEC_REPEATS=1 MOEC_EXEC=$some,grad_grouped,sdpa_causal,route_,odd_dispatch \
                compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/tests/test_gpu_device"
        done
    else
        say "- compute-sanitizer: not installed, skipped"
    fi
fi
# Two ranks on one GPU: correct or not, but not fast (tests/gpu/check_nccl.c).
if [ -n "$dry" ]; then
    check "nccl" env MOEC_FAKE_DEVICES=3 MOEC_NCCL="$build/tests/gpu/libfakenccl.so" "$build/tests/gpu/check_nccl" --threads 3
else
    nccl=${MOEC_NCCL:-$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib/libnccl.so.2")' 2>/dev/null || true)}
    [ ! -e "$nccl" ] || export MOEC_NCCL=$nccl
    if [ -n "${MOEC_NCCL:-}" ] || ldconfig -p | grep -q 'libnccl\.so\.2'; then
        check "nccl, 1 rank" "$build/tests/gpu/check_nccl" 1
        check "nccl, 2 ranks" "$build/tests/gpu/check_nccl" 2
    else
        say "- nccl: not installed, skipped"
    fi
fi
check "a layer" "$build/bench_gpu_layer" --seconds 0.01 tiny
check "a layer, backward" "$build/bench_gpu_layer" --seconds 0.01 --train tiny

if [ -n "$bench" ]; then
    step bench
    python=$(command -v python3 || true)
    peak=()
    if [ -n "$python" ] && $python -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        value=$(timeout 60 "$python" bench/gpu_torch.py --peak --ways "" 2>/dev/null | sed -n 's/^peak //p')
        [ -z "$value" ] || { peak=(--peak "$value"); say "- peak of torch's bf16 product: $value TFLOP/s"; }
    else
        python=
        say "- torch: not there, so no columns of PyTorch"
    fi
    say '```'
    for names in "decode qwen3-30b-8k mixtral" "S-7B-256 S-30B-512 S-120B-1024 qwen3-30b-32k"; do
        for mode in "" --train; do
            [ "$mode" = --train ] && [ "${names%% *}" = decode ] && names=${names#decode }
            [ "$(left)" -gt 20 ] || { say "no time left for $names $mode"; failed=1; continue; }
            # shellcheck disable=SC2086
            timeout "$(left)" "$build/bench_gpu_layer" $mode "${peak[@]}" --seconds 0.3 $names 2>&1 | tee -a "$report" || failed=1
            [ -z "$python" ] || [ "$(left)" -lt 40 ] ||
                timeout $(($(left) / 3)) "$python" bench/gpu_torch.py $mode $names 2>/dev/null | tee -a "$report" || true
        done
    done
    say '```'
fi
step done
say "$([ $failed = 0 ] && echo 'All held.' || echo 'SOMETHING FAILED: see above.')"
exit $failed
