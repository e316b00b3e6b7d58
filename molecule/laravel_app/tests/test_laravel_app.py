"""What an operator notices of a host that waits for its first Laravel release. Deployments are proven in tests/journeys."""

from __future__ import annotations

import pytest
from checks import access_to


@pytest.mark.parametrize("user", ["lms", "lms-deploy"])
def test_nobody_can_log_in_as_the_applications_users(host, user):
    assert host.user(user).shell == "/usr/sbin/nologin"
    assert host.user(user).group == "lms"


def test_the_running_application_cannot_write_its_releases(host):
    assert access_to(host, "/srv/lms/backend/releases") == ("lms-deploy", "lms", "0755")
    assert host.run("setpriv --reuid lms --regid lms --clear-groups touch /srv/lms/backend/releases/x").failed


@pytest.mark.parametrize("unit", ["lms-workers.target", "lms-schedule.timer"])
def test_workers_and_scheduler_start_at_boot(host, unit):
    assert host.service(unit).is_enabled
    assert host.service(unit).is_running


@pytest.mark.parametrize("number", [1, 2])
def test_without_a_release_the_workers_wait_and_do_not_fail(host, number):
    state = host.check_output("systemctl show --property=ActiveState,ConditionResult --value lms-queue@%s", str(number)).split()

    assert state == ["inactive", "no"]


def test_without_a_release_the_scheduler_does_not_fail(host):
    assert host.run("systemctl start lms-schedule.service").succeeded
    assert not host.run("systemctl is-failed lms-schedule.service").succeeded


@pytest.mark.parametrize("opener", ["lms", "lms-deploy"])
def test_a_log_that_one_user_opened_takes_lines_of_the_other(host, opener):
    log = f"/srv/lms/backend/shared/storage/logs/{opener}.log"

    for user in [opener, "lms", "lms-deploy"]:
        host.check_output("setpriv --reuid %s --regid lms --clear-groups sh -c 'umask 027; echo %s >>%s'", user, user, log)

    assert host.file(log).content_string.split() == [opener, "lms", "lms-deploy"]
    assert host.run("setpriv --reuid www-data --regid www-data --clear-groups cat %s", log).failed
