"""What an operator notices of the redis role."""

from __future__ import annotations

import shlex

import pytest
from checks import access_to, answers, converge, listening_addresses, once, said, service_is_up

PASSWORD = 'test "quoted" password'
READER = {"name": "reader", "password": "a third test", "commands": ["+get"], "keys_allowed": ["lms:*"]}


def redis(host, *words, password=PASSWORD, user="default"):
    """Run redis-cli with the password, which never stands in its arguments."""
    return host.run(f"REDISCLI_AUTH={shlex.quote(password)} redis-cli --user {user} {shlex.join(words)}")


def setting(host, name):
    """Return the value of a setting of the running server."""
    return redis(host, "config", "get", name).stdout.splitlines()[1]


def process(host):
    """Return the number of the server's process."""
    return host.check_output("systemctl show --property MainPID --value redis-server")


def checksums(host):
    return host.check_output("md5sum /etc/redis/redis.conf /etc/redis/redis.acl /etc/redis/redis.secret")


def test_redis_runs_and_starts_at_boot(host):
    assert service_is_up(host, "redis-server")


def test_only_loopback_is_served_by_default(host):
    assert listening_addresses(host, 6379) == {"127.0.0.1"}


def test_a_client_without_the_password_is_refused(host):
    assert "NOAUTH" in host.run("redis-cli get x").stdout


def test_a_client_with_the_password_is_served(host):
    assert redis(host, "ping").stdout.strip() == "PONG"


def test_a_user_may_do_what_was_allowed_and_nothing_else(host):
    assert "redis_version" in redis(host, "info", "server", password="another test", user="exporter").stdout
    assert "NOPERM" in redis(host, "get", "x", password="another test", user="exporter").stdout


@pytest.mark.parametrize("name", ["redis.conf", "redis.acl", "redis.secret"])
def test_the_configuration_is_private(host, name):
    owner = "redis" if name == "redis.conf" else "root"

    assert access_to(host, f"/etc/redis/{name}") == (owner, "redis", "0640")


def test_no_password_of_a_client_is_on_the_disk_or_in_the_log(host):
    for secret in ("another test", PASSWORD):
        found = host.run("grep --recursive --files-with-matches --fixed-strings %s /etc/redis /var/lib/redis /var/log/redis", secret)
        assert found.stdout == ""
        assert secret not in host.check_output("journalctl --output cat")


def test_a_queue_refuses_a_write_rather_than_to_lose_a_job_and_keeps_what_it_has(host):
    assert [setting(host, name) for name in ("maxmemory-policy", "appendonly", "appendfsync")] == ["noeviction", "yes", "everysec"]


def test_the_limit_is_a_share_of_the_memory(host):
    assert setting(host, "maxmemory") == str(500 * 1024 * 1024)


def test_a_queued_job_survives_a_restart(host):
    redis(host, "rpush", "queue", "job")

    host.check_output("systemctl restart redis-server")

    assert redis(host, "lpop", "queue").stdout.strip() == "job"


def test_the_unit_stays_as_closed_as_the_distributions(host):
    assert host.run("systemd-analyze security --no-pager --threshold=15 redis-server").rc == 0


def test_redis_cannot_write_to_its_configuration(host):
    assert "/etc" not in host.check_output("systemctl show --property ReadWritePaths --value redis-server")


def test_what_redis_rewrites_does_not_win_over_the_role(host):
    assert redis(host, "config", "set", "maxclients", "77").stdout.strip() == "OK"
    assert redis(host, "config", "rewrite").stdout.strip() == "OK"

    host.check_output("systemctl restart redis-server")

    assert setting(host, "maxclients") == "500"


def test_what_is_refused_is_named_and_leaves_all_as_it_was(host):
    before = checksums(host), process(host)
    # A folder of root alone: Redis may not read the key.
    certificate, key = "/etc/ssl/private/lms.pem", "/etc/ssl/private/lms.key"
    request = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lms.test -out {certificate} -keyout {key}"
    host.check_output(f"{request} 2>/dev/null")
    refused = {
        # By Redis itself, which reads each file before it lands.
        "directive": ({"redis_settings": {"maxmemroy": "1gb"}}, ">>> 'maxmemroy 1gb'"),
        "user": ({"redis_users": [{**READER, "commands": ["+nosuch"]}]}, "Error in applying operation '+nosuch'"),
        "key": ({"redis_tls": {"certificate": certificate, "key": key, "authority": certificate}}, "Failed to configure TLS"),
        # By the role, which knows what cannot be.
        "use": ({"redis_use": "archive"}, "value of redis_use must be one of: queue, session, cache"),
        "setting": ({"redis_settings": {"requirepass": "x"}}, "redis_settings may not hold requirepass: the role sets that itself."),
        "share": ({"redis_memory_share": 2}, "redis_memory_share is 2. It is a part of the host's memory"),
        "cluster": ({"redis_cluster_nodes": [{"address": "192.0.2.1", "port": 7001}]}, "redis_cluster_nodes has 1 nodes."),
    }
    # Debian 13 has both flavours.
    if host.system_info.codename == "bookworm":
        refused["flavour"] = {"redis_flavour": "valkey"}, "redis_flavour valkey is not in this distribution. It has: redis."

    answer = answers(host, "redis", {name: variables for name, (variables, _message) in refused.items()})

    for name, (_variables, message) in refused.items():
        assert message in answer[name].failure
        assert answer[name].changed == 0
    assert READER["password"] not in answer["user"].failure
    assert (checksums(host), process(host)) == before
    assert redis(host, "ping").stdout.strip() == "PONG"


# What follows changes the server. Each test says what it begins with.


def test_a_restart_that_was_lost_is_made_up_for(host):
    host.check_output("sed -i 's/^maxclients .*/maxclients 400/' /etc/redis/redis.conf && systemctl restart redis-server")
    host.check_output("sed -i 's/^maxclients .*/maxclients 500/' /etc/redis/redis.conf")
    assert setting(host, "maxclients") == "400"

    run = converge(host)

    assert run.returncode == 0, said(run)
    assert setting(host, "maxclients") == "500"


def test_a_new_user_comes_in_without_a_restart(host):
    before = process(host)

    run = converge(host, redis_users=[READER])

    assert run.returncode == 0, said(run)
    assert redis(host, "get", "lms:x", password=READER["password"], user="reader").stdout.strip() == ""
    assert "NOPERM" in redis(host, "get", "x", password=READER["password"], user="reader").stdout
    assert "WRONGPASS" in redis(host, "ping", password="another test", user="exporter").stderr
    assert process(host) == before


def test_a_new_password_is_taken_up(host):
    run = converge(host, redis_password="new test")

    assert run.returncode == 0, said(run)
    assert redis(host, "ping", password="new test").stdout.strip() == "PONG"
    assert "WRONGPASS" in redis(host, "ping").stderr
    assert "new test" not in said(run)


def test_a_port_that_is_held_by_another_is_named(host):
    once(host)
    host.check_output("systemd-run --quiet --unit=squatter python3 -m http.server --bind 127.0.0.1 6390")
    host.check_output("timeout 20 sh -c 'until ss --tcp --listening --no-header --numeric sport = :6390 | grep -q .; do sleep 0.2; done'")

    run = converge(host, redis_port=6390)

    assert "redis-server does not start. Its last words:" in said(run)
    assert "Address already in use" in said(run)
