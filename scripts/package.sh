#!/usr/bin/env bash
# Makes the Debian package and the list of what is in the binary (SBOM, CycloneDX), and checks the package with lintian.
# Everything that the program can say of itself, manual pages, completions, the configuration, is asked of the binary.
#
# The maintainer is whoever runs it, as DEBFULLNAME and DEBEMAIL say.
#
# Usage: package.sh [--binary FILE] [--fast] [OUTPUT]      a new release build and target/debian otherwise
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

# cargo-deb takes what it packs from places that Cargo.toml names.
readonly stage=target/package
readonly maintainer="${DEBFULLNAME:-SuperChat developers} <${DEBEMAIL:-superchat@localhost}>"
binary='' output=target/debian fast=()

while [[ $# -gt 0 ]]; do
    case $1 in
    --binary) binary=${2:?"--binary needs a file"} && shift ;;
    --fast) fast=(--fast) ;;
    -*) echo "usage: ${0##*/} [--binary FILE] [--fast] [OUTPUT]" >&2 && exit 2 ;;
    *) output=$1 ;;
    esac
    shift
done

main() {
    needs_packaging
    if [[ -z $binary ]]; then
        cargo build --release --locked
        binary=target/release/scd
    fi
    mkdir -p target "$output"
    # Two at the same time would pack each other's files.
    exec 9> target/package.lock
    flock 9
    rm -rf "$stage" && mkdir -p "$stage/release"
    stage_files
    CARGO_TARGET_DIR=$stage cargo deb --quiet --locked --no-build --no-strip --maintainer "$maintainer" "${fast[@]}" --output "$output"
    bill_of_materials
    lintian --allow-root --fail-on error,warning,info "$(newest_package)"
    newest_package
}

stage_files() {
    local shell unit
    # The assets of Cargo.toml call the folder of the build target/release.
    install -m 0755 "$binary" "$stage/release/scd"
    "$binary" manual --section 1 | gzip -9n > "$stage/scd.1.gz"
    "$binary" manual --section 5 | gzip -9n > "$stage/superchat-config.5.gz"
    for shell in bash zsh fish; do "$binary" completions "$shell" > "$stage/scd.$shell"; done
    "$binary" config-example > "$stage/config.toml"
    mkdir "$stage/systemd"
    for unit in systemd/*; do
        # This one, and not another that systemd would find first.
        sed 's|^ExecStart=scd |ExecStart=/usr/bin/scd |' "$unit" > "$stage/systemd/${unit##*/}"
    done
    gzip -9n < CHANGELOG.md > "$stage/changelog.gz"
    debian_changelog > "$stage/changelog.Debian"
}

# What CHANGELOG.md says is for people; Debian wants a date and a version in a form of its own.
debian_changelog() {
    local version seconds=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || date +%s)}
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    printf 'superchat (%s-1) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n' "$version"
    printf ' -- %s  %s\n' "$maintainer" "$(date -R -d "@$seconds")"
}

bill_of_materials() {
    cargo cyclonedx --quiet --format json --target x86_64-unknown-linux-gnu --no-build-deps --override-filename superchat-sbom
    mv superchat-sbom.json "$output/superchat.cdx.json"
}

newest_package() { find "$output" -name 'superchat_*.deb' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2; }

main
