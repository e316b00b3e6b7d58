"""What an operator, and those who are told of alerts, notice of the prometheus role."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from checks import access_to, answers, apply_role, eventually, exposure, listening_addresses, once, process, said, service_is_up

RULES = sorted(Path(__file__).parents[1].glob("rules/*.yml"))
SERVICES = {"prometheus": 9090, "prometheus-alertmanager": 9093}
LOGIN = 'admin:a "test" password'


def ask(host, path, port=9090):
    """Ask Prometheus or Alertmanager, and return the answer's data."""
    answer = json.loads(host.check_output("curl --silent --fail --globoff --user %s %s", LOGIN, f"http://127.0.0.1:{port}{path}"))
    return answer.get("data", answer) if isinstance(answer, dict) else answer


def query(host, expression):
    """Return the values of an expression by their labels instance."""
    found = ask(host, f"/api/v1/query?query={expression}")["result"]
    return {sample["metric"].get("instance", ""): sample["value"][1] for sample in found}


def configuration(host):
    return ask(host, "/api/v1/status/config")["yaml"]


def state(host):
    """Return what a refused configuration must not change."""
    files = host.check_output("cd /etc && md5sum prometheus/*.yml prometheus/rules/* default/prometheus default/prometheus-alertmanager")
    return files, {name: process(host, name) for name in SERVICES}, configuration(host)


def test_both_run_and_start_at_boot(host):
    assert {name: service_is_up(host, name) for name in SERVICES} == dict.fromkeys(SERVICES, True)


def test_only_loopback_is_served_by_default(host):
    assert {name: listening_addresses(host, port) for name, port in SERVICES.items()} == {name: {"127.0.0.1"} for name in SERVICES}
    # Alertmanager listens for no others of its kind.
    assert listening_addresses(host, 9094) == set()


def test_each_unit_is_in_a_sandbox(host):
    found = exposure(host, *(f"{name}.service" for name in SERVICES))

    assert set(found) == {f"{name}.service" for name in SERVICES}
    assert {unit: figure for unit, figure in found.items() if figure > 2.0} == {}


def test_nobody_asks_without_a_password(host):
    answer = host.check_output("curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:9090/api/v1/targets")

    assert answer == "401"


def test_the_targets_are_read(host):
    up = {"127.0.0.1:9090": "1", "127.0.0.1:9093": "1", "localhost:9100": "1"}

    assert eventually(lambda: query(host, "up{job!=%22sites%22}") == up, 60), query(host, "up")


def test_what_is_probed_is_named_after_itself(host):
    found = {"http://127.0.0.1:9093/-/healthy": "1", "http://127.0.0.1:9093/nothing": "0"}

    assert eventually(lambda: query(host, "probe_success{tier=%22public%22}") == found), query(host, "probe_success")


def test_the_seeds_configuration_is_part_of_what_runs(host):
    text = configuration(host)

    assert re.search(r"^global:\n  scrape_interval: 15s$", text, re.MULTILINE)
    assert re.search(r"^- job_name: lms\n(?:  .*\n)*?  static_configs:\n  - targets:\n    - localhost:9100$", text, re.MULTILINE)


def test_the_rules_say_what_they_are_for(host):
    host.check_output("mkdir --parents /run/rules")
    for rules in RULES:
        host.check_output("printf %%s %s > /run/rules/%s", rules.read_text(), rules.name)

    result = host.run("cd /run/rules && promtool test rules *.yml")

    assert result.rc == 0, result.stdout


def test_the_rules_on_the_host_are_judged(host):
    groups = {group["name"]: group for group in ask(host, "/api/v1/rules")["groups"]}

    assert {"lms_backups", "lms_data", "lms_deployments", "lms_hosts", "lms_monitoring", "lms_web", "own"} <= set(groups)
    assert {rule["health"] for group in groups.values() for rule in group["rules"]} <= {"ok", "unknown"}


def test_an_alert_reaches_the_chat(host):
    assert eventually(lambda: host.file("/run/chat").exists, 90), host.check_output("journalctl -u prometheus-alertmanager -n 20")

    path, body = host.file("/run/chat").content_string.splitlines()[0].split(" ", 1)
    attachment = json.loads(body)["attachments"][0]
    assert path == "/secret-of-the-chat"
    assert attachment["title"] == "Firing: Trial"
    assert attachment["text"] == "A trial. It is always there.\n"


