"""What an operator does about backups: make them, prove them, and bring back what was lost."""

from __future__ import annotations

import json

import pytest
from environment import Environment, wait_until

REPOSITORY = "/var/backups/lms"
ESSAYS = "/srv/lms/backend/shared/storage/app/essays"
STUDENTS = "select count(*), sum(id) from students"


def listed(environment: Environment, host: str) -> dict[str, list[str]]:
    """Return the states of a host's backups, by their names."""
    info = environment.module(host, "bitflow.lms.backup_info", repository=REPOSITORY)
    names: dict[str, list[str]] = {}
    for backup in info["backups"]:
        names.setdefault(backup["name"], []).append(backup["state"])
    return names


@pytest.fixture(scope="module")
def backed_up(environment: Environment) -> str:
    """Make a full backup of an LMS in which somebody uploaded something, and return what the play said."""
    environment.on("app1", "sh", "-c", f"mkdir -p {ESSAYS}; echo essay > {ESSAYS}/1.txt")
    outcome = environment.play("bitflow.lms.backup", lms_backup_scope="full")
    assert outcome.status == 0, outcome.output[-8000:]
    return outcome.text


def test_a_full_backup_holds_the_database_the_uploads_and_the_environment(environment, backed_up):
    assert listed(environment, "data") == {"lms": ["complete"]}
    assert listed(environment, "app1") == {"environment-app1": ["complete"], "uploads-app1": ["complete"]}
    assert listed(environment, "app2") == {"environment-app2": ["complete"], "uploads-app2": ["complete"]}
    # The key to every encrypted column lies there for nobody to read.
    key = environment.on("app1", "sh", "-c", "sed -n 's/^APP_KEY=//p' /srv/lms/backend/current/.env").strip().strip('"')
    assert key.startswith("base64:")
    assert environment.on("app1", "sh", "-c", f"grep -rlF '{key}' {REPOSITORY} || true") == ""
    assert key not in backed_up


def test_verification_restores_the_database_and_tells_prometheus(environment, backed_up):
    outcome = environment.play("bitflow.lms.verify_backups")

    assert outcome.status == 0, outcome.output[-8000:]
    assert listed(environment, "data") == {"lms": ["verified"]}
    assert listed(environment, "app1")["environment-app1"] == ["verified"]
    assert environment.in_database("select datname from pg_database where datname like 'lms_verify%'") == []

    def told() -> set[str]:
        address = "http://127.0.0.1:9090/api/v1/query"
        query = 'query=lms_backup_last_verified_timestamp_seconds{level="checksum"}'
        answer = environment.on("data", "curl", "--silent", "--fail", "--get", address, "--data-urlencode", query)
        return {series["metric"]["name"] for series in json.loads(answer)["data"]["result"]}

    proven = {"lms", *(f"{kind}-{host}" for kind in ("environment", "uploads") for host in ("app1", "app2"))}
    wait_until(lambda: told() >= proven, "Prometheus knows of the verified backups")


def test_check_mode_shows_a_backup_and_makes_none(environment, backed_up):
    before = listed(environment, "data")

    outcome = environment.play("bitflow.lms.backup", "--check", "--diff")

    assert outcome.status == 0, outcome.output[-8000:]
    assert listed(environment, "data") == before


def test_lost_rows_come_back_by_a_swap_that_has_to_be_confirmed(environment, backed_up):
    before = environment.in_database(STUDENTS)
    environment.in_database("delete from enrolments; delete from students")

    refused = environment.play("bitflow.lms.restore", lms_restore_backup="latest_verified", lms_restore_mode="swap")
    untouched = environment.in_database(STUDENTS)
    outcome = environment.play(
        "bitflow.lms.restore", lms_restore_backup="latest_verified", lms_restore_mode="swap", lms_restore_confirm="lms"
    )

    assert refused.status != 0
    assert "Confirm it with its name: -e lms_restore_confirm=lms" in refused.text
    assert untouched == ["0|"]
    assert outcome.status == 0, outcome.output[-8000:]
    assert environment.in_database(STUDENTS) == before
    # What was there is kept, for whoever was wrong about the loss.
    kept = environment.in_database("select datname from pg_database where datname like 'lms\\_\\_before\\_%'")
    assert len(kept) == 1
    assert environment.answer("/health").status == 200
    environment.in_database(f'drop database "{kept[0]}"')


def test_lost_files_come_back_and_no_file_is_replaced(environment, backed_up):
    environment.on("app1", "sh", "-c", f"rm {ESSAYS}/1.txt; echo new > {ESSAYS}/2.txt")

    outcome = environment.play("bitflow.lms.restore", lms_restore_what="uploads", lms_restore_backup="latest")

    assert outcome.status == 0, outcome.output[-8000:]
    assert environment.on("app1", "sh", "-c", f"cat {ESSAYS}/1.txt {ESSAYS}/2.txt").split() == ["essay", "new"]


def test_a_broken_backup_is_found_told_and_never_restored(environment, backed_up):
    outcome = environment.play("bitflow.lms.backup")
    assert outcome.status == 0, outcome.output[-8000:]
    data = environment.on("data", "sh", "-c", f"ls -t {REPOSITORY}/*/database/lms/*/data* | head -n 1").strip()
    environment.on("data", "sh", "-c", f"printf X | dd of={data} bs=1 seek=5000 conv=notrunc status=none")

    verified = environment.play("bitflow.lms.verify_backups", lms_backup_scope="database")
    restored = environment.play("bitflow.lms.restore", lms_restore_backup=data.split("/")[-2])
    again = environment.play("bitflow.lms.backup")

    assert verified.status != 0
    assert "corrupt" in verified.text
    assert restored.status != 0
    assert again.status == 0, again.output[-8000:]
    states = listed(environment, "data")["lms"]
    assert "corrupt" in states
    assert states[-1] == "complete"


def test_a_whole_lms_comes_back_onto_hosts_that_lost_it(environment, backed_up):
    before = environment.in_database(STUDENTS)
    refused = environment.play("bitflow.lms.disaster_drill", lms_drill_confirm="dev")
    outcome = environment.play("bitflow.lms.backup", lms_backup_scope="full")
    assert outcome.status == 0, outcome.output[-8000:]
    for host in ("app1", "app2"):
        # What is left is the place of the builds, where script/demo put Laravel's own package.
        environment.on(host, "sh", "-c", "systemctl stop 'lms-*' && rm -rf /srv/lms/backend /srv/lms/frontend")
    environment.on("data", "runuser", "-u", "postgres", "--", "dropdb", "--force", "lms")
    provisioned = environment.play("bitflow.lms.provision", "--tags=postgresql,laravel_app,nextjs_app")
    assert provisioned.status == 0, provisioned.output[-8000:]

    drilled = environment.play("bitflow.lms.disaster_drill", lms_drill_confirm="dev")

    assert "A drill is for hosts without an LMS" in refused.text
    assert drilled.status == 0, drilled.output[-8000:]
    assert environment.in_database(STUDENTS) == before
    assert environment.on("app1", "sh", "-c", f"cat {ESSAYS}/1.txt {ESSAYS}/2.txt").split() == ["essay", "new"]
    assert environment.answer("/health").status == 200
