#!/usr/bin/env bash
# Starts the monitoring of deploy/compose.yaml next to the server on this machine, and waits until all of it answers.
# Run again, it takes over changed files. `docker compose -f deploy/compose.yaml down` ends it.
#
# Usage: monitoring-up.sh
# SUPERCHAT_DATA is the directory with server.log, /var/lib/superchat otherwise.
set -euo pipefail

readonly kit=${MONITORING_KIT:-$(cd "$(dirname "$0")/.." && pwd)/deploy}
readonly seconds=${MONITORING_PATIENCE:-120}

# What is started, and the page on which it says that it is ready.
readonly services="
prometheus    http://127.0.0.1:9091/-/ready
alertmanager  http://127.0.0.1:9093/-/ready
node-exporter http://127.0.0.1:9100/
blackbox      http://127.0.0.1:9115/-/healthy
loki          http://127.0.0.1:3100/ready
promtail      http://127.0.0.1:9080/ready
grafana       http://127.0.0.1:3000/api/health
uptime-kuma   http://127.0.0.1:3001/
"

main() {
    docker compose version > /dev/null 2>&1 || fail "docker compose is missing: install Docker with its compose plugin"
    answers http://127.0.0.1:9090/livez || echo "the server does not answer on 127.0.0.1:9090 yet; it will show as down"
    make_secrets
    docker compose -f "$kit/compose.yaml" up --detach --remove-orphans
    wait_for_all
    echo "Grafana: http://127.0.0.1:3000, user admin, password in $kit/secrets/grafana_password"
    echo "From elsewhere: ssh -N -L 3000:127.0.0.1:3000 -L 9091:127.0.0.1:9091 -L 9093:127.0.0.1:9093 $(hostname)"
}

fail() { echo "$1" >&2; exit 1; }

answers() { curl --silent --fail --output /dev/null --max-time 5 "$1"; }

# The directory is for its owner alone; the files in it are read by the users of the containers they are mounted into.
make_secrets() {
    mkdir -p "$kit/secrets"
    chmod 700 "$kit/secrets"
    [[ -s $kit/secrets/grafana_password ]] || head -c 18 /dev/urandom | base64 > "$kit/secrets/grafana_password"
    for secret in slack_url pagerduty_key; do
        [[ -e $kit/secrets/$secret ]] || : > "$kit/secrets/$secret"
        [[ -s $kit/secrets/$secret ]] || echo "$kit/secrets/$secret is empty: nobody will be called that way"
    done
    chmod 644 "$kit/secrets"/*
}

wait_for_all() {
    local name page deadline=$((SECONDS + seconds))
    while read -r name page; do
        [[ -n $name ]] || continue
        until answers "$page"; do
            ((SECONDS < deadline)) || fail "$name does not answer on $page; see docker compose -f $kit/compose.yaml logs $name"
            sleep 1
        done
        echo "$name is ready"
    done <<< "$services"
}

main
