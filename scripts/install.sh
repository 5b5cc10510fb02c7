#!/usr/bin/env bash
# Installs the server on a host with systemd: account, directories, binary, manual pages, completions, units. Run again it
# upgrades; the configuration stays, and one that the new binary does not understand stops the upgrade before anything is
# changed. Hosts with Debian's packages take the package instead (scripts/package.sh).
#
# Usage: install.sh [--binary FILE] [--prefix DIR] [--root DIR] [--dry-run]
#        install.sh --uninstall [--purge] [--prefix DIR] [--root DIR] [--dry-run]
#   --binary FILE   what to install; otherwise scd beside this script, or target/release/scd
#   --prefix DIR    where binary, pages and completions go: /usr/local
#   --root DIR      the host is what lies below DIR: nothing is started
#   --dry-run       says what would be done
#   --uninstall     keeps configuration, data and account; with --purge they go too
set -euo pipefail
# So that what `put` notes is not lost with the end of a pipe.
shopt -s lastpipe
PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "$0")" && pwd)
sources=$(cd "$here/.." && pwd)
readonly here sources
readonly enabled=(superchat.service superchat-backup.timer)
# Where each shell looks below share/.
declare -rA completions=(
    [bash]=bash-completion/completions/scd
    [zsh]=zsh/site-functions/_scd
    [fish]=fish/vendor_completions.d/scd.fish
)
binary='' prefix=/usr/local root='' dry=false task=install purge=false changed=false first=false

fail() { echo "${0##*/}: $1" >&2; exit "${2:-1}"; }

arguments() {
    while [[ $# -gt 0 ]]; do
        case $1 in
        --binary | --prefix | --root)
            [[ -n ${2-} ]] || fail "$1 needs a value" 2
            declare -g "${1#--}=$2"
            shift
            ;;
        --dry-run) dry=true ;;
        --uninstall) task=uninstall ;;
        --purge) purge=true ;;
        *) fail "unknown argument $1; the first lines of this script say what there is" 2 ;;
        esac
        shift
    done
    if $purge && [[ $task = install ]]; then fail "--purge belongs to --uninstall" 2; fi
    if [[ $prefix != /* ]]; then fail "--prefix needs an absolute path" 2; fi
    root=${root%/}
}

main() {
    arguments "$@"
    $dry || [[ $EUID -eq 0 ]] || fail "installing needs root"
    if grep --quiet --no-messages '^/usr/bin/scd$' "$root/var/lib/dpkg/info/superchat.list"; then
        fail "Debian's package superchat is installed: use apt, or remove it first"
    fi
    "$task"_server
}

# run COMMAND...: does it, or says that it would.
run() {
    if $dry; then echo "would run: $*"; else "$@"; fi
}

# put MODE TARGET: makes a file of what comes on standard input, all of it or nothing.
put() {
    local target=$root$2 new
    new=$(mktemp)
    cat > "$new"
    if [[ -e $target ]] && cmp --silent "$new" "$target"; then
        run chmod "$1" "$target"
    else
        changed=true
        echo "$2"
        run mkdir -p "$(dirname "$target")"
        run install -m "$1" "$new" "$target.new"
        # A running binary cannot be written, but it can be replaced. What an operator may have written is kept beside.
        if [[ $2 = /etc/* ]]; then run mv --backup=simple "$target.new" "$target"; else run mv "$target.new" "$target"; fi
    fi
    rm "$new"
}

install_files() {
    local unit shell
    put 0755 "$prefix/bin/scd" < "$binary"
    "$binary" manual --section 1 | put 0644 "$prefix/share/man/man1/scd.1"
    "$binary" manual --section 5 | put 0644 "$prefix/share/man/man5/superchat-config.5"
    for shell in "${!completions[@]}"; do
        "$binary" completions "$shell" | put 0644 "$prefix/share/${completions[$shell]}"
    done
    for unit in "$sources"/systemd/*; do
        # This one, and not another that systemd would find first.
        sed "s|^ExecStart=scd |ExecStart=$prefix/bin/scd |" "$unit" | put 0644 "/etc/systemd/system/${unit##*/}"
    done
    put 0644 /etc/sysusers.d/superchat.conf < "$sources/packaging/superchat.sysusers"
    put 0644 /etc/tmpfiles.d/superchat.conf < "$sources/packaging/superchat.tmpfiles"
    put 0644 /etc/logrotate.d/superchat < "$sources/deploy/logrotate/superchat"
    if [[ ! -e $root/etc/superchat/config.toml ]]; then
        "$binary" config-example | put 0640 /etc/superchat/config.toml
    fi
}

install_server() {
    find_binary
    check_configuration
    if [[ ! -e $root/etc/sysusers.d/superchat.conf ]]; then first=true; fi
    install_files
    # Accounts first: directories belong to them.
    run systemd-sysusers ${root:+--root="$root"} superchat.conf
    run systemd-tmpfiles ${root:+--root="$root"} --create superchat.conf
    # Later, what was disabled or stopped stays so.
    if $first; then run systemctl ${root:+--root="$root"} --quiet enable "${enabled[@]}"; fi
    if is_running_host && $changed; then
        run systemctl daemon-reload
        if $first; then run systemctl restart "${enabled[@]}"; else run systemctl try-restart "${enabled[@]}"; fi
    fi
    echo "installed: $("$binary" --version)"
}

find_binary() {
    local place
    for place in ${binary:+"$binary"} "$here/scd" "$sources/target/release/scd"; do
        if [[ -x $place ]]; then
            binary=$place
            "$binary" --version > /dev/null || fail "$binary does not run on this machine"
            return
        fi
        [[ -z $binary ]] || fail "there is no program at $binary"
    done
    fail "there is no scd yet: cargo build --release --locked, or name one with --binary"
}

check_configuration() {
    local file=$root/etc/superchat/config.toml
    if [[ -e $file ]] && ! STATE_DIRECTORY=/var/lib/superchat "$binary" check-config --config "$file" > /dev/null; then
        fail "$file is not understood by the new binary; nothing was changed"
    fi
}

uninstall_server() {
    local path unit units
    units=$(cd "$sources/systemd" && ls)
    for unit in $units; do
        [[ -e $root/etc/systemd/system/$unit ]] || continue
        if is_running_host; then run systemctl --quiet stop "$unit"; fi
        # Only some can be enabled.
        run systemctl ${root:+--root="$root"} --quiet disable "$unit" 2> /dev/null || true
        remove "/etc/systemd/system/$unit"
    done
    for path in bin/scd share/man/man1/scd.1 share/man/man5/superchat-config.5 "${completions[@]/#/share/}"; do
        remove "$prefix/$path"
    done
    for path in sysusers.d tmpfiles.d; do remove "/etc/$path/superchat.conf"; done
    remove /etc/logrotate.d/superchat
    if is_running_host; then run systemctl daemon-reload; fi
    if $purge; then
        remove /etc/superchat
        remove /var/lib/superchat
        if grep -q ^superchat: "$root/etc/passwd"; then run userdel ${root:+--prefix "$root"} superchat; fi
    else
        echo "kept: /etc/superchat, /var/lib/superchat and the account superchat; --purge removes them"
    fi
}

remove() {
    if [[ -e $root$1 ]]; then
        echo "removed: $1"
        run rm -rf -- "$root$1"
    fi
}

is_running_host() { [[ -z $root && -d /run/systemd/system ]]; }

main "$@"