def test_who_is_told_what(host):
    routes = "amtool config routes test --config.file=/etc/prometheus/alertmanager.yml"

    assert host.check_output(f"{routes} severity=critical alertname=SiteDown") == "chat,people"
    assert host.check_output(f"{routes} severity=warning alertname=DiskFull") == "chat"
    assert host.check_output(f"{routes} severity=none alertname=Watchdog") == "nobody"


@pytest.mark.parametrize("secret", ["mail", "slack-chat", "web-login"])
def test_secrets_are_private(host, secret):
    assert access_to(host, f"/etc/prometheus/secrets/{secret}") == ("root", "prometheus", "0640")
    assert host.run("runuser -u nobody -- cat /etc/prometheus/secrets/%s", secret).rc != 0


def test_secrets_are_nowhere_else(host):
    seen = (
        "ps axww -o args; systemctl cat prometheus prometheus-alertmanager; cat /etc/default/prometheus* /etc/prometheus/*.yml; journalctl"
    )

    text = host.check_output(f"{{ {seen}; }} 2>/dev/null")

    assert [secret for secret in ["secret-of-the-chat", "secret of the mail", '"test" password'] if secret in text] == []


def test_what_is_kept_is_limited_by_time_and_size(host):
    flags = ask(host, "/api/v1/status/flags")

    assert flags["storage.tsdb.retention.time"] == "30d"
    assert flags["storage.tsdb.retention.size"] == "10GiB"
    assert flags["storage.tsdb.path"] == "/var/lib/prometheus/metrics2"
    assert access_to(host, "/var/lib/prometheus/metrics2") == ("prometheus", "prometheus", "0750")


def test_grafana_finds_its_dashboards_and_its_data(host):
    files = host.check_output("cd /var/lib/grafana/dashboards/lms && ls && python3 -m json.tool data.json >/dev/null").split()

    assert files == ["data.json", "deployments.json", "hosts.json", "web.json"]
    assert access_to(host, "/etc/grafana/provisioning/datasources/lms.yaml") == ("root", "root", "0640")
    assert "path: /var/lib/grafana/dashboards/lms" in host.file("/etc/grafana/provisioning/dashboards/lms.yaml").content_string


def test_what_a_service_would_not_understand_does_not_land(host):
    given = {
        "configuration": ({"prometheus_scrape_interval": "often"}, 'not a valid duration string: "often"'),
        "rules": ({"prometheus_rule_groups": [{"name": "x", "rules": [{"record": "x", "expr": "sum("}]}]}, "could not parse expression"),
        "alertmanager": ({"prometheus_alert_repeat_interval": "often"}, 'not a valid duration string: "often"'),
        "web": ({"prometheus_web_users": {"admin": "no hash"}}, "hashedSecret too short to be a bcrypted password"),
    }
    before = state(host)

    answer = answers(host, "prometheus", {name: variables for name, (variables, _message) in given.items()}, tasks="configure")

    for name, (_variables, message) in given.items():
        assert message in answer[name].failure.replace('\\"', '"')
        assert answer[name].changed == 0
    assert state(host) == before


def test_what_no_configuration_can_be_made_of_is_refused_before_the_first_change(host):
    once(host)
    refused = {
        "odd_name": (
            {"prometheus_jobs": [{"name": "a b", "targets": []}]},
            "prometheus_jobs and prometheus_alert_receivers have names that are not usable",
        ),
        "own_name": ({"prometheus_jobs": [{"name": "prometheus", "targets": []}]}, "the receiver nobody are the role's own"),
        "login": (
            {"prometheus_web_login": {}},
            "prometheus_web_users is given, but prometheus_web_login names none of them with a password.",
        ),
        "tls": (
            {"prometheus_web_certificate": "/x.pem"},
            "prometheus_web_certificate and prometheus_web_key are given together or not at all.",
        ),
        "mail": ({"prometheus_mail": {}}, "prometheus_alert_receivers has a receiver with mail, but prometheus_mail has no host and from."),
        "space": ({"prometheus_storage_path": "/srv/a b"}, 'but one is "/srv/a b".'),
        "option": ({"prometheus_jobs": [{"name": "a", "target": []}]}, "Supported parameters include: authority, interval, labels"),
        "port": ({"prometheus_port": "many"}, "cannot be converted to an int"),
        "time": ({"prometheus_retention_time": "long"}, "Prometheus would not start with prometheus_retention_time long."),
        "size": ({"prometheus_retention_size": "10G"}, "Prometheus would not start with prometheus_retention_size 10G."),
        "url": ({"prometheus_external_url": "monitoring.example.com"}, "the external URL monitoring.example.com."),
    }

    answer = answers(host, "prometheus", {name: variables for name, (variables, _message) in refused.items()})

    for name, (_variables, message) in refused.items():
        assert message in answer[name].failure
        assert answer[name].changed == 0


