#!/usr/bin/env bash
# Fuzzes every target of tests/fuzz, or those named, each for some seconds.
#
#   scripts/fuzz.sh [seconds] [target...]     default: 15 seconds, all targets
#
# Needs cargo and g++ (libFuzzer's runtime is C++); the coverage counters come from the stable compiler's own pass. The
# corpus starts with the protocol's vectors and grows in tests/fuzz/corpus. A finding ends the script with its input in
# tests/fuzz/artifacts/<target>/; the same binary with that file as its argument repeats it.
set -euo pipefail

seconds=${1:-15}
if [[ ! $seconds =~ ^[1-9][0-9]*$ ]]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
shift || true
if (($#)); then targets=("$@"); else targets=(frame client_message server_message json session); fi

cd "$(dirname "$0")/.."
cd tests/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')

# The counters, where comparisons fail, and frame pointers. A named target keeps them out of build scripts.
export RUSTFLAGS="-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
-Cforce-frame-pointers=yes"
cargo build --release --target "$triple" --bins
programs=${CARGO_TARGET_DIR:-target}/$triple/release

"$programs/seeds" corpus
for target in "${targets[@]}"; do
    echo "== $target: $seconds s"
    mkdir -p "artifacts/$target"
    log=artifacts/$target.log
    "$programs/$target" "corpus/$target" \
        -max_total_time="$seconds" -max_len=8192 -len_control=0 -timeout=5 -rss_limit_mb=512 \
        -artifact_prefix="artifacts/$target/" -print_final_stats=1 -verbosity=0 >"$log" 2>&1 ||
        { tail -n 100 "$log"; echo "$target: a finding, its input is in tests/fuzz/artifacts/$target/"; exit 1; }
    grep -E '^stat::(number|average|new|peak)' "$log"
done
