# What the other scripts need of a Debian machine; read by them, not run.

# Runs a command as root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# installs PACKAGE
installs() {
    echo "installing $1"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1"
}

# needs COMMAND PACKAGE: installs the package if the command is missing.
needs() {
    if ! command -v "$1" >/dev/null; then installs "$2"; fi
}

# SQLite and jemalloc are compiled from C.
needs_compilers() {
    if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
    if ! command -v cargo >/dev/null; then
        echo "cargo is missing: install Rust from https://rustup.rs" >&2
        return 1
    fi
    needs cc build-essential
    needs make build-essential
}

# needs_cargo COMMAND CRATE@VERSION: installs a subcommand of Cargo. Unoptimized, which is built in half the time.
needs_cargo() {
    if ! cargo "$1" --version >/dev/null 2>&1; then cargo install --locked --debug "$2"; fi
}

# cargo-deb packs with the system's xz.
needs_packaging() {
    needs_compilers
    needs lintian lintian
    needs dpkg-shlibdeps dpkg-dev
    needs xz xz-utils
    needs_cargo deb cargo-deb@3.8.0
    needs_cargo cyclonedx cargo-cyclonedx@0.5.9
}