def test_a_changed_configuration_is_taken_over_without_a_restart(host):
    before = {name: process(host, name) for name in SERVICES}

    run = apply_role(host, "prometheus", prometheus_external_labels={"environment": "other"}, prometheus_alert_repeat_interval="5h")

    assert run.returncode == 0, run.stdout
    assert "environment: other" in configuration(host)
    assert "repeat_interval: 5h" in ask(host, "/api/v2/status", 9093)["config"]["original"]
    assert {name: process(host, name) for name in SERVICES} == before


def test_a_run_that_was_cut_off_is_made_good_by_the_next(host):
    """Prometheus has not read its configuration, and Alertmanager runs in a sandbox that systemd has not read."""
    sandbox = "/etc/systemd/system/prometheus-alertmanager.service.d/lms.conf"
    host.check_output(
        f"mv {sandbox} /var/tmp/lms.conf && systemctl daemon-reload && systemctl restart prometheus-alertmanager"
        f" && mv /var/tmp/lms.conf {sandbox}"
        ' && sed --in-place \'s/environment: [^,}]*/environment: late/; s/"environment": "[a-z]*"/"environment": "late"/\''
        " /etc/prometheus/prometheus.yml && chown root:prometheus /etc/prometheus/prometheus.yml"
    )
    before = {name: process(host, name) for name in SERVICES}
    assert "environment: late" not in configuration(host)

    run = apply_role(host, "prometheus", tasks="service")

    assert run.returncode == 0, run.stdout
    assert "environment: late" in configuration(host)
    assert process(host, "prometheus") == before["prometheus"]
    assert process(host, "prometheus-alertmanager") != before["prometheus-alertmanager"]
    assert exposure(host, "prometheus-alertmanager.service")["prometheus-alertmanager.service"] <= 2.0


def test_without_the_guard_such_a_configuration_ends_prometheus(host):
    once(host)
    file = "/etc/prometheus/prometheus.yml"
    host.check_output(f"cp --preserve {file} /var/tmp/prometheus.yml && sed --in-place s/15s/often/ {file} && chgrp prometheus {file}")
    try:
        host.check_output("systemctl restart prometheus")
        told = 'not a valid duration string: \\"often\\"'
        assert eventually(lambda: told in host.check_output("journalctl --unit=prometheus --output=cat --lines=20"))
        assert host.run("curl --silent --fail http://127.0.0.1:9090/-/ready").rc == 7
    finally:
        host.check_output(f"cp --preserve /var/tmp/prometheus.yml {file} && systemctl restart prometheus")
    assert eventually(
        lambda: "scrape_interval: 15s" in host.run(f"curl --silent --user '{LOGIN}' localhost:9090/api/v1/status/config").stdout
    )


def test_prometheus_speaks_tls_where_it_has_a_certificate(host):
    once(host)
    host.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=mon.lms.test"
        " -keyout /etc/prometheus/key.pem -out /etc/prometheus/certificate.pem && chgrp prometheus /etc/prometheus/key.pem"
        " && chmod 640 /etc/prometheus/key.pem"
    )
    tls = {"prometheus_web_certificate": "/etc/prometheus/certificate.pem", "prometheus_web_key": "/etc/prometheus/key.pem"}

    run = apply_role(host, "prometheus", **tls)
    again = apply_role(host, "prometheus", tasks="service", **tls)

    assert run.returncode == 0, run.stdout
    assert again.returncode == 0, again.stdout
    assert "changed: true" not in again.stdout, again.stdout
    https = f"curl --silent --fail --insecure --user {shlex.quote(LOGIN)} https://127.0.0.1:9090"
    assert host.run(f"{https}/-/ready").rc == 0
    # It reads its own metrics over TLS too.
    assert eventually(lambda: '"value"' in host.run(f"{https}/api/v1/query?query=up%7Bjob=%22prometheus%22%7D==1").stdout)


def test_an_occupied_port_is_named(host):
    once(host)
    host.check_output("systemd-run --collect --unit=squatter python3 -m http.server --bind 127.0.0.1 9200")
    assert eventually(lambda: listening_addresses(host, 9200) == {"127.0.0.1"})

    run = apply_role(host, "prometheus", prometheus_port=9200, prometheus_start_timeout=4)

    assert run.returncode != 0
    assert "Prometheus or Alertmanager does not run its configuration" in said(run)
    assert "address already in use" in said(run)
