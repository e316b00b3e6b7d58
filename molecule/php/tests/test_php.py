"""What an operator notices of the php role."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from checks import access_to, apply_role, ask_php_fpm, service_is_up

CODE = "/srv/code"
SOCKET = "/run/php/lms.sock"
REPORTS = "/run/php/reports-of-lms.sock"
SLOW = "<?php sleep(2); echo 'done';"


@pytest.fixture(scope="module")
def version(host):
    return host.check_output("php -r 'echo PHP_MAJOR_VERSION, chr(46), PHP_MINOR_VERSION;'")


@pytest.fixture(scope="module")
def unit(version):
    return f"php{version}-fpm"


@pytest.fixture(scope="module")
def pools(version):
    return f"/etc/php/{version}/fpm/php-fpm.conf"


def script(host, name, code):
    """Write a script as a deploy does: it is not the runtime user's. OPcache never looks twice, so each has its own name."""
    host.check_output("install -d -m 0755 %s", CODE)
    host.check_output("printf %%s %s > %s", code, f"{CODE}/{name}.php")
    return f"{CODE}/{name}.php"


def value(host, name, expression, socket=SOCKET, user="www-data"):
    """Return the value of a PHP expression in PHP-FPM."""
    answer = ask_php_fpm(host, socket, script(host, name, f"<?php echo json_encode({expression});"), user)
    assert answer.rc == 0, answer.stderr
    return answer.stdout


def cli_value(host, expression):
    """Return the value of a PHP expression on the command line."""
    return host.check_output("php -r %s", f"echo json_encode({expression});")


def still_answers(host):
    return ask_php_fpm(host, SOCKET, script(host, "alive", "<?php echo 'alive';")).stdout == "alive"


@contextmanager
def edited(host, unit, *edits):
    """Edit files behind the role's back with sed, then put them back and start afresh."""
    for path, expression in edits:
        host.check_output("sed --in-place=.before %s %s", expression, path)
    host.check_output("systemctl daemon-reload")
    try:
        yield
    finally:
        for path, _edit in edits:
            host.check_output("mv %s.before %s", path, path)
        host.check_output("systemctl daemon-reload && systemctl reset-failed %s && systemctl restart %s", unit, unit)


def reload_during_a_request(host, unit):
    """Reload PHP-FPM while it works on a request, and return the client's result."""
    path = script(host, "slow", SLOW)
    with ThreadPoolExecutor() as executor:
        request = executor.submit(ask_php_fpm, host, SOCKET, path)
        time.sleep(1)
        host.check_output("systemctl reload %s", unit)
        return request.result()


def test_php_fpm_runs_and_starts_at_boot(host, unit):
    assert service_is_up(host, unit)


def test_a_script_runs_as_the_user_of_its_pool(host):
    name = "posix_getpwuid(posix_geteuid())['name']"

    assert value(host, "user", name) == '"lms"'
    assert value(host, "user", name, REPORTS, user="lms") == '"reports"'


def test_only_the_web_server_and_the_pool_itself_reach_the_socket(host):
    assert access_to(host, SOCKET) == ("lms", "www-data", "0660")
    assert ask_php_fpm(host, SOCKET, script(host, "alive", "<?php echo 'alive';"), user="nobody").rc != 0


def test_the_pool_of_the_distribution_is_gone(host):
    sockets = host.check_output("ss --listening --family=unix --no-header").split()

    assert {word for word in sockets if word.startswith("/run/php/")} == {SOCKET, REPORTS}


def test_a_static_pool_keeps_its_processes(host):
    assert host.check_output("pgrep --count --full '^php-fpm: pool lms'") == "3"


def test_code_cannot_be_written_by_the_runtime_user(host):
    assert value(host, "write", "@file_put_contents(__FILE__, '')") == "false"


def test_extensions_are_there_under_their_own_names(host):
    wanted = "array_map('extension_loaded', ['ctype', 'pdo_pgsql', 'redis', 'simplexml', 'Zend OPcache'])"

    assert value(host, "extensions", wanted) == cli_value(host, wanted) == "[true,true,true,true,true]"


def test_settings_reach_both(host):
    names = "array_map('ini_get', ['realpath_cache_size', 'expose_php', 'opcache.validate_timestamps', 'opcache.memory_consumption'])"

    assert value(host, "settings", names) == cli_value(host, names) == '["4096K","","","256"]'


def test_settings_differ_where_they_must(host):
    names = "array_map('ini_get', ['memory_limit', 'opcache.enable_cli'])"

    assert value(host, "limits", names, REPORTS, user="lms") == '["300M","0"]'
    assert cli_value(host, names) == '["-1","1"]'


def test_an_expression_is_understood(host):
    assert cli_value(host, "error_reporting() === (E_ALL & ~E_DEPRECATED)") == "true"


def test_a_pool_may_have_settings_of_its_own(host):
    assert value(host, "limit", "ini_get('memory_limit')") == '"100M"'


def test_a_process_has_the_environment_of_its_pool_and_no_other(host):
    assert value(host, "environment", "[getenv('GREETING'), getenv('INVOCATION_ID')]") == r'["a \"quoted\" $value;",false]'


def test_the_pool_tells_its_status(host):
    assert "process manager:      static" in ask_php_fpm(host, SOCKET, "/status").stdout


def test_a_reload_lets_a_request_end(host, unit):
    assert reload_during_a_request(host, unit).stdout == "done"


def test_without_the_timeout_a_reload_kills_the_request(host, unit, pools):
    with edited(host, unit, (pools, "/process_control_timeout/d")):
        host.check_output("systemctl restart %s", unit)

        # On a busy machine the reload may come before the request, or after it.
        assert any(reload_during_a_request(host, unit).stdout == "" for _time in range(3))


def test_a_reload_with_a_broken_pool_is_refused(host, unit, pools):
    with edited(host, unit, (pools, "$ a no_such_directive = 1")):
        reload = host.run("systemctl reload %s", unit)

        assert reload.rc != 0
        assert still_answers(host)


def test_without_the_guard_a_broken_pool_ends_php_fpm_unsaid(host, unit, pools):
    guard = f"/etc/systemd/system/{unit}.service.d/reload.conf"

    with edited(host, unit, (pools, "$ a no_such_directive = 1"), (guard, "/--test/d")):
        reload = host.run("systemctl reload %s", unit)
        time.sleep(1)

        assert reload.rc == 0
        assert not still_answers(host)


def test_a_pool_without_its_user_is_refused_before_it_lands(host, version, pools):
    before = host.file(pools).md5sum

    run = apply_role(host, "php", tasks="configure", php_version=version, php_fpm_pools=[{"name": "lms", "user": "nobody-there"}])

    assert "[pool lms] cannot get uid for user 'nobody-there'" in run.stdout
    assert host.file(pools).md5sum == before


def test_a_version_that_cannot_be_had_is_refused_with_those_that_can(host, version):
    run = apply_role(host, "php", tasks="install", php_version="7.0")

    assert f"php_version 7.0 is not in the package lists of this host. They have: {version}." in run.stdout
