"""What an operator and a visitor notice of the PHP-FPM instances. The releases here are some lines of PHP, not Laravel."""

from __future__ import annotations

import json
import shlex
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from checks import apply_role, ask_php_fpm

ROOT = "/srv/lms/backend"
OLD, NEW = "20261101120000-aaaaaaa", "20261102120000-bbbbbbb"
INDEX = """<?php
echo json_encode([
    'release' => getenv('RELEASE'),
    'mark' => file_get_contents(__DIR__ . '/../mark'),
    'path' => __DIR__,
    'user' => posix_getpwuid(posix_geteuid())['name'],
    'writes' => array_map(fn ($name) => @file_put_contents(dirname(__DIR__) . '/' . $name, 'x') === 1, ['mark', 'storage/x']),
    'preloaded' => function_exists('preloaded'),
    'memory_limit' => ini_get('memory_limit'),
    'secrets' => [@file_get_contents(posix_getpwuid(0)['dir'] . '/.profile'), is_readable('/proc/1/cmdline')],
]);
"""
SLOW = "<?php sleep(1); echo getenv('RELEASE');"


def unit(release):
    return f"lms-fpm@{release}.service"


def socket(release):
    return f"{ROOT}/releases/{release}/run/fpm.sock"


def ask(host, release, script="index", user="www-data"):
    return ask_php_fpm(host, socket(release), f"{ROOT}/live/release/public/{script}.php", user)


def told(host, release):
    answer = ask(host, release)
    assert answer.rc == 0, answer.stderr
    return json.loads(answer.stdout)


def is_active(host, release):
    return host.run("systemctl is-active %s", unit(release)).stdout.strip() == "active"


def make_release(host, release, files):
    """Lay a release out as a deployment does, and forget an earlier instance of it."""
    directory = f"{ROOT}/releases/{release}"
    writes = [
        f"printf %s {shlex.quote(content)} > {directory}/{name}"
        for name, content in {"mark": release, "public/index.php": INDEX, "public/slow.php": SLOW, **files}.items()
    ]
    commands = [
        f"systemctl disable --quiet --now {unit(release)}; rm -rf {directory}",
        f"install -d -o lms-deploy -g lms {directory}/public && install -d -o lms -g lms {directory}/storage",
        *writes,
    ]
    host.check_output("sh -c %s", " && ".join(commands))


@pytest.fixture(autouse=True)
def releases(host):
    """Two releases whose instances run; the old one is live."""
    make_release(host, OLD, {})
    make_release(host, NEW, {"preload.php": "<?php function preloaded() {}"})
    host.check_output(f"systemctl enable --now {unit(OLD)} && systemctl start {unit(NEW)}")
    host.check_output(f"ln -sfn releases/{OLD} {ROOT}/current")


@pytest.mark.parametrize("release", [OLD, NEW])
def test_every_instance_sees_its_own_release_at_the_same_path(host, release):
    found = told(host, release)

    assert (found["release"], found["mark"], found["path"]) == (release, release, f"{ROOT}/live/release/public")


def test_the_application_is_shut_in(host):
    found = told(host, OLD)

    assert (found["user"], found["writes"], found["secrets"]) == ("lms", [False, True], [False, False])
    assert host.check_output("ps -o user= -p $(systemctl show --property=MainPID --value %s)", unit(OLD)).strip() == "lms"
    assert host.run("systemd-analyze security --threshold=20 --no-pager %s", unit(OLD)).rc == 0


def test_only_the_web_server_reaches_the_socket(host):
    assert ask(host, OLD, user="nobody").rc != 0
    assert ask(host, OLD, user="lms-deploy").rc != 0


def test_directives_of_the_application_win_over_those_of_the_host(host):
    assert told(host, OLD)["memory_limit"] == "99M"


def test_a_release_is_preloaded_and_one_without_the_script_starts_too(host):
    assert [told(host, release)["preloaded"] for release in (OLD, NEW)] == [False, True]


def test_a_preload_script_that_fails_keeps_only_its_own_release_from_starting(host):
    make_release(host, NEW, {"preload.php": "<?php no_such_function();"})

    assert host.run("systemctl start %s", unit(NEW)).rc != 0
    host.check_output("systemctl stop %s", unit(NEW))
    assert is_active(host, OLD)


def test_the_distributions_php_fpm_is_off(host):
    version = host.check_output("php -r 'echo PHP_MAJOR_VERSION, chr(46), PHP_MINOR_VERSION;'")

    assert not host.service(f"php{version}-fpm").is_running
    assert not host.service(f"php{version}-fpm").is_enabled


def test_a_crash_does_not_end_an_instance(host):
    host.check_output("systemctl kill --signal=KILL --kill-whom=main %s", unit(OLD))
    host.check_output("timeout 30 sh -c 'sleep 0.2; until systemctl is-active %s; do sleep 0.2; done'", unit(OLD))

    assert told(host, OLD)["release"] == OLD


def test_fpm_reload_no_502(host):
    with ThreadPoolExecutor() as executor:
        request = executor.submit(ask, host, OLD, "slow")
        time.sleep(0.5)
        host.check_output("systemctl reload %s", unit(OLD))

        assert request.result().stdout == OLD
    assert told(host, OLD)["release"] == OLD


def crowd(host, executor, count=5):
    """Ask for more than the two processes can work on at once: the others wait in the queue."""
    requests = [executor.submit(ask, host, OLD, "slow") for _request in range(count)]
    time.sleep(0.7)
    return requests


def test_settling_waits_for_the_requests_that_run_and_for_those_in_the_queue(host):
    with ThreadPoolExecutor() as executor:
        requests = crowd(host, executor)
        host.check_output(f"ln -sfn releases/{NEW} {ROOT}/current")
        run = apply_role(host, "laravel_app", tasks="settle")

        assert run.returncode == 0, run.stdout
        assert [request.result().stdout for request in requests] == [OLD] * 5
    assert (is_active(host, OLD), is_active(host, NEW)) == (False, True)
    assert not host.service(unit(OLD)).is_enabled


def test_without_the_waiting_those_in_the_queue_are_lost(host):
    with ThreadPoolExecutor() as executor:
        requests = crowd(host, executor)
        host.check_output("systemctl stop %s", unit(OLD))

        assert sorted(request.result().stdout for request in requests) != [OLD] * 5


def test_settling_never_stops_the_live_instance(host):
    run = apply_role(host, "laravel_app", tasks="settle")

    assert run.returncode == 0, run.stdout
    assert (is_active(host, OLD), is_active(host, NEW)) == (True, False)
