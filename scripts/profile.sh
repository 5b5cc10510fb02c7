#!/usr/bin/env bash
# Takes a CPU profile of a running server and then a flame graph of the same length, through an SSH tunnel of its own when
# a host is named, and says where they are. The first is for `go tool pprof FILE`, the second for a browser.
#
# Usage: profile.sh [-s SECONDS] [-p PORT] [-o DIRECTORY] [HOST]      30, 6060, the current directory, this machine
# HOST is what ssh takes. PROFILE_TOKEN is the server's metrics_token, if it has one. Needs: curl; ssh with a HOST
set -euo pipefail

seconds=30 port=6060 directory=. tunnel=

main() {
    read_arguments "$@"
    mkdir -p "$directory"
    local address=127.0.0.1:$port name
    name=$directory/cpu-${host:-local}-$(date -u +%Y%m%dT%H%M%SZ)
    if [[ -n $host ]]; then open_tunnel; fi
    echo "recording for $seconds s"
    fetch "profile?seconds=$seconds" "$name.pb.gz"
    echo "recording the flame graph for $seconds s"
    fetch "flamegraph?seconds=$seconds" "$name.svg"
}

read_arguments() {
    local option
    while getopts s:p:o: option; do
        case $option in
            s) seconds=$OPTARG ;;
            p) port=$OPTARG ;;
            o) directory=$OPTARG ;;
            *) usage ;;
        esac
    done
    shift $((OPTIND - 1))
    host=${1:-}
    [[ $# -le 1 && $seconds =~ ^[1-9][0-9]*$ && $port =~ ^[1-9][0-9]*$ && $host != -* ]] || usage
}

usage() { sed -n '5s/^# //p' "$0" >&2; exit 2; }
fail() { echo "$1" >&2; exit 1; }

# The near end takes a port that is free here; ssh ends with this script.
open_tunnel() {
    local near=$((20000 + RANDOM % 10000)) deadline=$((SECONDS + 20))
    ssh -N -o ExitOnForwardFailure=yes -o ConnectTimeout=15 -L "127.0.0.1:$near:127.0.0.1:$port" "$host" &
    tunnel=$!
    trap 'kill "$tunnel" 2> /dev/null || true' EXIT
    address=127.0.0.1:$near
    until curl --silent --output /dev/null --max-time 5 "http://$address/"; do
        kill -0 "$tunnel" 2> /dev/null || fail "no tunnel to $host"
        ((SECONDS < deadline)) || fail "nobody answers on port $port of $host"
        sleep 0.2
    done
}

# fetch PATH FILE: the file is there only when it is whole. The token goes to curl where `ps` does not show it.
fetch() {
    local said
    said=$(curl --silent --show-error --max-time $((seconds + 60)) --output "$2.part" --write-out '%{http_code}' \
        --config <(authorization) "http://$address/debug/pprof/$1" 2>&1) || { rm -f "$2.part"; fail "$said"; }
    if [[ $said != 200 ]]; then
        said="$said: $(head -c 300 "$2.part")"
        rm -f "$2.part"
        fail "$said"
    fi
    mv "$2.part" "$2"
    echo "$2"
}

authorization() { [[ -z ${PROFILE_TOKEN:-} ]] || echo "header = \"Authorization: Bearer $PROFILE_TOKEN\""; }

main "$@"
