#!/usr/bin/env bash
# Every check of the project, cheapest first, with what they need installed if it is missing. CI runs this and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

# Its package would start a Prometheus on the port of our own metrics, so only the tool is taken out of it.
needs_promtool() {
    local tools=target/tools
    PATH="$PATH:$PWD/$tools/usr/bin"
    if command -v promtool >/dev/null; then return; fi
    mkdir -p "$tools"
    as_root apt-get update -qq
    (cd "$tools" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .)
}

needs_everything() {
    needs_compilers
    needs sqlite3 sqlite3
    needs unshare util-linux
    needs ps procps
    needs_promtool
    if ! cargo fmt --version >/dev/null 2>&1; then rustup component add rustfmt; fi
    if ! cargo clippy --version >/dev/null 2>&1; then rustup component add clippy; fi
    if ! cargo nextest --version >/dev/null 2>&1; then cargo install cargo-nextest --locked; fi
}

step() {
    echo
    echo "== $*"
    "$@"
}

needs_everything
step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
step env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
if command -v cargo-deny >/dev/null; then step cargo deny --locked check; fi
step cargo build --locked --benches
if [ -x scripts/fuzz.sh ]; then step scripts/fuzz.sh; fi
step cargo test --locked --doc
step cargo nextest run --locked --no-fail-fast
