"""What an operator notices of replicas and Sentinels: the primary is lost, and the group goes on."""

from __future__ import annotations

import shlex
import time

import pytest
from checks import access_to, apply_role, converge, listening_addresses, said, service_is_up

PASSWORD = "test-password#1"
SERVERS = {"one": 6381, "two": 6382, "three": 6383}
SENTINELS = {"one": 26381, "two": 26382, "three": 26383}


@pytest.fixture(scope="module")
def flavour(host):
    return host.backend.get_hostname().rsplit("-", 1)[1]


def ask(host, flavour, port, *words, commands=""):
    """Run the client with the password, which never stands in its arguments."""
    tls = "--tls --cacert /etc/ssl/lms.pem " if flavour == "valkey" else ""
    program = f"REDISCLI_AUTH={shlex.quote(PASSWORD)} {flavour}-cli {tls}-p {port} {shlex.join(words)}"
    return host.run(f"printf %s {shlex.quote(commands)} | {program}").stdout.strip()


def names(flavour):
    """Return the names of the group's servers, which are those of the Sentinels too."""
    return list(SERVERS) if flavour == "redis" else ["one", "two"]


def some(*servers):
    """Return the variables of a host that has these servers of the group and a Sentinel, as if the others were on other hosts."""
    instances = [{"name": "one", "port": SERVERS["one"]}] + [
        {"name": name, "port": port, "replica_of": {"address": "127.0.0.1", "port": SERVERS["one"]}}
        for name, port in SERVERS.items()
        if name != "one"
    ]
    return {
        "redis_instances": [instance for instance in instances if instance["name"] in servers],
        "redis_sentinels": [{"name": "one", "port": SENTINELS["one"]}],
    }


def primary(host, flavour, sentinel="one"):
    """Return the name of the server that a Sentinel calls the primary."""
    port = int(ask(host, flavour, SENTINELS[sentinel], "sentinel", "get-master-addr-by-name", "lms").splitlines()[1])
    return next(name for name, own in SERVERS.items() if own == port)


def role(host, flavour, name):
    """Return what a server says that it is."""
    return (ask(host, flavour, SERVERS[name], "role").splitlines() or [""])[0]


def eventually(question, answer, seconds=60):
    """Wait until the question has the answer."""
    end = time.monotonic() + seconds
    while (last := question()) != answer and time.monotonic() < end:
        time.sleep(0.5)
    assert last == answer


@pytest.fixture(scope="module")
def failed_over(host, flavour):
    """Kill the primary as a lost host would be, and return who was and who is the primary."""
    before = primary(host, flavour)
    replicas = len(names(flavour)) - 1
    assert ask(host, flavour, SERVERS[before], commands=f"set kept yes\nwait {replicas} 5000") == f"OK\n{replicas}"
    host.check_output(f"systemctl kill --signal=KILL {flavour}-server@{before} && systemctl stop {flavour}-server@{before}")
    eventually(lambda: primary(host, flavour) != before, True)
    after = primary(host, flavour)
    eventually(lambda: role(host, flavour, after), "master")
    yield before, after
    host.check_output(f"systemctl start {flavour}-server@{before}")


def test_every_server_and_sentinel_runs_and_starts_at_boot(host, flavour):
    for name in names(flavour):
        assert service_is_up(host, f"{flavour}-server@{name}")
        assert service_is_up(host, f"{flavour}-sentinel@{name}")


def test_the_units_of_the_packages_rest(host, flavour):
    for unit in (f"{flavour}-server", f"{flavour}-sentinel"):
        assert not host.service(unit).is_running
        assert not host.service(unit).is_enabled
    assert listening_addresses(host, 6379) == set()


def test_the_units_are_as_closed_as_the_distributions(host, flavour):
    for unit in (f"{flavour}-server@one", f"{flavour}-sentinel@one"):
        assert host.run(f"systemd-analyze security --no-pager --threshold=15 {unit}").rc == 0


def test_nobody_comes_in_without_the_password(host, flavour):
    tls = "--tls --cacert /etc/ssl/lms.pem" if flavour == "valkey" else ""
    for port in (SERVERS["one"], SENTINELS["one"]):
        assert "NOAUTH" in host.run(f"{flavour}-cli {tls} -p {port} ping").stdout


def test_with_tls_nobody_comes_in_without_it(host, flavour):
    if flavour != "valkey":
        pytest.skip("this group has no TLS")

    assert "PONG" not in host.run(f"REDISCLI_AUTH={shlex.quote(PASSWORD)} timeout 5 valkey-cli -p 6381 ping").stdout
    assert ask(host, flavour, 6381, "ping") == "PONG"


