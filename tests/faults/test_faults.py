"""What can go wrong in a deployment, made to go wrong: the old version serves on, nobody notices, the message says what it was.

Of the faults that the journeys have already, each with its own test there: an unhealthy candidate, a host that is ill once the release is
live, a migration that breaks, a host that is down before the deployment, composer that fails, and input that is wrong.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from environment import APPLICATION_HOSTS, PROJECT, Environment, wait_until
from injection import STATELESS, Fault, assert_deploys, assert_failed, held_table, load, on_host, play_with, service, service_of

PREPARE_BACKEND = {"action": "bitflow.lms.laravel_release", "arguments": {"state": "prepared"}}
SWITCH_BACKEND = {"action": "bitflow.lms.laravel_release", "arguments": {"state": "active"}}
SWITCH_FRONTENDS = {"action": "bitflow.lms.nextjs_release", "arguments": {"state": "active"}}
MIGRATE = {"action": "bitflow.lms.artisan_migrate", "arguments": {"state": "migrated"}}
# What the message of a deployment that nobody saw ends with.
HARMLESS = (
    r"Nothing was changed on any host\.|No visitor saw it; every host serves what it served before \(\S+\)\. Mend the cause and deploy"
)


# The tests' own eyes


def test_the_load_notices_a_careless_switch(environment):
    careless = (
        "cd /srv/lms/backend && target=$(readlink current) && end=$(($(date +%s) + 2)) &&"
        " while [ $(date +%s) -lt $end ]; do rm current; ln -s $target current; done"
    )

    with load(environment) as visitors:
        running = [environment.start_on(host, "sh", "-c", careless) for host in APPLICATION_HOSTS]
        assert [one.finish().status for one in running] == [0, 0]

    assert visitors.summary["failed"] > 0


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
        ("frontend-does-not-build", {}, r"building frontend-student .*? run build, ended with status 1 \(.*?Error: Turbopack build failed"),
    ],
)
def test_a_version_that_cannot_be_prepared_is_stopped_before_anybody_sees_it(environment, version, variables, said):
    with load(environment) as visitors:
        outcome = environment.play("deploy.yml", lms_version=version, **variables)

    assert_failed(outcome, said, HARMLESS)
    visitors.assert_nobody_noticed()


def failed_release(environment: Environment) -> str:
    """Return the candidate with the broken template."""
    records = environment.releases("app1", "backend")
    return [release for release, record in records.items() if record["metadata"]["version"] == "bad-blade"][-1]


def test_live_views_survive_candidate_cache(environment):
    """The candidate has compiled views of its own; with a shared directory, artisan empties that of the live release."""
    live, candidate = (f"/srv/lms/backend/releases/{release}" for release in (environment.live_release(), failed_release(environment)))
    artisan = ["php", f"{candidate}/artisan", "view:cache"]

    def compiled() -> set[str]:
        return set(environment.on("app1", "find", f"{live}/storage/framework/views", "-name", "*.php").split())

    before = compiled()
    environment.on("app1", "runuser", "-u", "lms-deploy", "--", *artisan)
    after = compiled()
    environment.on("app1", "cp", "--recursive", f"{live}/storage/framework/views", "/tmp/shared-views")
    # The cached configuration has the candidate's own directory.
    environment.on("app1", "env", "VIEW_COMPILED_PATH=/tmp/shared-views", "APP_CONFIG_CACHE=/tmp/none.php", *artisan)
    shared = set(environment.on("app1", "find", "/tmp/shared-views", "-name", "*.php", "-printf", "%f\n").split())
    environment.on("app1", "rm", "--recursive", "/tmp/shared-views")

    assert before == after != set()
    assert {Path(view).name for view in before} - shared != set()


def test_artisan_alone_is_content_with_the_broken_template(environment):
    """What the check of the compiled templates is for."""
    release = f"/srv/lms/backend/releases/{failed_release(environment)}"

    said = environment.on("app1", "runuser", "-u", "lms-deploy", "--", "php", f"{release}/artisan", "view:cache")
    views = environment.on("app1", "find", f"{release}/storage/framework/views", "-name", "*.php").split()

    assert "success" in said
    with pytest.raises(AssertionError, match="unexpected end of file"):
        for view in views:
            environment.on("app1", "php", "-l", view)


@pytest.mark.usefixtures("served_as_before")
def test_a_key_that_env_lacks_is_named(environment):
    with load(environment) as visitors:
        outcome = environment.play("deploy.yml", lms_version=environment.other_version(), lms_environment_optional=[])

    assert_failed(outcome, r"The environment lacks MAIL_\w+.*?, which \.env\.example of the application names", HARMLESS)
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_another_app_key_on_one_host_is_refused(environment, tmp_path):
    copy, key = tmp_path / "inventory", base64.b64encode(b"k" * 32).decode()
    shutil.copytree(PROJECT / "inventories" / "dev", copy)
    (copy / "host_vars").mkdir()
    (copy / "host_vars" / "app2.yml").write_text(f'vault_app_key: "base64:{key}"\n')

    repository = str(environment.cache / "lms.git")
    outcome = environment.start("deploy.yml", inventory=copy, lms_repository=repository, lms_version=environment.other_version()).finish()

    assert_failed(outcome, r"APP_KEY is not the same on every host of backend: app1, app2 have 2 different ones\. Set vault_app_key once")
    assert (outcome.changed["app1"], outcome.changed["app2"]) == (0, 0)
    # The key itself is said nowhere.
    assert key not in outcome.output


@pytest.mark.usefixtures("served_as_before")
def test_the_inventory_of_another_environment_is_refused(environment):
    version = environment.other_version()

    outcome = environment.play("deploy.yml", lms_version=version, lms_backend_environment={"APP_ENV": "staging"})

    assert_failed(outcome, r"This host serves with APP_ENV production, and the inventory wants staging\. Look whether", HARMLESS)


# What a version's name may bring


@pytest.mark.usefixtures("served_as_before")
@pytest.mark.parametrize(
    "version",
    [
        "v1;touch ${PWNED}",
        "$(touch ${PWNED})",
        "--upload-pack=touch ${PWNED}",
        "v1\ntouch ${PWNED}",
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

    assert_failed(outcome, r"was not deployed: .*? on app2: .*?[Nn]o space left", HARMLESS)
    assert left == ""
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_an_artifact_that_was_damaged_on_its_way_is_not_unpacked(environment):
    each = f"for file in {environment.cache}/artifacts/backend-*.tar.gz"
    damage = ["sh", "-c", f"{each}; do printf damaged | dd of=$file bs=1 seek=1000 conv=notrunc status=none; done"]

    with load(environment) as visitors:
        outcome = play_with(environment, Fault(**PREPARE_BACKEND, command=damage), lms_version=environment.other_version())

    assert_failed(outcome, r"was not deployed: .*? on app1: .*?(sha256|SHA-256|sum)", HARMLESS)
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


def test_the_line_to_a_host_is_cut_between_its_two_parts(environment, tmp_path):
    """The host serves on, with the new backend and the old front ends, until it can be reached again."""
    old = environment.live_release()

    with line_to_a_host(environment, "app2", tmp_path) as (cut, surroundings), load(environment) as visitors:
        fault = Fault(**SWITCH_FRONTENDS, time=2, command=["touch", str(cut)])
        outcome = play_with(environment, fault, surroundings=surroundings, lms_version=environment.other_version())
        seen = service(environment)
        # With the line there again.
        release = environment.deploy(environment.other_version())

    assert_failed(outcome, r"was taken back: .*? on app2: ", r"It is not well there: app2")
    assert set(seen["app1"]["links"].values()) == {old}
    assert {link for found in service(environment).values() for link in found["links"].values()} == {release}
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_hosts_that_are_switched_at_once_go_back_at_once(environment):
    with load(environment) as visitors:
        outcome = environment.play("deploy.yml", lms_version="ill-once-live", lms_batch=2)

    assert_failed(outcome, r"was taken back: .*? on app2: .*?Every host serves \S+\. +Migrations that ran stay\.")
    assert "It is not well there" not in outcome.text
    visitors.assert_nobody_noticed()


@contextmanager
def host_that_comes_back(environment: Environment, host: str):
    """Start a host again at the end that was stopped meanwhile."""
    try:
        yield
    finally:
        outcome = environment.demo("hosts")
        assert outcome.status == 0, outcome.output
        wait_until(lambda: is_well(environment), f"{host} is well again", seconds=60)


def test_a_host_that_goes_down_at_its_switch_takes_the_others_back(environment):
    old = environment.live_release()

    with host_that_comes_back(environment, "app2"), load(environment) as visitors:
        stop = ["docker", "stop", "--time=20", f"{environment.name}-app2"]
        outcome = play_with(environment, Fault(**SWITCH_BACKEND, time=2, command=stop), lms_version=environment.other_version())
        seen = service_of(environment, "app1")

    assert_failed(outcome, r"was taken back: .*? on app2: ", r"It is not well there: app2")
    assert set(seen["links"].values()) == {old}
    # Who was being answered by the host when it went down is not the deployment's to save.
    assert (visitors.summary["mixed"], visitors.summary["failed"]) == (0, 0), visitors.summary
    assert_deploys(environment)


# What happens to database and Redis


@contextmanager
def started_again(environment: Environment, unit: str):
    """Start a service of the data host at the end, whatever stopped it."""
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
@pytest.mark.parametrize(("unit", "said"), [("postgresql", "the database at"), ("redis-server", "Redis at")])
def test_without_database_or_redis_nothing_is_switched(environment, unit, said):
    with load(environment, STATELESS) as visitors, started_again(environment, unit):
        environment.on("data", "systemctl", "stop", unit)
        outcome = environment.play("deploy.yml", lms_version=environment.other_version())

    assert_failed(outcome, said, HARMLESS)
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before")
def test_a_database_that_goes_away_before_the_migrations_stops_the_deployment(environment):
    with load(environment, STATELESS) as visitors, started_again(environment, "postgresql"):
        stop = on_host(environment, "data", "systemctl stop postgresql")
        outcome = play_with(environment, Fault(**MIGRATE, command=stop), lms_version=environment.other_version())

    assert_failed(outcome, r"was not deployed: .*?migrations on app1: ", HARMLESS)
    visitors.assert_nobody_noticed()


@pytest.mark.usefixtures("served_as_before", "without_names")
def test_a_database_that_goes_away_during_a_migration_stops_the_deployment(environment):
    with load(environment, STATELESS) as visitors, started_again(environment, "postgresql"), held_table(environment, "students") as waits:
        stop = on_host(environment, "data", "systemctl stop postgresql")
        fault = Fault(**MIGRATE, moment="while", condition=waits, command=stop)
        outcome = play_with(environment, fault, lms_version="v5-expand")

    assert_failed(outcome, r"was not deployed: .*?migrations on app1: .*?2026_04_13_000001_add_given_and_family_name", HARMLESS)
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

    assert_failed(outcome, rf"app[12] has no good release before {live}\. It has .*?Deploy a version instead")
    visitors.assert_nobody_noticed()
    assert environment.live_release() == live


def test_a_link_that_leads_nowhere_is_mended_by_a_deployment(environment):
    version = environment.other_version()
    environment.on("app2", "sh", "-c", "cd /srv/lms/backend && rm current && ln -s releases/20200101000000-0000000 current")

    release = environment.deploy(version)

    assert {link for seen in service(environment).values() for link in seen["links"].values()} == {release}


def test_sources_that_were_sent_long_ago_are_still_there(environment):
    """A front end that nobody changes is sent once, and the build of a backend that changes daily tidies up after itself."""
    version = environment.other_version()
    environment.deploy(version)
    environment.push("only-the-backend", version, "backend/resources/views/welcome.blade.php", "</html>", "<!-- changed --></html>")
    grow_old = "find . -name '*.tar' -exec touch --date=2020-01-01 {} +"
    newer = "for place in $(find . -type d); do for number in 1 2 3 4 5 6; do touch $place/$number.tar; done; done"
    environment.on("app1", "sh", "-c", f"cd /srv/lms/build/sources && {grow_old} && {newer}")

    environment.deploy("only-the-backend")


def test_after_all_of_this_a_deployment_goes_unnoticed(environment):
    assert_deploys(environment)
