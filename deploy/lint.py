"""What no tool of its own checks about the kit: that its parts fit each other, the server and the manual.

Usage: lint.py KIT PROJECT. Prints one line for each finding and exits with 1 if there are any.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import yaml

KIT, PROJECT = Path(sys.argv[1]), Path(sys.argv[2])

# Metrics that other programs export.
FOREIGN = re.compile(r"^(up|ALERTS|node_\w+|probe_\w+)$")
# The severities that Alertmanager has routes for.
SEVERITIES = {"critical", "warning", "info"}
# A line of server.log in each format, and the labels that Promtail must find in it.
LINES = [
    ("2025/10/08 14:30:15.123456 [INFO] Server started on port 6465", {"level": "INFO"}),
    ("2025/10/08 14:30:15.123456 [WARN] login failed target=security user=eve", {"level": "WARN", "target": "security"}),
]


def load(path):
    text = (KIT / path).read_text()
    return json.loads(text) if path.endswith(".json") else yaml.safe_load(text)


def files(pattern):
    return sorted(str(path.relative_to(KIT)) for path in KIT.glob(pattern))


def exported_metrics():
    table = (PROJECT / "src/metrics/table.rs").read_text()
    rows = re.findall(r'^ +\w+ +(COUNTER|GAUGE|HISTOGRAM) +"(\w+)"', table, re.M)
    return {name: kind for kind, name in rows}


def rules():
    for path in files("prometheus/rules/*.yml"):
        for group in load(path)["groups"]:
            for rule in group["rules"]:
                yield path, rule


def known_series():
    names = {rule["record"] for _, rule in rules() if "record" in rule}
    for name, kind in exported_metrics().items():
        names |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "HISTOGRAM" else {name}
    return names


def series_in(expression):
    """Names of series: what is left of an expression without texts, labels, ranges, groupings, functions and numbers."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", re.sub(r'"[^"]*"', " ", expression))
    bare = re.sub(r"\b(by|on|ignoring|without)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)
    return {name for name in names if name not in {"and", "or", "unless", "by", "on", "bool"}}


def check_expressions():
    known = known_series()
    asked = [(path, rule["expr"]) for path, rule in rules()]
    asked += [(path, expr) for path, panel in panels("prometheus") for expr in expressions(panel)]
    for path, expression in asked:
        for name in sorted(series_in(expression) - known):
            if not FOREIGN.match(name):
                yield f"{path}: nobody exports {name}"


def check_alerts():
    manual = (PROJECT / "docs/monitoring.md").read_text()
    sections = re.findall(r"^#+ (\S+)$", manual, re.M)
    tested = "".join((KIT / path).read_text() for path in files("prometheus/tests/*.yml"))
    alerts = [(path, rule) for path, rule in rules() if "alert" in rule]
    for path, rule in alerts:
        name, notes = rule["alert"], rule.get("annotations", {})
        if rule.get("labels", {}).get("severity") not in SEVERITIES:
            yield f"{path}: {name} has no severity that anybody hears of"
        if not {"summary", "description"} <= notes.keys():
            yield f"{path}: {name} does not say what is wrong"
        if not notes.get("runbook_url", "").endswith(f"/monitoring.md#{name.lower()}") or name not in sections:
            yield f"{path}: {name} has no section in docs/monitoring.md that its runbook_url leads to"
        if f'alertname="{name}"' not in tested:
            yield f"{path}: {name} has no unit test"
    named = {rule["alert"] for _, rule in alerts}
    for section in sections:
        if re.match(r"(SuperChat|Host)[A-Z]", section) and section not in named:
            yield f"docs/monitoring.md: there is no alert {section}"


def check_manual():
    manual = (PROJECT / "docs/monitoring.md").read_text()
    for name in exported_metrics():
        if f"`{name}`" not in manual:
            yield f"docs/monitoring.md: {name} is not explained"


def panels(kind):
    for path in files("grafana/dashboards/*.json"):
        for panel in load(path)["panels"]:
            if panel["datasource"]["type"] == kind:
                yield path, panel


def expressions(panel):
    return [target["expr"] for target in panel["targets"]]


def check_dashboards():
    paths = files("grafana/dashboards/*.json")
    uids = [load(path)["uid"] for path in paths]
    if len(paths) < 6 or len(set(uids)) != len(uids):
        yield f"grafana/dashboards: a dashboard is missing or has another's uid: {uids}"
    for path in paths:
        dashboard = load(path)
        variables = {f"${variable['name']}" for variable in dashboard["templating"]["list"]}
        for panel in dashboard["panels"]:
            where = f"{path}: {panel.get('title')}"
            if panel["datasource"]["uid"] != "${datasource}" or not panel["targets"]:
                yield f"{where} asks no data source"
            for name in itertools.chain.from_iterable(re.findall(r"\$(?!__)\w+", e) for e in expressions(panel)):
                if name not in variables:
                    yield f"{where} uses {name}, which the dashboard does not have"
        yield from check_layout(path, dashboard["panels"])


def check_layout(path, dashboard_panels):
    taken = {}
    if len({panel["id"] for panel in dashboard_panels}) != len(dashboard_panels):
        yield f"{path}: two panels have one id"
    for panel in dashboard_panels:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            yield f"{path}: {panel['title']} is wider than the page"
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            if taken.setdefault(cell, panel["id"]) != panel["id"]:
                yield f"{path}: {panel['title']} covers another panel"
                break


def check_provisioning():
    sources = {source["uid"] for source in load("grafana/provisioning/datasources/superchat.yml")["datasources"]}
    if not {"prometheus", "loki"} <= sources:
        yield "grafana/provisioning: a data source of the dashboards is missing"
    place = load("grafana/provisioning/dashboards/superchat.yml")["providers"][0]["options"]["path"]
    if f"./grafana/dashboards:{place}:ro" not in load("compose.yaml")["services"]["grafana"]["volumes"]:
        yield f"compose.yaml: the dashboards are not where Grafana looks for them, {place}"


def check_logs():
    stages = load("promtail/promtail.yml")["scrape_configs"][0]["pipeline_stages"]
    inner = [stage for outer in stages for stage in outer.get("match", {}).get("stages", [])]
    patterns = [stage["regex"]["expression"] for stage in inner if "regex" in stage]
    for line, labels in LINES:
        found = {}
        for match in filter(None, (re.search(pattern, line) for pattern in patterns)):
            found |= match.groupdict()
        if not labels.items() <= found.items():
            yield f"promtail/promtail.yml: finds {found} in: {line}"
    kept = {label for stage in stages for label in stage.get("labels", {})}
    if kept != {"level"}:
        yield f"promtail/promtail.yml: every value of {kept} makes a stream of its own"
    loki = load("loki/loki.yml")
    if not loki["compactor"].get("retention_enabled") or loki["limits_config"].get("retention_period") != "720h":
        yield "loki/loki.yml: log lines are not removed after 30 days, which docs/monitoring.md promises"
    filebeat = load("filebeat/filebeat.yml")
    if filebeat["filebeat.inputs"][0]["paths"] != ["/var/lib/superchat/server.log"] or "processors" not in filebeat:
        yield "filebeat/filebeat.yml: server.log is not read"
    if {"max-size", "max-file"} - load("docker/daemon.json")["log-opts"].keys():
        yield "docker/daemon.json: logs of containers grow without end"


def check_uptime_kuma():
    for monitor in load("uptime-kuma/monitors.json")["monitorList"]:
        needed = {"port": {"hostname", "port"}, "http": {"url"}, "keyword": {"url", "keyword"}}[monitor["type"]]
        if not (needed | {"interval", "maxretries", "timeout"}) <= monitor.keys():
            yield f"uptime-kuma/monitors.json: {monitor['name']} lacks one of {sorted(needed)}"


def check_compose():
    for name, service in load("compose.yaml")["services"].items():
        if not re.search(r":v?\d+\.\d+\.\d+$", service["image"]):
            yield f"compose.yaml: {name} does not name the exact version of its image"
        listens = json.dumps([service.get("command"), service.get("environment")])
        by_file = {"loki": "loki/loki.yml", "promtail": "promtail/promtail.yml"}.get(name)
        if "127.0.0.1" not in (listens if by_file is None else str(load(by_file)["server"])):
            yield f"compose.yaml: {name} does not say that it listens on loopback only"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./") and not (KIT / source).exists():
                yield f"compose.yaml: {name} mounts {source}, which is not there"


CHECKS = [
    check_expressions,
    check_alerts,
    check_manual,
    check_dashboards,
    check_provisioning,
    check_logs,
    check_uptime_kuma,
    check_compose,
]


def findings():
    for check in CHECKS:
        try:
            yield from check()
        except (KeyError, IndexError, TypeError, ValueError, yaml.YAMLError) as error:
            yield f"{check.__name__}: the kit is not shaped as it should be: {error!r}"


if __name__ == "__main__":
    FOUND = list(findings())
    print("\n".join(FOUND))
    sys.exit(1 if FOUND else 0)
