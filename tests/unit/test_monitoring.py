"""Rules and dashboards: they look at metrics that there are, each is tried, and the page lists them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.module_utils._backup_metrics import HELP as HELP_OF_BACKUPS
from ansible_collections.bitflow.lms.plugins.module_utils._deploy_metrics import HELP as HELP_OF_DEPLOYMENTS
from ansible_collections.bitflow.lms.plugins.module_utils._pgbackrest_info import HELP as HELP_OF_PGBACKREST

ROOT = Path(__file__).parents[2]
RULES = sorted(ROOT.glob("roles/prometheus/files/rules/*.yml"))
DASHBOARDS = sorted(ROOT.glob("roles/prometheus/files/dashboards/*.json"))
# Names of metrics that the exporters told on the hosts of the Molecule scenarios, by distribution. Redis and MariaDB were replicas that
# followed a primary, a queue had jobs, nginx had visitors, and blackbox visited an address over TLS.
EXPOSED = sorted(Path(__file__).parent.glob("metrics/*"))
WRITTEN = {*HELP_OF_BACKUPS, *HELP_OF_DEPLOYMENTS, *HELP_OF_PGBACKREST}
DELAYS = {"pg_replication_lag", "pg_replication_lag_seconds"}

STRING = re.compile(r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'")
LABELS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
MATCHERS = re.compile(r"\{[^}]*\}")
RANGE = re.compile(r"\[[^\]]*\]")
WORD = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
KEYWORDS = {"and", "or", "unless", "bool", "offset"}


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in an expression of PromQL."""
    text = RANGE.sub(" ", MATCHERS.sub(" ", LABELS.sub(" ", STRING.sub('""', expression))))
    return set(WORD.findall(text)) - KEYWORDS


@cache
def rules(path: Path) -> list[dict]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def all_rules() -> list[dict]:
    return [rule for path in RULES for rule in rules(path)]


def recorded() -> set[str]:
    return {rule["record"] for rule in all_rules() if "record" in rule}


def trials(path: Path) -> list[dict]:
    return yaml.safe_load((ROOT / "molecule/prometheus/rules" / path.name).read_text())["tests"]


def panels(dashboard: Path) -> list[dict]:
    return json.loads(dashboard.read_text())["panels"]


def expressions() -> dict[str, str]:
    """Return all expressions by where they stand."""
    of_rules = {f"{rule.get('alert') or rule['record']}: {rule['expr']}": rule["expr"] for rule in all_rules()}
    of_panels = {
        f"{path.stem}, {panel['title']}: {target['expr']}": target["expr"]
        for path in DASHBOARDS
        for panel in panels(path)
        for target in panel["targets"]
    }
    of_marks = {
        f"{path.stem}, {mark['name']}": mark["expr"] for path in DASHBOARDS for mark in json.loads(path.read_text())["annotations"]["list"]
    }
    return {**of_rules, **of_panels, **of_marks}


@pytest.mark.parametrize(
    ("expression", "metrics"),
    [
        ("up == 0", {"up"}),
        ('rate(a_total{b="c",d=~"e|f"}[5m]) > 1', {"a_total"}),
        ("sum by (x) (a) / on (x) group_left () count by (x) (b)", {"a", "b"}),
        ("time() - a > 3 * 86400 or b unless on (instance, name) c", {"a", "b", "c"}),
        ('a:b:ratio{x!~"}"} and 1e3 < d offset 5m', {"a:b:ratio", "d"}),
        ("vector(1)", set()),
    ],
)
def test_the_names_in_an_expression_are_found(expression, metrics):
    assert metrics_of(expression) - {"m"} == metrics


