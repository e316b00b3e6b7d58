"""The filters of the roles that monitor."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from ansible_collections.bitflow.lms.plugins.filter.monitoring import (
    environment_value,
    exporter_environment,
    monitoring_secrets,
    own_address,
    scrape_configs,
    socket_address,
)

SECRETS = "/etc/prometheus/secrets"
QUERIES = {"PG_EXPORTER_EXTEND_QUERY_PATH": "/etc/prometheus/postgres-exporter.yml"}
# The scrape configuration of the documents that this product implements.
SEED = """
global:
  scrape_interval: 15s

scrape_configs:
  - job_name: 'lms'
    static_configs:
      - targets: ['localhost:9100']
"""


def exporter(name, **more):
    return {"name": name, "address": "127.0.0.1", "port": 9000, **more}


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain", '"plain"'),
        ("it's a # word", '"it\'s a # word"'),
        ('a "b" $c `d` \\e', '"a \\"b\\" \\$c \\`d\\` \\\\e"'),
        (5, '"5"'),
    ],
)
def test_a_value_is_quoted_as_systemd_reads_it(value, quoted):
    assert environment_value(value) == quoted


def test_a_shell_reads_the_same_value():
    value = 'a "b" $c `d` \\e it\'s'

    result = subprocess.run(["sh", "-c", f'x={environment_value(value)}; printf %s "$x"'], capture_output=True, text=True, check=True)

    assert result.stdout == value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            exporter("node", arguments=["--collector.systemd"]),
            {"ARGS": "--web.listen-address=127.0.0.1:9000 --collector.textfile.directory=/metrics --collector.systemd"},
        ),
        (
            exporter("nginx", target="http://127.0.0.1:8081/stub_status"),
            {"ARGS": "--web.listen-address=127.0.0.1:9000 --nginx.scrape-uri=http://127.0.0.1:8081/stub_status"},
        ),
        (
            exporter("phpfpm", sockets=["/a.sock", "/b.sock"], address="::1"),
            {
                "ARGS": "--web.listen-address=[::1]:9000 --phpfpm.status-path=/fpm-status"
                " --phpfpm.socket-path=/a.sock --phpfpm.socket-path=/b.sock"
            },
        ),
        (
            exporter("phpfpm", sockets=["/a.sock"], status_path="/status"),
            {"ARGS": "--web.listen-address=127.0.0.1:9000 --phpfpm.status-path=/status --phpfpm.socket-path=/a.sock"},
        ),
        (
            exporter("redis", target="redis://127.0.0.1:6379", username="watcher", password="p w"),
            {
                "ARGS": "--web.listen-address=127.0.0.1:9000",
                "REDIS_ADDR": "redis://127.0.0.1:6379",
                "REDIS_USER": "watcher",
                "REDIS_PASSWORD": "p w",
            },
        ),
        (
            exporter("redis", target="redis://127.0.0.1:6379", environment={"REDIS_EXPORTER_DEBUG": True}),
            {"ARGS": "--web.listen-address=127.0.0.1:9000", "REDIS_ADDR": "redis://127.0.0.1:6379", "REDIS_EXPORTER_DEBUG": "True"},
        ),
        (
            exporter("postgres", target="host=/run/postgresql"),
            {"ARGS": "--web.listen-address=127.0.0.1:9000", "DATA_SOURCE_NAME": "host=/run/postgresql", **QUERIES},
        ),
        (
            exporter("postgres", target="host=192.0.2.1", password="p w"),
            {"ARGS": "--web.listen-address=127.0.0.1:9000", "DATA_SOURCE_NAME": "host=192.0.2.1", "PGPASSWORD": "p w", **QUERIES},
        ),
        (
            exporter("mysqld", target="/run/mysqld/mysqld.sock", username="prometheus"),
            {
                "ARGS": "--web.listen-address=127.0.0.1:9000 --config.my-cnf=/etc/prometheus/mysqld-exporter.cnf",
                "DATA_SOURCE_NAME": "prometheus@unix(/run/mysqld/mysqld.sock)/",
                "MYSQLD_EXPORTER_PASSWORD": "",
            },
        ),
        (
            exporter("mysqld", target="192.0.2.1:3306", username="watcher", password="p@w/"),
            {
                "ARGS": "--web.listen-address=127.0.0.1:9000 --config.my-cnf=/etc/prometheus/mysqld-exporter.cnf",
                "DATA_SOURCE_NAME": "watcher:p@w/@tcp(192.0.2.1:3306)/",
                "MYSQLD_EXPORTER_PASSWORD": "p@w/",
            },
        ),
        (
            exporter("accesslog", target="/var/log/nginx/access.log"),
            {"ARGS": "--web.listen-address=127.0.0.1:9000 --accesslog.path=/var/log/nginx/access.log"},
        ),
        (
            exporter("blackbox"),
            {"ARGS": "--web.listen-address=127.0.0.1:9000 --config.file=/etc/prometheus/blackbox.yml"},
        ),
    ],
    ids=lambda value: value.get("name", ""),
)
def test_an_exporter_is_told_by_arguments_and_its_password_by_a_variable(given, expected):
    environment = exporter_environment(given, "/metrics")

    assert environment == expected
    assert given.get("password", "no password") not in environment["ARGS"]


@pytest.mark.parametrize(("host", "expected"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("192.0.2.1", "192.0.2.1")])  # noqa: S104
def test_what_listens_everywhere_is_asked_at_home(host, expected):
    assert own_address(host) == expected


@pytest.mark.parametrize(("host", "expected"), [("192.0.2.1", "192.0.2.1:9090"), ("2001:db8::1", "[2001:db8::1]:9090")])
def test_an_ipv6_address_gets_brackets(host, expected):
    assert socket_address(host, 9090) == expected


def test_the_job_of_the_seeds_is_one_of_a_name_and_its_targets():
    jobs = [{"name": "lms", "targets": ["localhost:9100"]}]

    assert scrape_configs(jobs, SECRETS) == yaml.safe_load(SEED)["scrape_configs"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"labels": {"tier": "data"}}, {"static_configs": [{"targets": ["a:1"], "labels": {"tier": "data"}}]}),
        ({"path": "/m"}, {"metrics_path": "/m"}),
        ({"interval": "5s"}, {"scrape_interval": "5s"}),
        ({"scheme": "http"}, {}),
        ({"scheme": "https"}, {"scheme": "https"}),
        ({"username": "u"}, {"basic_auth": {"username": "u"}}),
        ({"username": "u", "password": "p"}, {"basic_auth": {"username": "u", "password_file": f"{SECRETS}/job-x"}}),
        ({"authority": "/ca.pem"}, {"tls_config": {"ca_file": "/ca.pem"}}),
        ({"login": {}}, {}),
        ({"login": {"username": "u", "password": "p"}}, {"basic_auth": {"username": "u", "password_file": f"{SECRETS}/web-login"}}),
        ({"login": {}, "scheme": "https"}, {"scheme": "https", "tls_config": {"insecure_skip_verify": True}}),
    ],
)
def test_each_key_of_a_job_has_its_word(given, expected):
    config = scrape_configs([{"name": "x", "targets": ["a:1"], **given}], SECRETS)

    assert config == [{"job_name": "x", "static_configs": [{"targets": ["a:1"]}], **expected}]


@pytest.mark.parametrize(
    ("probe", "module", "exporter_address"),
    [({}, "http_2xx", "127.0.0.1:9115"), ({"module": "tcp_connect", "exporter": "192.0.2.1:9115"}, "tcp_connect", "192.0.2.1:9115")],
)
def test_a_probe_asks_the_exporter_and_is_named_after_what_it_visits(probe, module, exporter_address):
    config = scrape_configs([{"name": "sites", "targets": ["https://a/"], "probe": probe}], SECRETS)

    assert config == [
        {
            "job_name": "sites",
            "metrics_path": "/probe",
            "params": {"module": [module]},
            "relabel_configs": [
                {"source_labels": ["__address__"], "target_label": "__param_target"},
                {"source_labels": ["__param_target"], "target_label": "instance"},
                {"target_label": "__address__", "replacement": exporter_address},
            ],
            "static_configs": [{"targets": ["https://a/"]}],
        }
    ]


def test_each_secret_gets_a_file():
    jobs = [{"name": "a", "password": "1"}, {"name": "b"}]
    receivers = [{"name": "chat", "slack": {"webhook": "2"}}, {"name": "people", "mail": ["x@example.com"]}]

    secrets = monitoring_secrets(jobs, receivers, {"host": "mail", "password": "3"}, {"username": "u", "password": "4"})

    assert secrets == {"job-a": "1", "slack-chat": "2", "mail": "3", "web-login": "4"}
    assert monitoring_secrets([], [], {}, {}) == {}
