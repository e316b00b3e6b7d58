"""What script/bench deploy makes of hosts, recaps and measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "bench"), str(Path(__file__).parents[1] / "bench/callback_plugins")]

from bench_tasks import CallbackModule
from deploy import Environment, Measurement, add_versions, count_tasks, inventory, parse, report, tools_of


def environment(hosts: int, path: Path = Path("/nowhere")) -> Environment:
    return Environment("lms-bench", "192.0.2", "10443", "image", hosts, path, path)


def test_the_inventory_is_an_api_alone():
    assert inventory(environment(2))["all"]["children"] == {
        "containers": {
            "hosts": {
                "lb": {"ansible_host": "lms-bench-lb", "lms_address": "192.0.2.10"},
                "data": {"ansible_host": "lms-bench-data", "lms_address": "192.0.2.40"},
                "app1": {"ansible_host": "lms-bench-app1", "lms_address": "192.0.2.11"},
                "app2": {"ansible_host": "lms-bench-app2", "lms_address": "192.0.2.12"},
            },
            "vars": {"lms_container_prefix": "lms-bench", "ansible_connection": "community.docker.docker", "ansible_user": "root"},
        },
        "loadbalancer": {"hosts": {"lb": None}},
        "backend": {"hosts": {"app1": None, "app2": None}},
        "database": {"hosts": {"data": None}},
        "cache": {"hosts": {"data": None}},
    }


def test_no_two_hosts_have_the_same_address():
    hosts = inventory(environment(10))["all"]["children"]["containers"]["hosts"]

    assert len({host["lms_address"] for host in hosts.values()}) == 12


@pytest.mark.parametrize(
    ("arguments", "tools"),
    [
        ([], ["bitflow.lms", "deploy.sh"]),
        (["--deployer"], ["bitflow.lms", "deploy.sh", "deployer"]),
        (["--ansistrano"], ["bitflow.lms", "deploy.sh", "ansistrano"]),
        # What deploys to one host is not compared with what deploys to ten.
        (["--hosts", "10", "--deployer", "--ansistrano"], ["bitflow.lms", "ansistrano"]),
    ],
)
def test_the_tools_are_those_that_are_here_and_reach_every_host(tmp_path, arguments, tools):
    (tmp_path / "dep").touch()
    for role in ("ansistrano.deploy", "ansistrano.rollback"):
        (tmp_path / role / "tasks").mkdir(parents=True)
        (tmp_path / role / "tasks/main.yml").touch()
    places = {"--deployer": [str(tmp_path / "dep")], "--ansistrano": [str(tmp_path)]}
    options = parse([part for argument in arguments for part in (argument, *places.get(argument, []))])

    assert [tool.name for tool in tools_of(options, environment(options.hosts))] == tools


@pytest.mark.parametrize("arguments", [["--ansistrano", "/nowhere"], ["--deployer", "/nowhere"], ["--hosts", "11"]])
def test_what_is_not_there_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)

    assert arguments[0] in capsys.readouterr().err


RECAP = """
PLAY RECAP *********************************************************************
app1                       : ok=41   changed=9    unreachable=0    failed=0    skipped=12   rescued=0    ignored=0
app10                      : ok=33   changed=8    unreachable=0    failed=0    skipped=20   rescued=0    ignored=0
localhost                  : ok=5    changed=0    unreachable=0    failed=0    skipped=0    rescued=0    ignored=0
"""
DEPLOYER = "task deploy:info\n[localhost] info deploying\ntask deploy:setup\ntask artisan:migrate\n[localhost] task of another kind\n"


@pytest.mark.parametrize(
    ("output", "counted", "tasks"),
    [
        (RECAP, {"app1": 14, "lb": 3}, (41, 14)),
        (RECAP, {}, (41, 0)),
        (DEPLOYER, None, (3, None)),
        ("Nothing to migrate.\n", None, (None, None)),
    ],
)
def test_tasks_are_those_of_the_first_host(tmp_path, output, counted, tasks):
    counts = tmp_path / "tasks.json"
    if counted is not None:
        counts.write_text(json.dumps(counted))

    assert count_tasks(output, counts) == tasks


def test_each_new_version_differs_from_the_others_and_follows_version_two(tmp_path):
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "--quiet", "--bare")
    git("update-ref", "refs/tags/v2", git("commit-tree", "-m", "Nothing yet", git("write-tree")))

    add_versions(tmp_path, 2)

    assert [git("show", f"bench-{number}:backend/public/bench.txt") for number in (1, 2)] == ["1", "2"]
    assert git("rev-parse", "bench-1^", "bench-2^") == "\n".join([git("rev-parse", "v2")] * 2)


def test_the_report_has_medians_and_ratios_of_each_step():
    ours = [Measurement(seconds, 2.0, 1.0, 40, 14) for seconds in (9.0, 4.0, 5.0)]
    theirs = [Measurement(10.0, 0.1, 5.9)]

    shown = report(
        {
            (kind, tool): taken
            for kind in ("first", "new", "next", "rollback")
            for tool, taken in (("bitflow.lms", ours), ("deploy.sh", theirs))
        }
    )

    assert shown.splitlines()[:3] == [
        "step      tool         runs  time s  cpu here s  cpu hosts s  tasks  on host  ours/its time  ours/its cpu",
        "first     bitflow.lms     3     5.0         2.0          1.0     40       14",
        "first     deploy.sh       1    10.0         0.1          5.9                           0.50          0.50",
    ]


def test_the_help_says_what_is_left_out(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])

    assert "Trellis deploys WordPress" in capsys.readouterr().out


def ended(action: str, seen: dict[str, object]) -> SimpleNamespace:
    return SimpleNamespace(task=SimpleNamespace(action=action), host=SimpleNamespace(get_name=lambda: "app1"), result=seen)


def test_a_task_counts_for_the_host_on_which_it_ran_something(tmp_path, monkeypatch):
    monkeypatch.setenv("LMS_BENCH_TASKS", str(tmp_path / "tasks.json"))
    callback = CallbackModule()

    callback.v2_runner_on_ok(ended("ansible.builtin.copy", {}))
    callback.v2_runner_on_ok(ended("bitflow.lms.release", {"_ansible_delegated_vars": {}}))
    callback.v2_runner_on_ok(ended("bitflow.lms.http_probe", {"_ansible_delegated_vars": {"ansible_delegated_host": "lb"}}))
    for action in ("debug", "ansible.builtin.set_fact", "ansible.builtin.include_role", "ansible.builtin.validate_argument_spec"):
        callback.v2_runner_on_ok(ended(action, {}))
    callback.v2_playbook_on_stats(None)

    assert json.loads((tmp_path / "tasks.json").read_text()) == {"app1": 2, "lb": 1}
