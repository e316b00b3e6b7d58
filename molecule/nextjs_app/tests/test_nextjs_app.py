"""What an operator notices of the units that run a release's front ends. Deployments are proven in tests/journeys."""

from __future__ import annotations

import pytest
from checks import access_to

RUN = "/srv/lms/frontend/releases/r1/run"


@pytest.fixture(scope="module")
def release(host):
    host.check_output("systemctl start lms-frontend@r1.target")
    host.check_output(
        "for i in $(seq 100); do test -S %s/student.sock && test -S %s/admin.sock && exit 0; sleep 0.1; done; journalctl -n 20; exit 1",
        RUN,
        RUN,
    )
    return host


@pytest.mark.parametrize("name", ["student", "admin"])
def test_one_target_runs_every_front_end_of_a_release_on_its_own_socket(release, name):
    answer = release.check_output("curl --silent --fail --unix-socket %s/%s.sock http://x/", RUN, name)

    assert answer == f"hello world from {name} r1"


def test_no_front_end_listens_on_a_port(release):
    assert "node" not in release.check_output("ss --tcp --listening --numeric --processes --no-header")


def test_only_the_web_servers_group_reaches_the_sockets(release):
    assert access_to(release, RUN) == ("lms-frontend", "www-data", "2750")
    assert release.run("setpriv --reuid nobody --clear-groups curl --silent --unix-socket %s/student.sock http://x/", RUN).failed


def test_the_processes_cannot_write_their_code(release):
    pid = release.check_output("systemctl show --property=MainPID --value lms-student@r1")

    assert release.check_output("stat --format=%%U /proc/%s", pid) == "lms-frontend"
    assert release.run("setpriv --reuid lms-frontend --clear-groups touch /srv/lms/frontend/releases/r1/apps/student/x").failed


def test_a_killed_front_end_comes_back(release):
    release.check_output("systemctl kill --signal=KILL lms-student@r1")

    answer = release.check_output(
        "curl --silent --fail --retry 20 --retry-all-errors --retry-delay 1 --unix-socket %s/student.sock http://x/", RUN
    )

    assert answer == "hello world from student r1"


def test_stopping_a_release_gives_the_last_answer_first(release):
    answer = release.check_output(
        "curl --silent --unix-socket %s/student.sock http://x/slow >/tmp/slow & sleep 0.5;"
        " systemctl stop lms-frontend@r1.target; wait; cat /tmp/slow",
        RUN,
    )

    assert answer == "hello world from student r1"
    assert release.run("systemctl is-active lms-student@r1").stdout.strip() == "inactive"
