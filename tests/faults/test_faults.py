"""What can go wrong in a deployment, made to go wrong: the old version serves on, nobody notices, the message says what it was.

Of the faults that the journeys have already, each with its own test there: an unhealthy candidate, a host that is ill once the release is
live, a migration that breaks, a host that is down before the deployment, composer that fails, and input that is wrong.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from environment import APPLICATION_HOSTS, Environment, Outcome, wait_until
from injection import STATELESS, Fault, load, on_host, play_with, service

# The modules of the releases of either part.
UNPACK = {"action": "bitflow.lms.*release", "arguments": {"artifact": None}}
SWITCH = {"action": "bitflow.lms.*release", "arguments": {"state": "active"}}
MIGRATE = {"action": "bitflow.lms.artisan_migrate", "arguments": {"state": "migrated"}}


def assert_failed(outcome: Outcome, *patterns: str) -> None:
    """Assert that a playbook failed, and said so in these words."""
    assert outcome.status != 0, outcome.output[-4000:]
    missing = [pattern for pattern in patterns if not re.search(pattern, outcome.text)]
    assert missing == [], outcome.output[-5000:]
    assert "Traceback" not in outcome.output, outcome.output[-5000:]


def assert_deploys(environment: Environment) -> None:
    """Assert that the next deployment works, that nobody notices it, and that it is whole everywhere."""
    with load(environment) as visitors:
        release = environment.deploy(environment.other_version())
    visitors.assert_nobody_noticed()
    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {release}


# What a version may bring


@pytest.mark.usefixtures("served_as_before")
@pytest.mark.parametrize(
    ("version", "variables", "said"),
    [
        ("bad-blade", {}, r"Blade template resources/views/welcome\.blade\.php compiles to broken PHP"),
        ("config-throws", {}, r"config:cache.*Nobody has said from which address mail comes"),
        (
            "cache-step-fails",
            {"laravel_app_prepare_commands": [{"command": "lms:cache"}]},
            r"lms:cache.*status 1",
        ),
        ("frontend-does-not-build", {}, r"pnpm run build"),
    ],
)
def test_a_version_that_cannot_be_prepared_is_stopped_before_anybody_sees_it(environment, version, variables, said):
    with load(environment) as visitors:
        outcome = environment.play("deploy.yml", lms_version=version, **variables)

    assert_failed(outcome, said)
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_a_key_that_env_lacks_is_named(environment):
    variables = {"APP_ENV": "production", "APP_URL": "https://api.example.com"}

    outcome = environment.play("deploy.yml", lms_version=environment.other_version(), laravel_app_environment=variables)

    assert_failed(outcome, "APP_KEY")


# What a version's name may bring


@pytest.mark.usefixtures("served_as_before")
@pytest.mark.parametrize(
    "version",
    [
        "v1;touch ${PWNED}",
        "$(touch ${PWNED})",
        "`touch ${PWNED}`",
        "--upload-pack=touch ${PWNED}",
        "v1\ntouch ${PWNED}",
        "../../../../etc/passwd",
        "v1 && touch ${PWNED}",
    ],
)
def test_a_version_with_shell_characters_is_refused_and_nothing_of_it_is_run(environment, tmp_path, version):
    pwned = tmp_path / "pwned"

    outcome = environment.play("deploy.yml", lms_version=version.replace("${PWNED}", str(pwned)))

    assert_failed(outcome)
    assert not pwned.exists()
    for host in APPLICATION_HOSTS:
        environment.on(host, "test", "!", "-e", str(pwned))


NASTY = {
    "PLAIN": "value",
    "EMPTY": "",
    "SPACES": "two words",
    "OUTER_SPACES": "  kept  ",
    "TAB": "a\tb",
    "DOUBLE_QUOTES": 'say "yes"',
    "SINGLE_QUOTES": "it's",
    "BOTH_QUOTES": 'it\'s "both"',
    "ONLY_A_QUOTE": '"',
    "DOLLAR": "pa$$word",
    "VARIABLE": "${PLAIN}",
    "VARIABLE_WITHOUT_BRACES": "$PLAIN",
    "COMMAND": "$(id)",
    "BACKTICKS": "`id`",
    "HASH": "a#b",
    "HASH_AFTER_SPACE": "a #b",
    "HASH_FIRST": "#a",
    "EQUALS": "a=b=c",
    "BACKSLASH": "C:\\temp\\new",
    "BACKSLASH_LAST": "end\\",
    "BACKSLASH_QUOTE": '\\"',
    "BACKSLASH_DOLLAR": "\\$",
    "NEWLINE": "first\nsecond",
    "NEWLINES": "\n\nlast\n",
    "CARRIAGE_RETURN": "a\r\nb",
    "ESCAPE_THAT_IS_NONE": "\\n\\t\\r",
    "UNICODE": "Größe 测试 🎓",
    "LOOKS_TRUE": "true",
    "LOOKS_NULL": "null",
    "LOOKS_EMPTY": "(empty)",
    "EXPORT": "export X=1",
    "PERCENT": "100%s",
    "SEMICOLON": "a;b|c&d<e>f",
    "BASE64": "base64:AbC+/=",
    "LONG": "x" * 5000,
}

READ_DOTENV = """
require $argv[1] . '/vendor/autoload.php';
echo json_encode(Dotenv\\Dotenv::create(Illuminate\\Support\\Env::getRepository(), $argv[2], '.env')->load());
"""


def test_every_value_of_env_comes_out_of_laravels_own_parser_as_it_went_in(environment):
    environment.on("app1", "mkdir", "-p", "/tmp/dotenv")

    environment.module("app1", "bitflow.lms.dotenv", path="/tmp/dotenv/.env", values=NASTY)

    read = json.loads(environment.on("app1", "php", "-r", READ_DOTENV, "--", "/srv/lms/backend/current", "/tmp/dotenv"))
    assert read == NASTY


# What happens to the hosts in between


@contextmanager
def small_disk(environment: Environment, host: str, megabytes: int):
    """Let the backend's releases of a host lie on a disk that has no room for another one."""
    script = f"""
        set -e
        mkdir -p /mnt/small && mount -t tmpfs -o size={megabytes}m,mode=755 small /mnt/small
        chown --reference=/srv/lms/backend/releases /mnt/small
        cd /srv/lms/backend/releases
        for release in *; do mkdir /mnt/small/$release && mount --bind $release /mnt/small/$release; done
        mount --rbind /mnt/small /srv/lms/backend/releases
    """
    environment.on(host, "sh", "-c", script)
    try:
        yield
    finally:
        environment.on(host, "sh", "-c", "umount -lR /srv/lms/backend/releases && umount -lR /mnt/small")


