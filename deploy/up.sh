#!/usr/bin/env bash
# Three members on this machine: deploy/up.sh starts them, deploy/up.sh down stops them, and both can be said twice.
# deploy/up.sh clean stops them and removes their data.
#   STARLING       the binary; target/release/starling or target/debug/starling, or what is in the PATH
#   STARLING_DIR   where data, logs and process ids are kept; target/up
#   STARLING_PORT  the first client port, 12379: the next members have 10000 more; members talk at one more each
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
directory=${STARLING_DIR:-$root/target/up}
first=${STARLING_PORT:-12379}
step=${STARLING_PORT_STEP:-10000}
names=(a b c)

binary() {
    local candidate
    for candidate in "${STARLING:-}" "$root/target/release/starling" "$root/target/debug/starling" "$(command -v starling || true)"; do
        if [[ -n $candidate && -x $candidate ]]; then
            echo "$candidate"
            return
        fi
    done
    echo "no starling: build it by cargo build --release --bin starling, or set STARLING" >&2
    exit 1
}

# The process of a member, if it runs. An id may have been given to somebody else since.
process() {
    local pid
    pid=$(cat "$directory/$1.pid" 2>/dev/null) || return 1
    [[ -n $pid && $(readlink "/proc/$pid/cwd" 2>/dev/null) == "$directory/$1" ]] && echo "$pid"
}

port() { echo $((first + step * $1)); }
peer_port() { echo $((first + step * $1 + 1)); }

up() {
    local starling i name url peers=() members
    starling=$(binary)
    for i in "${!names[@]}"; do
        peers+=("${names[$i]}=http://127.0.0.1:$(peer_port "$i")")
    done
    members=$(IFS=,; echo "${peers[*]}")
    for i in "${!names[@]}"; do
        name=${names[$i]}
        if process "$name" >/dev/null; then
            continue
        fi
        mkdir -p "$directory/$name"
        url="http://127.0.0.1:$(port "$i")"
        (
            cd "$directory/$name"
            nohup "$starling" --name "$name" --data-dir "$directory/$name/data" \
                --listen-client-urls "$url" --advertise-client-urls "$url" \
                --listen-peer-urls "http://127.0.0.1:$(peer_port "$i")" \
                --initial-advertise-peer-urls "http://127.0.0.1:$(peer_port "$i")" \
                --initial-cluster "$members" --initial-cluster-token up \
                </dev/null >"$directory/$name.log" 2>&1 &
            echo $! >"$directory/$name.pid"
        )
    done
    for i in "${!names[@]}"; do
        name=${names[$i]}
        for _ in $(seq 150); do
            if "$starling" health --ready --quiet --timeout 1 --endpoint "127.0.0.1:$(port "$i")"; then
                echo "$name  pid $(process "$name")  127.0.0.1:$(port "$i")"
                continue 2
            fi
            process "$name" >/dev/null || break
            sleep 0.2
        done
        echo "$name does not start; the end of $directory/$name.log:" >&2
        tail -n 5 "$directory/$name.log" >&2
        exit 1
    done
}

down() {
    local name pid
    for name in "${names[@]}"; do
        if pid=$(process "$name"); then
            kill "$pid"
        fi
    done
    for name in "${names[@]}"; do
        for _ in $(seq 150); do
            process "$name" >/dev/null || break
            sleep 0.1
        done
        if pid=$(process "$name"); then
            echo "$name does not end: it is killed" >&2
            kill -KILL "$pid"
        fi
        rm -f "$directory/$name.pid"
    done
}

case "${1:-up}" in
    up) up ;;
    down) down ;;
    clean)
        down
        for name in "${names[@]}"; do
            rm -rf "${directory:?}/$name" "$directory/$name.log"
        done
        ;;
    *)
        echo "usage: deploy/up.sh [up | down | clean]" >&2
        exit 2
        ;;
esac
