#!/usr/bin/env bash
# Backs up the database of a running server, for cron and for whatever reads its last line: OK: or ERROR:, and one file
# that says so after the shell is gone. Where systemd runs the server, superchat-backup.timer does the same without this.
#
# Usage: backup.sh DIRECTORY [KEEP [DATABASE]]      KEEP is 7; the database is the one of the configuration
# Exits with 0 when there is a verified backup, 1 when there is none, 2 when called wrongly.
#
# crontab of the user the server runs as: 17 3 * * * /usr/bin/superchat-backup.sh /var/backups/superchat 7
set -euo pipefail

readonly directory=${1:-} keep=${2:-7} database=${3:-} scd=${SCD:-scd}

if [[ $# -lt 1 || $# -gt 3 || ! $keep =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: ${0##*/} DIRECTORY [KEEP [DATABASE]]" >&2
    exit 2
fi

# say WORD TEXT: for the mail of cron, and for what reads last-run later
say() {
    echo "$1: $2"
    if [[ -d $directory ]]; then
        echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $1: $2" > "$directory/last-run" || true
    fi
}

[[ -d $directory ]] || { say ERROR "$directory is no directory"; exit 1; }

arguments=(backup --verify --keep "$keep" "$directory")
if [[ -n $database ]]; then arguments+=(--db "$database"); fi

umask 077
if ! lines=$("$scd" "${arguments[@]}" 2>&1); then
    say ERROR "${lines//$'\n'/; }"
    exit 1
fi
say OK "${lines//$'\n'/; }"