@pytest.mark.usefixtures("served_as_before")
def test_a_disk_that_fills_up_while_a_release_is_unpacked_stops_the_deployment(environment):
    with small_disk(environment, "app2", megabytes=5), load(environment) as visitors:
        outcome = environment.play("deploy.yml", lms_version=environment.other_version())
        left = environment.on("app2", "sh", "-c", "ls /srv/lms/backend/releases | grep partial || true")

    assert_failed(outcome, r"was not deployed: .*? on app2: .*?[Nn]o space left")
    assert left == ""
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_an_artifact_that_was_damaged_on_its_way_is_not_unpacked(environment):
    damage = "for file in /srv/lms/*/artifacts/*.tar.gz; do printf damaged | dd of=$file bs=1 seek=1000 conv=notrunc status=none; done"

    with load(environment) as visitors:
        fault = Fault(**UNPACK, command=on_host(environment, "app2", damage))
        outcome = play_with(environment, fault, lms_version=environment.other_version())

    assert_failed(outcome, r"was not deployed: .*? on app2: .*?(sha256|SHA-256|sum)")
    visitors.assert_nobody_noticed()


@contextmanager
def line_to_a_host(environment: Environment, host: str, tmp_path: Path):
    """Give a file: once it exists, this machine reaches the host no more, while everybody else does."""
    cut, program = tmp_path / "cut", tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *{environment.name}-{host}*) [ -e {cut} ] && echo "Connection reset by peer" >&2 && exit 255 ;; esac\n'
        f'PATH={os.environ["PATH"]} exec docker "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    yield cut, {"PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("time", [1, 3])
def test_a_host_that_is_lost_at_the_switch_keeps_one_whole_version(environment, tmp_path, time):
    with line_to_a_host(environment, "app2", tmp_path) as (cut, surroundings), load(environment) as visitors:
        fault = Fault(**SWITCH, time=time, command=["touch", str(cut)])
        outcome = play_with(environment, fault, surroundings=surroundings, lms_version=environment.other_version())

    assert_failed(outcome, r"app2")
    visitors.assert_nobody_noticed()
    service(environment)
    assert_deploys(environment)


# What happens to database and Redis


@contextmanager
def without(environment: Environment, unit: str):
    """Stop a service of the data host, and start it again."""
    environment.on("data", "systemctl", "stop", unit)
    try:
        yield
    finally:
        environment.on("data", "systemctl", "start", unit)
        wait_until(lambda: environment.ask("/version") and is_well(environment), "the API is well again", seconds=60)


def is_well(environment: Environment) -> bool:
    """Tell whether each host says that it is well."""
    argv = ["curl", "--silent", "--fail", "--header", "Host: api.lms.localhost", "http://127.0.0.1:8000/health"]
    try:
        return all(environment.on(host, *argv) for host in APPLICATION_HOSTS)
    except AssertionError:
        return False


@pytest.mark.usefixtures("served_as_before")
@pytest.mark.parametrize(("unit", "said"), [("postgresql", "database"), ("redis-server", "cache|queue|[Rr]edis")])
def test_without_database_or_redis_nothing_is_switched(environment, unit, said):
    with load(environment, STATELESS) as visitors, without(environment, unit):
        outcome = environment.play("deploy.yml", lms_version=environment.other_version())

    assert_failed(outcome, said)
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_a_database_that_goes_away_before_the_migrations_stops_the_deployment(environment):
    with load(environment, STATELESS) as visitors:
        stop = ["docker", "exec", f"{environment.name}-data", "systemctl", "stop", "postgresql"]
        outcome = play_with(environment, Fault(**MIGRATE, command=stop), lms_version=environment.other_version())
        with without(environment, "postgresql"):
            pass

    assert_failed(outcome, r"was not deployed: .*?migrat")
    visitors.assert_nobody_noticed()


# What hands have done


def test_a_release_that_was_removed_by_hand_is_not_gone_back_to(environment):
    live = environment.live_release()
    for part in ("backend", "frontend"):
        script = f"cd /srv/lms/{part}/releases && ls | grep -v {live} | xargs rm -rf"
        for host in APPLICATION_HOSTS:
            environment.on(host, "sh", "-c", script)

    with load(environment) as visitors:
        outcome = environment.play("bitflow.lms.rollback")

    assert_failed(outcome)
    visitors.assert_nobody_noticed()
    assert environment.live_release() == live
    assert_deploys(environment)


def test_a_link_that_leads_nowhere_is_mended_by_a_deployment(environment):
    version = environment.other_version()
    environment.on("app2", "sh", "-c", "cd /srv/lms/backend && rm current && ln -s releases/20200101000000-0000000 current")

    release = environment.deploy(version)

    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {release}


def test_after_all_of_this_a_deployment_goes_unnoticed(environment):
    assert_deploys(environment)
