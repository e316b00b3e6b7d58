"""What script/bench provision makes of hosts, packages and measurements."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from deploy import Environment, Measurement
from provision import ROLES, parse, report, transactions


def test_the_floor_is_one_transaction_on_each_host_and_fails_if_one_does(tmp_path):
    environment = Environment("lms-bench", "192.0.2", "10443", "image", 2, tmp_path, tmp_path)
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho "$2: ${5##* install }" >> "$LOG"\n[ "$2" != "$BROKEN" ]\n')
    docker.chmod(0o755)
    script = transactions(environment, {"lb": ["nginx"], "data": ["postgresql", "redis-server"]})

    def floor(broken: str) -> int:
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(tmp_path / "log"), "BROKEN": broken}
        return subprocess.run(["sh", "-c", script], env=variables, check=False).returncode

    assert floor("") == 0
    assert sorted(line.split()[0] + " " + " ".join(line.split()[-2:]) for line in (tmp_path / "log").read_text().splitlines()) == [
        "lms-bench-data: postgresql redis-server",
        "lms-bench-lb: --no-install-recommends nginx",
    ]
    assert [floor("lms-bench-lb") != 0, floor("lms-bench-data") != 0] == [True, True]


def test_the_report_has_a_ratio_for_each_rival():
    taken = {"first": (130.0, 60.0), "second": (20.0, 10.0), "floor": (100.0, 50.0), "geerlingguy second": (40.0, 40.0)}

    lines = report({name: [Measurement(seconds, 1.0, cpu - 1.0)] for name, (seconds, cpu) in taken.items()}).splitlines()

    ratios = {line[:20].strip(): line.split()[-2:] for line in lines[3:]}
    assert ratios == {"floor": ["1.30", "1.20"], "geerlingguy second": ["0.50", "0.25"]}


def test_a_directory_without_the_roles_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse([f"--geerlingguy={tmp_path}"])
    assert "holds no role geerlingguy.nginx" in capsys.readouterr().err

    for role in ROLES:
        (tmp_path / f"geerlingguy.{role}/tasks").mkdir(parents=True)
        (tmp_path / f"geerlingguy.{role}/tasks/main.yml").touch()

    assert parse([f"--geerlingguy={tmp_path}"]).geerlingguy == tmp_path
