#!/usr/bin/env bash
# Takes a heap profile of a running server every so many minutes and keeps the newest, so that a leak can be found by
# comparing two of them: go tool pprof -diff_base EARLIER LATER
#
# Usage: heap-watch.sh [-i MINUTES] [-k KEEP] [-n TIMES] [-o DIRECTORY] [ADDRESS]
# By default every 10 minutes, the newest 144 of them, until it is ended, into heap-profiles/, from 127.0.0.1:6060.
# PROFILE_TOKEN is the server's metrics_token, if it has one. Needs: curl
set -euo pipefail

minutes=10 keep=144 times=0 directory=heap-profiles

main() {
    read_arguments "$@"
    mkdir -p "$directory"
    local taken=0 failed=0
    while true; do
        take || failed=1
        remove_old
        taken=$((taken + 1))
        if ((times > 0 && taken >= times)); then return "$failed"; fi
        sleep "$((minutes * 60))"
    done
}

read_arguments() {
    local option
    while getopts i:k:n:o: option; do
        case $option in
            i) minutes=$OPTARG ;;
            k) keep=$OPTARG ;;
            n) times=$OPTARG ;;
            o) directory=$OPTARG ;;
            *) usage ;;
        esac
    done
    shift $((OPTIND - 1))
    address=${1:-127.0.0.1:6060}
    [[ $# -le 1 && $minutes =~ ^(0|[1-9][0-9]*)$ && $keep =~ ^[1-9][0-9]*$ && $times =~ ^(0|[1-9][0-9]*)$ ]] || usage
    ((minutes > 0 || times > 0)) || usage
}

usage() { sed -n '5s/^# //p' "$0" >&2; exit 2; }

# The file is there only when it is whole. A server that does not answer is told of, and asked again next time.
take() {
    local file said
    file=$directory/heap-$(date -u +%Y%m%dT%H%M%S.%3NZ).pb.gz
    if said=$(curl --silent --show-error --fail-with-body --max-time 60 --output "$file.part" \
        --config <(authorization) "http://$address/debug/pprof/heap" 2>&1); then
        mv "$file.part" "$file"
        echo "$file"
    else
        rm -f "$file.part"
        echo "$(date -u +%FT%TZ) no heap profile: $said" >&2
        return 1
    fi
}

# The token goes to curl where `ps` does not show it.
authorization() { [[ -z ${PROFILE_TOKEN:-} ]] || echo "header = \"Authorization: Bearer $PROFILE_TOKEN\""; }

# Names sort by time.
remove_old() {
    local files=("$directory"/heap-*.pb.gz)
    local surplus=$((${#files[@]} - keep))
    if ((surplus > 0)); then rm -f "${files[@]:0:surplus}"; fi
}

main "$@"
