#!/bin/sh
# Every benchmark in turn, in sizes that together stay under five minutes once everything is built.
# Options are passed on to the load generator, for example --json.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --bin scd
cargo bench --no-run

load() {
    cargo bench --quiet --bench load -- "$@"
}

cargo bench --quiet --bench wire
load crash "$@"
load storm "$@"
load connect "$@"
load post "$@"
load fanout "$@"
load fanout --stalled --rounds 5 --seconds 2 "$@"
load profiles --pairs 300 --profiled-pairs 10 "$@"
load list "$@"
load scrape "$@"
