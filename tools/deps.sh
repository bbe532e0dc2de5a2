#!/usr/bin/env bash
# deps.sh FOLDER: unpacks into FOLDER the Debian packages that moec's build and GPU tests need, without installing them. For a
# machine without a network: bring the source tree and this folder there, and run `MOEC_DEPS=FOLDER tools/gpu_check.sh`.
set -euo pipefail
[ $# = 1 ] || { echo "usage: tools/deps.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
downloads=$(mktemp -d)
trap 'rm -rf "$downloads"' EXIT
cd "$downloads"
apt-get download -q libjansson-dev libxxhash-dev check libsubunit-dev >/dev/null
for package in *.deb; do dpkg -x "$package" "$folder"; done
# Only what a static build links stays: headers and archives.
rm -rf "$folder"/usr/share "$folder"/usr/bin
find "$folder" -name '*.so*' -delete
du -sh "$folder" | cut -f1
