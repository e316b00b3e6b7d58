"""What the provisioned hosts are beyond the application: watched, and shut."""

from __future__ import annotations

import json

from environment import Environment, wait_until


def ask_prometheus(environment: Environment, query: str) -> list[dict[str, str]]:
    """Return the labels of every series that Prometheus answers a query with."""
    address = "http://127.0.0.1:9090/api/v1/query"
    answer = environment.on("data", "curl", "--silent", "--fail", "--get", address, "--data-urlencode", f"query={query}")
    return [series["metric"] for series in json.loads(answer)["data"]["result"]]


def test_every_exporter_is_read_and_nothing_is_wrong(environment):
    def readings() -> dict[str, list[str]]:
        """Return the last number of the address of each host that Prometheus reads, by job."""
        jobs: dict[str, list[str]] = {}
        for labels in ask_prometheus(environment, "up == 1"):
            jobs.setdefault(labels["job"], []).append(labels["instance"].rpartition(":")[0].rpartition(".")[2])
        return {job: sorted(numbers) for job, numbers in jobs.items() if job in wanted}

    wanted = {
        "node": ["10", "11", "12", "20"],
        "nginx": ["10", "11", "12"],
        "accesslog": ["10", "11", "12"],
        "phpfpm": ["11", "12"],
        "postgres": ["20"],
        "redis": ["20"],
        "blackbox": ["20"],
    }

    wait_until(lambda: readings() == wanted, "every exporter is read", seconds=60)

    assert ask_prometheus(environment, 'ALERTS{alertstate="firing", severity="critical"}') == []
    # What happens in PHP-FPM and what was deployed is there, and not the exporters alone.
    assert len(ask_prometheus(environment, "php_fpm_up == 1")) == len(wanted["phpfpm"])
    assert ask_prometheus(environment, "lms_deploy_last_success_timestamp_seconds") != []


def test_a_host_lets_in_what_it_is_for_and_a_firewall_that_was_lost_comes_back(environment):
    def reaches(host: str, number: int, port: int) -> bool:
        """Tell whether something on the host can connect to a port of another one."""
        attempt = "import socket, sys; s = socket.socket(); s.settimeout(2); print(s.connect_ex((sys.argv[1], int(sys.argv[2]))) == 0)"
        return environment.on(host, "python3", "-c", attempt, f"{environment.network}.{number}", str(port)).strip() == "True"

    assert [reaches("app1", 20, 5432), reaches("app1", 20, 6379), reaches("lb", 11, 8000), reaches("data", 10, 9100)] == [True] * 4
    assert [reaches("lb", 20, 5432), reaches("app1", 20, 9187), reaches("app1", 12, 8000), reaches("app1", 10, 9100)] == [False] * 4

    # Without it, everybody on the network reaches the database.
    environment.on("data", "nft", "delete", "table", "inet", "lms")
    assert reaches("lb", 20, 5432)
    outcome = environment.play("bitflow.lms.provision", "--tags=firewall", "--limit=data,localhost")

    assert outcome.status == 0, outcome.output[-5000:]
    assert not reaches("lb", 20, 5432)
    assert reaches("app1", 20, 5432)
