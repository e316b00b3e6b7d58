"""What an operator notices of the redis role."""

from __future__ import annotations

import shlex

from checks import access_to, listening_addresses, service_is_up

PASSWORD = 'test "quoted" password'


def redis(host, *words):
    """Run redis-cli with the password, which never stands in its arguments."""
    return host.run(f"REDISCLI_AUTH={shlex.quote(PASSWORD)} redis-cli {shlex.join(words)}")


def test_redis_runs_and_starts_at_boot(host):
    assert service_is_up(host, "redis-server")


def test_only_loopback_is_served_by_default(host):
    assert listening_addresses(host, 6379) == {"127.0.0.1"}


def test_a_client_without_the_password_is_refused(host):
    assert "NOAUTH" in host.run("redis-cli get x").stdout


def test_a_client_with_the_password_is_served(host):
    assert redis(host, "ping").stdout.strip() == "PONG"


def test_the_configuration_is_private(host):
    assert access_to(host, "/etc/redis/redis.conf") == ("redis", "redis", "0640")


def test_a_queued_job_survives_a_restart(host):
    redis(host, "rpush", "queue", "job")

    host.check_output("systemctl restart redis-server")

    assert redis(host, "lpop", "queue").stdout.strip() == "job"