@pytest.mark.parametrize("distribution", EXPOSED, ids=lambda path: path.name)
def test_every_metric_in_rules_and_dashboards_is_one_that_is_exposed(distribution):
    exposed = {name for path in distribution.glob("*.txt") for name in path.read_text().split()}
    # A replica's delay has another name in each distribution; the rule takes either.
    exposed |= DELAYS if exposed & DELAYS else set()

    known = exposed | recorded() | WRITTEN | {"up"}
    unknown = {where: names - known for where, expression in expressions().items() if (names := metrics_of(expression))}

    assert {where: names for where, names in unknown.items() if names} == {}


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_every_alert_is_tried_where_it_fires_and_where_it_does_not(path):
    checks = [check for trial in trials(path) for check in trial.get("alert_rule_test", [])]
    fires = {(check["alertname"], alert["exp_labels"]["severity"]) for check in checks for alert in check["exp_alerts"]}
    # Where one of two series is quiet, the alert is tried on the quiet one in the same breath.
    quiet = {check["alertname"] for check in checks if not check["exp_alerts"]}
    beside = {
        check["alertname"]
        for trial in trials(path)
        for check in trial.get("alert_rule_test", [])
        if len({re.search(r'instance="([^"]+)"', series["series"])[1] for series in trial["input_series"]}) > len(check["exp_alerts"])
    }
    alerts = {(rule["alert"], rule["labels"]["severity"]) for rule in rules(path) if "alert" in rule}

    assert fires == alerts
    assert {name for name, severity in alerts if severity != "none"} - quiet - beside == set()


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_every_recorded_figure_is_calculated_once(path):
    checked = {check["expr"].partition("{")[0] for trial in trials(path) for check in trial.get("promql_expr_test", [])}

    assert checked == {rule["record"] for rule in rules(path) if "record" in rule}


def test_every_alert_says_what_is_wrong_and_what_to_do():
    alerts = [rule for rule in all_rules() if "alert" in rule]

    assert {rule["labels"]["severity"] for rule in alerts} == {"critical", "warning", "none"}
    assert [rule["alert"] for rule in alerts if set(rule["annotations"]) != {"summary", "description"}] == []
    assert [rule["alert"] for rule in alerts if not all(text.endswith(".") for text in rule["annotations"].values())] == []


def test_the_role_brings_all_rules_and_dashboards():
    variables = yaml.safe_load((ROOT / "roles/prometheus/vars/main.yml").read_text())

    assert variables["__prometheus_rules"] == [path.stem for path in RULES]
    assert variables["__prometheus_dashboards"] == [path.stem for path in DASHBOARDS]


def test_the_page_lists_every_alert_with_its_severities():
    page = (ROOT / "docs/monitoring.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    listed = {(name, severity) for row in rows for name in re.findall(r"`(\w+)`", row[0]) for severity in row[1].split(", ")}

    assert listed == {(rule["alert"], rule["labels"]["severity"]) for rule in all_rules() if "alert" in rule}


def test_the_page_lists_every_metric_of_backups():
    section = (ROOT / "docs/monitoring.md").read_text().partition("\n## Metrics of backups\n")[2].partition("\n## ")[0]

    assert re.findall(r"^\| `(lms_backup_\w+)", section, re.MULTILINE) == list(HELP_OF_BACKUPS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_takes_any_data_source(path):
    sources = []
    dashboard = json.loads(path.read_text(), object_hook=lambda found: sources.append(found.get("datasource")) or found)

    assert [source for source in sources if source not in (None, {"type": "prometheus", "uid": "${datasource}"})] == []
    assert [panel["title"] for panel in panels(path) if "datasource" not in panel] == []
    assert "datasource" in [variable["name"] for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"]
    assert "id" not in dashboard


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_panels_that_do_not_overlap(path):
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels(path)
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]

    assert len(places) == len(set(places))
    assert max(x for x, _y in places) < 24
    assert len({panel["id"] for panel in panels(path)}) == len(panels(path))


def test_the_dashboards_have_names_of_their_own():
    known = [json.loads(path.read_text()) for path in DASHBOARDS]

    assert [dashboard["uid"] for dashboard in known] == [f"lms-{path.stem}" for path in DASHBOARDS]
    assert len({dashboard["title"] for dashboard in known}) == len(known)
