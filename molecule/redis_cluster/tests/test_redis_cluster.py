"""What an operator notices of a Redis cluster: it is there, it survives a node, and it takes a lost one back."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest
from checks import apply_role, converge, said, service_is_up

PASSWORD = 'test "quoted" password'
NODES = {"one": 7001, "two": 7002, "three": 7003, "four": 7004, "five": 7005, "six": 7006}
# What Laravel does to take a job from a queue: it moves it from one key to another in one step.
MOVE = "local job = redis.call('lpop', KEYS[1]); if job then redis.call('zadd', KEYS[2], 1, job) end; return job"


def ask(host, name, *words, commands=""):
    """Speak with a node as a client of the cluster does, the password not among the arguments."""
    program = f"REDISCLI_AUTH={shlex.quote(PASSWORD)} redis-cli -c -p {NODES[name]} {shlex.join(words)}"
    return host.run(f"printf %s {shlex.quote(commands)} | {program}").stdout.strip()


def state(host, name="one"):
    """Return what a node says of the cluster."""
    return dict(line.split(":") for line in ask(host, name, "cluster", "info").split() if ":" in line)


def roles(host, name="two"):
    """Return each healthy node's role, as another node sees them."""
    found = {}
    for line in ask(host, name, "cluster", "nodes").splitlines():
        _number, address, flags, *_others = line.split()
        if "fail" not in flags:
            found[int(address.split("@")[0].split(":")[1])] = "master" if "master" in flags else "slave"
    return {node: found[port] for node, port in NODES.items() if port in found}


def eventually(question, answer, seconds=60):
    """Wait until the question has the answer."""
    end = time.monotonic() + seconds
    while (last := question()) != answer and time.monotonic() < end:
        time.sleep(0.5)
    assert last == answer


def some(*nodes):
    """Return the variables of a host that has these nodes, as if the others were on other hosts."""
    return {"redis_instances": [{"name": name, "port": NODES[name]} for name in nodes]}


def whole(host, name="one"):
    """Say whether a node sees a working cluster in which nothing fails."""
    seen = state(host, name)
    return (seen.get("cluster_state"), seen.get("cluster_known_nodes"), len(roles(host, name)))


def test_the_cluster_has_three_shards_with_a_replica_each(host):
    assert all(service_is_up(host, f"redis-server@{name}") for name in NODES)
    assert whole(host) == ("ok", "6", 6)
    assert sorted(roles(host).values()) == ["master"] * 3 + ["slave"] * 3
    assert state(host)["cluster_slots_ok"] == "16384"


def test_a_queue_with_a_hash_tag_works(host):
    ask(host, "one", "rpush", "queues:{default}", "job")

    assert ask(host, "one", "eval", MOVE, "2", "queues:{default}", "queues:{default}:reserved") == "job"


def test_a_queue_without_a_hash_tag_does_not(host):
    assert "CROSSSLOT" in ask(host, "one", "eval", MOVE, "2", "queues:default", "queues:default:reserved")


@pytest.fixture(scope="module")
def laravel(host):
    """Bring Laravel's queue to the host, and return what runs it with the name of a queue."""
    packages = "php-cli php-redis php-illuminate-queue php-illuminate-redis"
    host.check_output(f"DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends {packages}")
    script = (Path(__file__).parents[1] / "queue.php").read_text()
    return lambda name: host.run("printf %%s %s > /tmp/queue.php && printf %%s %s | php /tmp/queue.php %s", script, PASSWORD, name)


def test_laravel_works_on_the_cluster_with_a_hash_tag_in_the_name_of_the_queue(laravel):
    run = laravel("{default}")

    assert run.stdout == "lesson\n", run.stdout + run.stderr


def test_laravel_does_not_without_one(laravel):
    run = laravel("default")

    assert "All keys do not map to the same slot" in run.stdout + run.stderr
    assert "lesson" not in run.stdout


def test_the_units_are_as_closed_as_the_distributions(host):
    assert host.run("systemd-analyze security --no-pager --threshold=15 redis-server@one").rc == 0


def test_a_replica_takes_over_when_a_node_is_lost_and_the_node_comes_back(host):
    lost = next(name for name, role in roles(host).items() if role == "master" and name != "two")
    # One key of each shard, and nothing is lost that a replica has.
    for key in ("a", "b", "c"):
        assert ask(host, "two", commands=f"set {key} kept\nwait 1 5000").endswith("OK\n1")
    host.check_output(f"systemctl kill --signal=KILL redis-server@{lost} && systemctl stop redis-server@{lost}")
    try:
        eventually(lambda: lost in roles(host), False)
        eventually(lambda: sorted(roles(host).values()).count("master"), 3)
        eventually(lambda: state(host, "two")["cluster_state"], "ok")
        assert [ask(host, "two", "get", key) for key in ("a", "b", "c")] == ["kept"] * 3
    finally:
        host.check_output(f"systemctl start redis-server@{lost}")

    eventually(lambda: roles(host).get(lost), "slave")


def test_a_second_run_leaves_the_roles_as_the_failover_made_them(host):
    eventually(lambda: whole(host, "two"), ("ok", "6", 6))
    before = roles(host)
    assert before["one"] == "slave"
    promoted = next(name for name, role in before.items() if role == "master" and name not in ("two", "three"))

    run = converge(host, **some("one", promoted))

    assert run.returncode == 0, said(run)
    assert "changed=0" in said(run)
    assert roles(host) == before


def test_a_node_that_lost_its_disk_is_taken_in_again(host):
    lost = next(name for name, role in roles(host).items() if role == "slave" and name not in ("one", "two"))
    host.check_output(f"systemctl stop redis-server@{lost} && rm -r /var/lib/redis/{lost}/*")
    eventually(lambda: lost in roles(host), False)

    run = converge(host, **some("one", lost))

    assert run.returncode == 0, said(run)
    eventually(lambda: whole(host, "two"), ("ok", "6", 6))
    # The others learn of it one after the other.
    eventually(lambda: roles(host).get(lost), "slave")


def test_a_node_that_does_not_answer_is_named(host):
    host.check_output("systemctl stop redis-server@six")

    run = apply_role(host, "redis", tasks="join", **some("one"))

    assert "These nodes of redis_cluster_nodes do not answer as nodes of a cluster: 127.0.0.1:7006." in said(run)
