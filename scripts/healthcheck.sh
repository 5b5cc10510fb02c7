#!/usr/bin/env bash
# Asks a running server on this machine whether it is well: the chat port, the health page, its status, its database.
# One line for each, OK: or ERROR:. Exits with 0 when all is well, 1 at the first fault, 2 when called wrongly.
#
# Usage: healthcheck.sh [HOST [CHAT_PORT [METRICS_PORT]]]      127.0.0.1 6465 9090
set -euo pipefail

readonly host=${1:-127.0.0.1} chat_port=${2:-6465} metrics_port=${3:-9090} seconds=5

if [[ $# -gt 3 || ! $chat_port$metrics_port =~ ^[0-9]+$ ]]; then
    echo "usage: ${0##*/} [HOST [CHAT_PORT [METRICS_PORT]]]" >&2
    exit 2
fi

ok() { echo "OK: $1"; }
fail() { echo "ERROR: $1"; exit 1; }

# has KEY VALUE: whether the health page says so
has() { grep -Eq "\"$1\" *: *\"$2\"" <<< "$body"; }

# The shell opens the connection itself; nothing has to be installed for it.
# shellcheck disable=SC2016  # the inner shell expands it
timeout "$seconds" bash -c 'exec 3<> "/dev/tcp/$0/$1"' "$host" "$chat_port" 2> /dev/null \
    || fail "no connection to the chat port $host:$chat_port"
ok "chat port $host:$chat_port takes connections"

body=$(curl --silent --show-error --max-time "$seconds" "http://$host:$metrics_port/health" 2>&1) \
    || fail "no answer from http://$host:$metrics_port/health: $body"
ok "http://$host:$metrics_port/health answers"

has status ok || fail "status is not ok: $body"
ok "status is ok"

has database ok || fail "database is not ok: $body"
ok "database is ok"
