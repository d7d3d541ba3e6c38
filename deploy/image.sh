#!/usr/bin/env bash
# Packs a static binary into an image, without any registry: deploy/image.sh [<binary> [<tag>]]
# A static binary:
#   rustup target add x86_64-unknown-linux-musl      (and musl-gcc, of Debian's musl-tools)
#   CC_x86_64_unknown_linux_musl=musl-gcc cargo build --locked --profile dist --target x86_64-unknown-linux-musl --package starling --bin starling
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
binary=${1:-$root/target/x86_64-unknown-linux-musl/dist/starling}
tag=${2:-starling}

[[ -x $binary ]] || { echo "$binary is not there: build it first, as the head of this script says" >&2; exit 1; }
# What ldd says is taken whole: a grep that leaves at the first match would end ldd by SIGPIPE, and the pipe with it.
libraries=$(ldd "$binary" 2>/dev/null || true)
if [[ $libraries == *'=>'* ]]; then
    echo "$binary needs libraries, which an image from scratch does not have" >&2
    exit 1
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
install -d "$context/image/usr/local/bin"
install -m 0755 "$binary" "$context/image/usr/local/bin/starling"
ln -s starling "$context/image/usr/local/bin/etcd"
install -m 0644 "$root/LICENSE" "$context/image/LICENSE"
install -d -m 0700 "$context/data"
docker build --quiet --file "$root/deploy/Dockerfile.binary" --tag "$tag" "$context"
