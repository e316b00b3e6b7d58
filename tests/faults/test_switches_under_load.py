"""Blue-green deployments under a steady load, beside the plain way in the same run: another configuration and a reload.

LMS_LOAD_REQUESTS and LMS_LOAD_RATE make it the long proof: 20000 requests for each way.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from environment import LOGS, Environment
from injection import MARKS, load

REQUESTS = int(os.environ.get("LMS_LOAD_REQUESTS", "1500"))
RATE = float(os.environ.get("LMS_LOAD_RATE", "20"))
COLOURS = {
    "lms_deploy_strategy": "blue_green",
    "load_balancer_traffic_affinity": "request",
    "lms_traffic_steps": [{"weight": 50, "bake": 3}, {"weight": 100, "bake": 3}],
    "lms_traffic_gate": {"interval": 1, "consecutive": 2},
}
# What costs little: here the load balancer is measured, not the application.
MIX = [
    {"site": "api", "path": "/version", "weight": 10, "marks": MARKS},
    {"site": "api", "path": "/api/slow?ms=700", "weight": 1, "takes": 0.7, "marks": MARKS},
    {"site": "student", "path": "/", "weight": 1},
]


@pytest.fixture(scope="module")
def coloured(environment: Environment) -> Iterator[Environment]:
    """Divide the hosts into two colours, and make them one group again."""
    environment.deploy("v1")
    outcome = environment.play("bitflow.lms.provision", **COLOURS)
    assert outcome.status == 0, outcome.output[-5000:]
    yield environment
    outcome = environment.play("bitflow.lms.provision")
    assert outcome.status == 0, outcome.output[-5000:]
    environment.deploy("v2")


def colour_of(text: str, colour: str) -> str:
    """Return a configuration of nginx in which all traffic of every site goes to a colour, whatever the weights say."""
    return re.sub(r"set \$traffic_group (\w+)_(blue|green);", rf"set $traffic_group \1_{colour};", text)


def switch_by_reload(environment: Environment) -> Callable[[int], Any]:
    """Return what switches as most load balancers of nginx are: another configuration, checked, and a reload."""
    text = environment.on("lb", "cat", "/etc/nginx/nginx.conf")

    def switch(number: int) -> None:
        changed = colour_of(text, ("green", "blue")[number % 2])
        environment.on("lb", "sh", "-c", f"cat > /etc/nginx/nginx.conf <<'END'\n{changed}\nEND\nnginx -t -q && nginx -s reload")
        time.sleep(3)

    return switch


def switch_by_deployment(environment: Environment) -> Callable[[int], Any]:
    """Return what switches by a whole deployment to the other colour."""
    return lambda number: environment.play("deploy.yml", lms_version=("v2", "v1")[number % 2], **COLOURS)


def under_load(environment: Environment, switch: Callable[[int], Any]) -> dict[str, Any]:
    """Switch again and again until so many requests were made; return what became of them."""
    switches = 0
    with load(environment, MIX, RATE, seconds=int(REQUESTS / RATE) + 600) as visitors:
        while visitors.answered() < REQUESTS:
            outcome = switch(switches)
            assert outcome is None or outcome.status == 0, outcome.output[-5000:]
            switches += 1
    return {**visitors.summary, "switches": switches}


def test_no_request_fails_where_a_reload_costs_some(coloured):
    configuration = coloured.on("lb", "cat", "/etc/nginx/nginx.conf")
    found = {"deployments": under_load(coloured, switch_by_deployment(coloured))}
    try:
        found["reloads"] = under_load(coloured, switch_by_reload(coloured))
    finally:
        coloured.on("lb", "sh", "-c", f"cat > /etc/nginx/nginx.conf <<'END'\n{configuration}\nEND\nnginx -t -q && nginx -s reload")
    (LOGS / "switches-under-load.json").write_text(json.dumps(found, indent=2))

    assert found["deployments"]["failed"] == 0, found
    assert found["deployments"]["sent"] >= REQUESTS
    # A client that sends again what it may send again hides the harm; it is counted all the same.
    assert found["reloads"]["failed"] + found["reloads"]["retried"] > 0 or REQUESTS < 20000, found
