#!/usr/bin/env bash
# Checks all of the monitoring kit with the tools it is made for, and what no tool checks with deploy/lint.py.
# Goes on after a finding, and exits with 1 if there was any. CI runs it.
#
# Usage: validate-monitoring.sh [KIT]      deploy/ otherwise
#
# Needs: apt-get install --no-install-recommends prometheus prometheus-alertmanager prometheus-blackbox-exporter rsyslog
#        logrotate yamllint python3-yaml shellcheck, and docker compose or docker-compose
set -euo pipefail
PATH=$PATH:/usr/sbin

project=$(cd "$(dirname "$0")/.." && pwd)
kit=$(cd "${1:-$project/deploy}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
findings=0

# check NAME COMMAND...: quiet when all is well
check() {
    local name=$1
    shift
    if "$@" > "$work/output" 2>&1; then
        echo "ok       $name"
    else
        findings=$((findings + 1))
        echo "FINDING  $name"
        sed 's/^/         /' "$work/output"
    fi
}

main() {
    check "YAML" yamllint --strict --config-file "$kit/.yamllint" "$kit"
    check "Prometheus" promtool check config "$kit/prometheus/prometheus.yml"
    check "rules" promtool check rules --lint-fatal "$kit/prometheus/rules"/*.yml
    check "unit tests of the rules" promtool test rules "$kit/prometheus/tests"/*.yml
    check "Alertmanager" amtool check-config "$kit/alertmanager/alertmanager.yml"
    check "routes" routes
    check "templates" templates
    check "blackbox" prometheus-blackbox-exporter --config.check --config.file "$kit/blackbox/blackbox.yml"
    check "rsyslog" rsyslog
    check "logrotate" logrotate_debug
    check "compose" compose_config
    check "scripts" shellcheck "$project"/scripts/{healthcheck,heap-watch,monitoring-up,profile,validate-monitoring}.sh
    check "the parts fit each other" /usr/bin/python3 "$kit/lint.py" "$kit" "$project"
    ((findings == 0))
}

# Every severity reaches those who should hear of it.
routes() {
    local severity receiver
    while read -r severity receiver; do
        amtool config routes test --config.file "$kit/alertmanager/alertmanager.yml" \
            --verify.receivers="$receiver" severity="$severity" || return 1
    done <<< $'critical pager\nwarning team\ninfo webhook'
}

templates() {
    local template
    for template in title text; do
        amtool template render --template.glob="$kit/alertmanager/templates/*.tmpl" \
            --template.text="{{ template \"superchat.$template\" . }}" || return 1
    done
}

# The file is a part of a configuration that says where state is kept.
rsyslog() {
    printf 'global(workDirectory="%s")\ninclude(file="%s")\n' "$work" "$kit/rsyslog/30-superchat.conf" > "$work/rsyslog.conf"
    rsyslogd -N1 -f "$work/rsyslog.conf" || return 1
}

# The owner that the file names need not exist here. logrotate tells of some errors only in words.
logrotate_debug() {
    sed "s/superchat superchat$/$(id -un) $(id -gn)/" "$kit/logrotate/superchat" > "$work/logrotate"
    chmod 600 "$work/logrotate"
    logrotate --debug --state "$work/state" "$work/logrotate" > "$work/logrotate.output" 2>&1
    local code=$?
    cat "$work/logrotate.output"
    [[ $code -eq 0 ]] && ! grep -q '^error:' "$work/logrotate.output"
}

# The secrets are made when the stack is started; here empty ones stand for them.
compose_config() {
    cp -r "$kit" "$work/compose" && mkdir -p "$work/compose/secrets" || return 1
    touch "$work/compose/secrets"/{slack_url,pagerduty_key,grafana_password}
    if docker compose version > /dev/null 2>&1; then
        docker compose -f "$work/compose/compose.yaml" config --quiet
    else
        docker-compose -f "$work/compose/compose.yaml" config --quiet
    fi
}

main
