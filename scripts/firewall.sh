#!/usr/bin/env bash
# Opens the public ports of the server and closes those for operators, for IPv4 and IPv6, with nftables, iptables or ufw.
# Prints what it would do; --apply does it, --remove takes it back. Both may be repeated. This host itself reaches every
# port as before, and what other ports may do is left as it is. Never closes the port that this session came in by, or 22.
#
# Usage: firewall.sh [nft|iptables|ufw] [--apply | --remove] [--open PORTS] [--closed PORTS]
#        ufw where it is active, otherwise nft where it is installed; 6465,6466,8080 and 9090,6060
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

form='' action=print open=6465,6466,8080 closed=9090,6060

usage() {
    echo "usage: ${0##*/} [nft|iptables|ufw] [--apply | --remove] [--open PORTS] [--closed PORTS]" >&2
    exit 2
}

fail() { echo "${0##*/}: $1" >&2; exit 1; }

arguments() {
    while [[ $# -gt 0 ]]; do
        case $1 in
        nft | iptables | ufw) form=$1 ;;
        --apply) action=apply ;;
        --remove) action=remove ;;
        --open | --closed)
            [[ $# -gt 1 ]] || usage
            declare -g "${1#--}=$2"
            shift
            ;;
        *) usage ;;
        esac
        shift
    done
    local list='^[0-9]{1,5}(,[0-9]{1,5})*$'
    [[ $open =~ $list && $closed =~ $list ]] || usage
}

main() {
    arguments "$@"
    [[ -n $form ]] || form=$(usual_form)
    refuse_to_lock_out
    if [[ $action != print ]]; then
        [[ $EUID -eq 0 ]] || fail "changing the firewall needs root"
        command -v "$form" > /dev/null || fail "$form is missing: apt-get install ${form/nft/nftables}"
    fi
    "$form"_form
}

usual_form() {
    if ufw_is_active; then
        echo ufw
    elif command -v nft > /dev/null; then
        echo nft
    else
        echo iptables
    fi
}

# From its file, which everybody may read.
ufw_is_active() { grep --quiet --no-messages '^ENABLED=yes' /etc/ufw/ufw.conf; }

# run COMMAND...: does it, or prints it.
run() { if [[ $action = print ]]; then echo "$@"; else "$@"; fi; }

# feed COMMAND...: the same for a command that reads rules from standard input.
feed() { if [[ $action = print ]]; then echo "$* <<'RULES'"; cat; echo RULES; else "$@"; fi; }

split() { tr , '\n' <<< "$1"; }

# The ports of SSH: 22, and the one that this session came in by.
ssh_ports() {
    local connection
    echo 22
    connection=$(ssh_connection)
    if [[ $connection =~ \ ([0-9]+)$ ]]; then echo "${BASH_REMATCH[1]}"; fi
}

# What sshd says about this session. sudo drops it from the environment, so the processes above are asked too.
ssh_connection() {
    local process=$$ text=${SSH_CONNECTION-}
    while [[ -z $text && $process -gt 1 ]]; do
        text=$({ tr '\0' '\n' < "/proc/$process/environ"; } 2> /dev/null | sed -n 's/^SSH_CONNECTION=//p') || true
        process=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$process/status" 2> /dev/null) || break
    done
    echo "$text"
}

refuse_to_lock_out() {
    local port
    while read -r port; do
        if grep -qx "$port" <(split "$closed"); then fail "port $port is how SSH comes in; it is not closed"; fi
    done < <(ssh_ports | sort -u)
}

# A table of its own, whatever other tables do: a drop is final. An accept is not, so the open ports are let in by the
# other tables' chains too where those drop what nobody named.
nft_form() {
    {
        own_rules_elsewhere
        # Declared first, so that deleting it works when it is not there.
        echo "table inet superchat"
        echo "delete table inet superchat"
        [[ $action = remove ]] || nft_rules
    } | feed nft -f -
    [[ $action = print ]] && echo "# to keep it: put the table into /etc/nftables.conf and enable nftables.service"
    return 0
}

nft_rules() {
    local family table chain
    cat << RULES
table inet superchat {
    chain input {
        type filter hook input priority -10; policy accept;
        iifname "lo" accept
        tcp dport { ${closed//,/, } } drop
        tcp dport { ${open//,/, } } accept
    }
}
RULES
    while read -r family table chain; do
        echo "insert rule $family $table $chain tcp dport { ${open//,/, } } accept comment \"superchat\""
    done < <(chains_that_drop)
}

# Family, table and name of the input chains that drop by default. Chains of iptables, whose names are in capitals, would
# become unreadable to it with a rule of ours: for them there is the form of that name.
chains_that_drop() {
    nft list chains 2> /dev/null | awk '
        $1 == "table" { family = $2; table = $3 }
        $1 == "chain" { chain = $2 }
        /hook input/ && /policy drop/ && table != "superchat" && chain != "INPUT" { print family, table, chain }'
}

own_rules_elsewhere() {
    nft --handle list ruleset 2> /dev/null | awk '
        $1 == "table" { family = $2; table = $3 }
        $1 == "chain" { chain = $2 }
        /comment "superchat" # handle/ { print "delete rule", family, table, chain, "handle", $NF }'
}

# A chain that is asked first. It is replaced in one step, so that nothing is open in between.
iptables_form() {
    local command
    for command in iptables ip6tables; do
        if [[ $action != remove ]]; then
            iptables_rules | feed "$command-restore" --noflush
            jumps "$command" || run "$command" --insert INPUT --jump SUPERCHAT
        elif "$command" --list SUPERCHAT > /dev/null 2>&1; then
            if jumps "$command"; then "$command" --delete INPUT --jump SUPERCHAT; fi
            "$command" --flush SUPERCHAT
            "$command" --delete-chain SUPERCHAT
        fi
    done
    [[ $action = print ]] && echo "# to keep it: netfilter-persistent save"
    return 0
}

jumps() { [[ $action != print ]] && "$1" --check INPUT --jump SUPERCHAT 2> /dev/null; }

iptables_rules() {
    cat << RULES
*filter
:SUPERCHAT - [0:0]
-A SUPERCHAT -i lo -j RETURN
-A SUPERCHAT -p tcp -m multiport --dports $closed -j DROP
-A SUPERCHAT -p tcp -m multiport --dports $open -j ACCEPT
COMMIT
RULES
}

# SSH is allowed first. ufw itself is not switched on: it would close whatever else this host serves.
ufw_form() {
    local port
    if [[ $action = remove ]]; then
        split "$open" | while read -r port; do ufw delete allow "$port/tcp"; done
        split "$closed" | while read -r port; do ufw delete deny "$port/tcp"; done
        return
    fi
    ssh_ports | sort -u | while read -r port; do run ufw allow "$port/tcp"; done
    split "$open" | while read -r port; do run ufw allow "$port/tcp"; done
    # Before ranges and networks that may be allowed; a rule for just this port would have to make room.
    split "$closed" | while read -r port; do
        run ufw delete allow "$port/tcp"
        run ufw delete limit "$port/tcp"
        run ufw prepend deny "$port/tcp"
    done
    if ! ufw_is_active; then
        echo "# ufw is not active: its rules count after 'ufw enable', which also closes every port that no rule allows"
    fi
}

main "$@"
