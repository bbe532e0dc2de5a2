#!/usr/bin/env bash
# Prints the path of an NVRTC library, which compiles GPU kernels: $MOEC_NVRTC, or the one of a CUDA toolkit, or else the one of
# a wheel that is installed into the build folder at the first time (100 MB; MOEC_NO_NVRTC=1 does without). Where none can be had it
# prints nothing, and the tests that need one are skipped by name.
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=nvidia-cuda-nvrtc==13.0.88 # opcodes and registers of the tests are those of this version

# the library in a folder, if there is one
library() {
    local folder=$1 name
    for name in libnvrtc.so.13 libnvrtc.so.12; do
        if [ -e "$folder/$name" ]; then
            realpath "$folder/$name"
            exit 0
        fi
    done
}

if [ -n "${MOEC_NVRTC:-}" ]; then
    echo "$MOEC_NVRTC"
    exit 0
fi
for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda $(ls -d /usr/local/cuda-* 2>/dev/null | sort -rV); do
    [ -n "$root" ] || continue
    library "$root/lib64"
    library "$root/lib"
done

folder=$(realpath -m "${MOEC_BUILD:-build}/nvrtc")
library "$folder/nvidia/cu13/lib"
[ -z "${MOEC_NO_NVRTC:-}" ] || exit 0
echo "nvrtc.sh: installing $wheel into $folder" >&2
pip=(python3 -m pip)
if ! "${pip[@]}" --version >/dev/null 2>&1; then # Debian has it in virtual environments only
    python3 -m venv "$folder/venv" >&2 || exit 0
    pip=("$folder/venv/bin/pip")
fi
if ! timeout 180 "${pip[@]}" install --quiet --no-deps --target "$folder" "$wheel" >&2; then
    echo "nvrtc.sh: that did not work within 3 minutes; tests that need NVRTC are skipped" >&2
    exit 0
fi
library "$folder/nvidia/cu13/lib"
echo "nvrtc.sh: the wheel has no library where it was expected; tests that need NVRTC are skipped" >&2
