"""The filters that size and lay out the stores of a host."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.bitflow.lms.plugins.filter.stores import (
    postgresql_memory,
    redis_cluster,
    redis_instances,
    redis_replication,
    redis_sentinel_commands,
    redis_sentinels,
)

COMMON = {
    "flavour": "redis",
    "port": 6379,
    "use": "queue",
    "maxmemory": "",
    "maxmemory_policy": "noeviction",
    "append_only_enabled": True,
    "memory_share": 0.5,
    "replica_of": {},
    "settings": {"maxclients": 500},
}


def common(**values):
    return {**COMMON, **values}


def test_without_instances_there_is_the_one_of_the_distribution():
    assert redis_instances([], COMMON, 8000) == [
        {
            "name": "main",
            "kind": "server",
            "unit": "redis-server",
            "program": "/usr/bin/redis-server",
            "configuration": "/etc/redis/redis.conf",
            "secret": "/etc/redis/redis.secret",
            "users": "/etc/redis/redis.acl",
            "drop_in": "/etc/systemd/system/redis-server.service.d/lms.conf",
            "directory": "/var/lib/redis",
            "rewritten": "/var/lib/redis/rewritten.conf",
            "run": "/run/redis",
            "pid": "/run/redis/redis-server.pid",
            "log": "/var/log/redis/redis-server.log",
            "port": 6379,
            "maxmemory": "4000mb",
            "maxmemory_policy": "noeviction",
            "append_only_enabled": True,
            "snapshots": ["900 1", "300 10", "60 10000"],
            "replica_of": {},
            "settings": {"maxclients": 500},
        }
    ]


def test_a_named_instance_has_its_own_unit_and_files():
    instance = redis_instances([{"name": "cache", "port": 6380}], common(flavour="valkey"), 8000)[0]

    assert {key: instance[key] for key in ("unit", "configuration", "directory", "pid", "log", "drop_in")} == {
        "unit": "valkey-server@cache",
        "configuration": "/etc/valkey/valkey-cache.conf",
        "directory": "/var/lib/valkey/cache",
        "pid": "/run/valkey-cache/valkey-server.pid",
        "log": "/var/log/valkey/valkey-server-cache.log",
        "drop_in": "/etc/systemd/system/valkey-server@cache.service.d/lms.conf",
    }


def test_the_use_decides_what_may_be_lost_and_an_instance_may_say_otherwise():
    cache, odd, queue = redis_instances(
        [
            {"name": "cache", "port": 1, "use": "cache"},
            {"name": "odd", "port": 2, "use": "cache", "maxmemory_policy": "volatile-ttl", "append_only_enabled": True},
            {"name": "queue", "port": 3},
        ],
        COMMON,
        8000,
    )

    assert (cache["maxmemory_policy"], cache["append_only_enabled"], cache["snapshots"]) == ("allkeys-lru", False, [])
    assert (odd["maxmemory_policy"], odd["append_only_enabled"]) == ("volatile-ttl", True)
    assert (queue["maxmemory_policy"], queue["append_only_enabled"]) == ("noeviction", True)


def test_instances_share_the_memory_and_one_may_have_a_limit_of_its_own():
    limits = [
        instance["maxmemory"]
        for instance in redis_instances([{"name": "a", "port": 1}, {"name": "b", "port": 2, "maxmemory": "1gb"}], COMMON, 8000)
    ]

    assert limits == ["2000mb", "1gb"]


def test_settings_of_an_instance_are_added_to_those_of_all():
    instance = redis_instances([{"name": "a", "port": 1, "settings": {"hz": 20}}], COMMON, 8000)[0]

    assert instance["settings"] == {"maxclients": 500, "hz": 20}


@pytest.mark.parametrize(
    ("instances", "values", "message"),
    [
        ([{"name": "a", "port": 1}, {"name": "a", "port": 2}], {}, "redis_instances has the name a twice."),
        ([{"name": "a", "port": 1}, {"name": "b", "port": 1}], {}, "redis_instances has the port 1 twice."),
        ([{"name": "a-b", "port": 1}], {}, "redis_instances has the name 'a-b'. A name has small letters, digits and _ only."),
        ([], {"settings": {"requirepass": "x"}}, "redis_settings may not hold requirepass: the role sets that itself."),
        ([], {"memory_share": 1.5}, "redis_memory_share is 1.5. It is a part of the host's memory, above 0 and at most 1."),
    ],
)
def test_what_cannot_be_is_refused_by_name(instances, values, message):
    with pytest.raises(AnsibleFilterError) as refused:
        redis_instances(instances, common(**values), 8000)

    assert str(refused.value) == message


def test_a_sentinel_has_its_own_unit_and_files():
    plain, named = redis_sentinels([{}], "redis")[0], redis_sentinels([{"name": "one", "port": 26381}], "redis")[0]

    assert [plain[key] for key in ("unit", "configuration", "directory", "pid", "port")] == [
        "redis-sentinel",
        "/etc/redis/sentinel.conf",
        "/var/lib/redis/sentinel",
        "/run/sentinel/redis-sentinel.pid",
        26379,
    ]
    assert [named[key] for key in ("unit", "configuration", "directory", "pid", "port")] == [
        "redis-sentinel@one",
        "/etc/redis/sentinel-one.conf",
        "/var/lib/redis/sentinel-one",
        "/run/sentinel-one/redis-sentinel.pid",
        26381,
    ]


def test_several_sentinels_without_names_are_refused():
    with pytest.raises(AnsibleFilterError, match="each needs a name"):
        redis_sentinels([{"port": 1}, {"port": 2}], "redis")


@pytest.mark.parametrize(
    ("memory", "share", "connections", "settings"),
    [
        # The seeds' database, with 32 GB.
        (32768, 1.0, 200, ("8192MB", "24576MB", "40MB", "2048MB")),
        (32768, 0.5, 200, ("4096MB", "12288MB", "20MB", "1024MB")),
        # The least that is of use, and the most that pays.
        (100, 0.1, 100, ("32MB", "96MB", "4MB", "64MB")),
        (1048576, 1.0, 10, ("16384MB", "786432MB", "64MB", "2048MB")),
    ],
)
def test_postgresql_is_sized_for_its_share_of_the_memory(memory, share, connections, settings):
    assert tuple(postgresql_memory(memory, share, connections).values()) == settings


def test_a_share_above_the_whole_is_refused():
    with pytest.raises(AnsibleFilterError, match="postgresql_memory_share is 2"):
        postgresql_memory(8192, 2, 100)


# What redis-cli prints, cut to what is read.
PRIMARY = "# Replication\r\nrole:master\r\nconnected_slaves:1\r\nslave0:ip=192.0.2.2,port=6379,state=online\r\n\r\n12"
REPLICA = (
    "# Replication\r\nrole:slave\r\nmaster_host:192.0.2.1\r\nmaster_port:6379\r\nmaster_link_status:up\r\nconnected_slaves:0\r\n\r\n12"
)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (PRIMARY, {"role": "master", "primary": "", "replicas": 1, "stored": 12}),
        (REPLICA, {"role": "slave", "primary": "192.0.2.1:6379", "replicas": 0, "stored": 12}),
        ("NOAUTH Authentication required.", {"role": "", "primary": "", "replicas": 0, "stored": 0}),
        ("", {"role": "", "primary": "", "replicas": 0, "stored": 0}),
    ],
)
def test_a_server_is_understood(answer, seen):
    assert redis_replication(answer) == seen


WATCHED = {"name": "lms", "address": "192.0.2.1", "port": 6379}


def test_a_sentinel_that_knows_nothing_is_told_everything():
    assert redis_sentinel_commands("ERR No such master with that name", WATCHED) == [
        "SENTINEL MONITOR lms 192.0.2.1 6379 2",
        "SENTINEL SET lms quorum 2",
        "SENTINEL SET lms down-after-milliseconds 5000",
        "SENTINEL SET lms failover-timeout 60000",
        "SENTINEL SET lms parallel-syncs 1",
    ]


def test_a_sentinel_that_failed_over_keeps_its_primary_and_gets_what_differs():
    answer = "name\nlms\nip\n192.0.2.2\nport\n6379\nquorum\n2\ndown-after-milliseconds\n30000\nfailover-timeout\n60000\nparallel-syncs\n1"

    assert redis_sentinel_commands(answer, WATCHED) == ["SENTINEL SET lms down-after-milliseconds 5000"]


def node(port):
    return {"address": "192.0.2.1", "port": port}


def cluster_answer(known, *lines):
    return "\r\n".join(["cluster_state:ok", f"cluster_known_nodes:{known}", *lines])


def test_nodes_that_know_nobody_are_no_cluster_yet():
    answers = [cluster_answer(1), cluster_answer(1), "Could not connect"]

    assert redis_cluster([node(1), node(2), node(3)], answers) == {"members": [], "strangers": [], "silent": ["192.0.2.1:3"], "lost": []}


def test_a_node_without_its_disk_is_a_stranger_and_what_it_was_is_lost():
    old, other = "a" * 40, "b" * 40
    answers = [
        cluster_answer(
            3,
            f"{other} 192.0.2.1:7001@17001 myself,master - 0 0 1 connected 0-8191",
            f"{old} 192.0.2.1:7002@17002 master,fail - 1 1 2 disconnected",
        ),
        cluster_answer(1),
    ]

    assert redis_cluster([node(7001), node(7002)], answers) == {
        "members": [node(7001)],
        "strangers": [node(7002)],
        "silent": [],
        "lost": [old],
    }


def test_what_has_no_address_any_more_is_lost():
    line = f"{'a' * 40} :0@0 slave,fail,noaddr {'b' * 40} 1795797258825 1795797256507 2 disconnected"

    assert redis_cluster([node(7001)], [cluster_answer(7, line)])["lost"] == ["a" * 40]


def test_a_node_that_may_only_be_slow_is_not_forgotten():
    answers = [cluster_answer(2, f"{'a' * 40} 192.0.2.1:7002@17002,name master,fail? - 1 1 2 connected"), cluster_answer(1)]

    assert redis_cluster([node(7001), node(7002)], answers)["lost"] == []
