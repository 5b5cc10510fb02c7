#!/usr/bin/env bash
# Builds the server and runs it, with what it needs to be built installed if it is missing. Arguments go to `scd`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

needs_compilers
exec cargo run --release --locked -- "$@"
