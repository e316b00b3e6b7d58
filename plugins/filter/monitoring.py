# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the roles that monitor: pure functions over plain data."""

from __future__ import annotations

import re
from typing import Any, Callable

SPECIAL = re.compile(r'(?P<character>[\\"$`])')
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def environment_value(value: object) -> str:
    """Return a value as systemd reads it in a file of environment variables."""
    return '"' + SPECIAL.sub(r"\\\g<character>", str(value)) + '"'


def socket_address(host: str, port: int) -> str:
    """Return a host and a port as one word."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_address(host: str) -> str:
    """Return an address at which the host itself reaches what listens at one: what listens everywhere answers at home too."""
    return EVERYWHERE.get(host, host)


def exporter_environment(exporter: dict[str, Any], textfile_directory: str) -> dict[str, str]:
    """Return the environment of an exporter. ARGS in it are its arguments, as the units of Debian's packages take them."""
    arguments, environment = EXPORTERS[exporter["name"]](exporter, textfile_directory)
    listen = f"--web.listen-address={socket_address(exporter['address'], exporter['port'])}"
    return {
        "ARGS": " ".join([listen, *arguments, *exporter.get("arguments", [])]),
        **environment,
        **{name: str(value) for name, value in exporter.get("environment", {}).items()},
    }


def _accesslog(exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    return [f"--accesslog.path={exporter['target']}"], {}


def _blackbox(_exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    return ["--config.file=/etc/prometheus/blackbox.yml"], {}


def _mysqld(exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    """Old versions read the first variable, new ones the file and the second: each ignores what it does not know."""
    password = exporter.get("password", "")
    target = exporter["target"]
    place = f"unix({target})" if target.startswith("/") else f"tcp({target})"
    login = f"{exporter['username']}:{password}" if password else exporter["username"]
    environment = {"DATA_SOURCE_NAME": f"{login}@{place}/", "MYSQLD_EXPORTER_PASSWORD": password}
    return ["--config.my-cnf=/etc/prometheus/mysqld-exporter.cnf"], environment


def _nginx(exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    return [f"--nginx.scrape-uri={exporter['target']}"], {}


def _node(_exporter: dict[str, Any], directory: str) -> tuple[list[str], dict[str, str]]:
    return [f"--collector.textfile.directory={directory}"], {}


def _phpfpm(exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    sockets = [f"--phpfpm.socket-path={path}" for path in exporter["sockets"]]
    return [f"--phpfpm.status-path={exporter.get('status_path', '/fpm-status')}", *sockets], {}


def _postgres(exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    """Queries of one's own are given by a variable and not by an argument: versions that know no such queries ignore it."""
    password = {"PGPASSWORD": exporter["password"]} if exporter.get("password") else {}
    queries = {"PG_EXPORTER_EXTEND_QUERY_PATH": "/etc/prometheus/postgres-exporter.yml"}
    return [], {"DATA_SOURCE_NAME": exporter["target"], **queries, **password}


def _redis(exporter: dict[str, Any], _directory: str) -> tuple[list[str], dict[str, str]]:
    login = {"REDIS_USER": exporter.get("username"), "REDIS_PASSWORD": exporter.get("password")}
    return [], {"REDIS_ADDR": exporter["target"], **{name: value for name, value in login.items() if value}}


EXPORTERS: dict[str, Callable[[dict[str, Any], str], tuple[list[str], dict[str, str]]]] = {
    "accesslog": _accesslog,
    "blackbox": _blackbox,
    "mysqld": _mysqld,
    "nginx": _nginx,
    "node": _node,
    "phpfpm": _phpfpm,
    "postgres": _postgres,
    "redis": _redis,
}


def scrape_configs(jobs: list[dict[str, Any]], secrets: str) -> list[dict[str, Any]]:
    """Return the jobs in Prometheus' notation. Passwords are in files of the folder of secrets."""
    return [_scrape_config(job, secrets) for job in jobs]


def _scrape_config(job: dict[str, Any], secrets: str) -> dict[str, Any]:
    static = {"targets": job["targets"], **({"labels": job["labels"]} if job.get("labels") else {})}
    config: dict[str, Any] = {"job_name": job["name"]}
    for option, name in (("interval", "scrape_interval"), ("path", "metrics_path")):
        if option in job:
            config[name] = job[option]
    if job.get("scheme", "http") != "http":
        config["scheme"] = job["scheme"]
    if job.get("login"):
        config["basic_auth"] = {"username": job["login"]["username"], "password_file": f"{secrets}/web-login"}
    if "username" in job:
        file = {"password_file": f"{secrets}/job-{job['name']}"} if "password" in job else {}
        config["basic_auth"] = {"username": job["username"], **file}
    if "authority" in job:
        config["tls_config"] = {"ca_file": job["authority"]}
    elif "login" in job and config.get("scheme") == "https":
        config["tls_config"] = {"insecure_skip_verify": True}
    if "probe" in job:
        config["metrics_path"] = "/probe"
        config["params"] = {"module": [job["probe"].get("module", "http_2xx")]}
        config["relabel_configs"] = [
            {"source_labels": ["__address__"], "target_label": "__param_target"},
            {"source_labels": ["__param_target"], "target_label": "instance"},
            {"target_label": "__address__", "replacement": job["probe"].get("exporter", "127.0.0.1:9115")},
        ]
    return {**config, "static_configs": [static]}


def monitoring_secrets(
    jobs: list[dict[str, Any]], receivers: list[dict[str, Any]], mail: dict[str, Any], login: dict[str, Any]
) -> dict[str, str]:
    """Return the secrets of Prometheus and Alertmanager by the names of their files."""
    return {
        **{f"job-{job['name']}": job["password"] for job in jobs if "password" in job},
        **{f"slack-{receiver['name']}": receiver["slack"]["webhook"] for receiver in receivers if "slack" in receiver},
        **({"mail": mail["password"]} if "password" in mail else {}),
        **({"web-login": login["password"]} if "password" in login else {}),
    }


class FilterModule:
    """The filters of the roles that monitor."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "environment_value": environment_value,
            "exporter_environment": exporter_environment,
            "monitoring_secrets": monitoring_secrets,
            "own_address": own_address,
            "scrape_configs": scrape_configs,
            "socket_address": socket_address,
        }
