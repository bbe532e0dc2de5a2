#!/usr/bin/env bash
# From nothing to generated text: installs what is missing, builds moec, compiles the shipped model and runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup.sh
cmake -S . -B build -G Ninja -DMOEC_TESTS=OFF >/dev/null
cmake --build build
echo
echo "+ build/moec compile examples/kjv/kjv.moe -o build/kjv"
build/moec compile examples/kjv/kjv.moe -o build/kjv
echo "+ build/kjv --weights examples/kjv --prompt 'In the beginning' --max-new 200 --temperature 0.5 --seed 2"
build/kjv --weights examples/kjv --prompt 'In the beginning' --max-new 200 --temperature 0.5 --seed 2