def test_a_cache_makes_room_and_writes_no_file(host, flavour):
    if flavour != "redis":
        pytest.skip("this group has no cache beside it")

    answers = [
        ask(host, flavour, 6384, "config", "get", name).splitlines()[1:] for name in ("maxmemory-policy", "appendonly", "save", "maxmemory")
    ]

    assert [*map("".join, answers)] == ["allkeys-lru", "no", "", str(64 * 1024 * 1024)]


def test_the_first_primary_has_replicas_and_a_quorum_watches(host, flavour):
    group = names(flavour)

    assert primary(host, flavour) == "one"
    assert [role(host, flavour, name) for name in group] == ["master"] + ["slave"] * (len(group) - 1)
    assert ask(host, flavour, SENTINELS["two"], "sentinel", "ckquorum", "lms").startswith(f"OK {len(group)} usable Sentinels")


def test_what_servers_and_sentinels_rewrite_is_private(host, flavour):
    assert access_to(host, f"/etc/{flavour}/sentinel-one.secret") == ("root", flavour, "0640")
    for path in (f"/var/lib/{flavour}/two/rewritten.conf", f"/var/lib/{flavour}/sentinel-one/rewritten.conf"):
        owner, group, mode = access_to(host, path)
        assert (owner, group, mode[-1]) == (flavour, flavour, "0")


def test_no_password_is_in_an_argument_or_in_the_journal(host):
    assert PASSWORD not in host.check_output("ps -e -o args")
    assert PASSWORD not in host.check_output("journalctl --output cat")


def test_a_replica_takes_over_when_the_primary_is_killed(host, flavour, failed_over):
    before, after = failed_over

    assert after != before
    assert ask(host, flavour, SERVERS[after], "get", "kept") == "yes"
    assert ask(host, flavour, SERVERS[after], "set", "later", "yes") == "OK"
    assert len({primary(host, flavour, name) for name in names(flavour)}) == 1


def test_the_old_primary_comes_back_as_a_replica(host, flavour, failed_over):
    before, _after = failed_over

    host.check_output(f"systemctl start {flavour}-server@{before}")

    eventually(lambda: role(host, flavour, before), "slave")
    eventually(lambda: ask(host, flavour, SERVERS[before], "get", "later"), "yes")


def test_a_second_run_neither_undoes_the_failover_nor_changes_anything(host, flavour, failed_over):
    before, after = failed_over
    eventually(lambda: role(host, flavour, before), "slave")

    run = converge(host, **some(before, after))

    assert run.returncode == 0, said(run)
    assert "changed=0" in said(run)
    assert primary(host, flavour) == after
    assert [role(host, flavour, name) for name in (before, after)] == ["slave", "master"]


def test_a_changed_setting_restarts_both_and_the_group_still_has_a_primary(host, flavour, failed_over):
    before, after = failed_over

    run = converge(host, **some(before, after), redis_settings={"maxclients": 400})

    assert run.returncode == 0, said(run)
    eventually(lambda: role(host, flavour, primary(host, flavour)), "master")
    eventually(lambda: ask(host, flavour, SERVERS[before], "get", "later"), "yes")
    assert ask(host, flavour, SERVERS[before], "config", "get", "maxclients").split()[1] == "400"


def test_a_server_with_data_of_its_own_is_not_made_a_replica(host, flavour):
    if flavour != "redis":
        pytest.skip("does not differ between the flavours: tested with Redis")
    replica = {"name": "cache", "port": 6384, "replica_of": {"address": "127.0.0.1", "port": 6381}}
    assert ask(host, flavour, 6384, "set", "mine", "yes") == "OK"

    run = apply_role(host, "redis", tasks="join", redis_instances=[replica], redis_sentinels=[], redis_sentinel_primary={})

    assert "redis-server@cache is a primary with 1 keys and 0 replicas. As a replica of 127.0.0.1 it would lose them." in said(run)
    assert ask(host, flavour, 6384, "get", "mine") == "yes"


def test_without_the_guard_the_data_would_be_gone(host, flavour):
    if flavour != "redis":
        pytest.skip("does not differ between the flavours: tested with Redis")
    assert ask(host, flavour, 6384, "set", "mine", "yes") == "OK"

    ask(host, flavour, 6384, "replicaof", "127.0.0.1", str(SERVERS[primary(host, flavour)]))

    eventually(lambda: ask(host, flavour, 6384, "get", "mine"), "")
