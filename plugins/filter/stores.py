# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that size and lay out the stores of a host: pure functions over plain data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

Data = dict[str, Any]

# What becomes a part of a unit's and a file's name.
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
# Where its data may be lost, Redis makes room and writes no file; where it may not, a write is refused before anything is lost.
REDIS_USES: dict[str, Data] = {
    "cache": {"maxmemory_policy": "allkeys-lru", "append_only_enabled": False, "snapshots": []},
    "queue": {"maxmemory_policy": "noeviction", "append_only_enabled": True, "snapshots": ["900 1", "300 10", "60 10000"]},
    "session": {"maxmemory_policy": "noeviction", "append_only_enabled": True, "snapshots": ["900 1", "300 10", "60 10000"]},
}
# What the role decides itself: in another place, with a secret that a diff would show, or as a state that Redis keeps.
REDIS_OWN_SETTINGS = frozenset(
    {
        *("aclfile", "bind", "cluster-config-file", "cluster-enabled", "daemonize", "dir", "include", "logfile", "masterauth"),
        *("masteruser", "pidfile", "port", "replicaof", "requirepass", "slaveof", "supervised", "tls-port", "user"),
    }
)

KNOWN_NODES = re.compile(r"^cluster_known_nodes:(?P<count>\d+)", re.MULTILINE)
# ID ADDRESS:PORT@BUS[,HOSTNAME] FLAGS PRIMARY ...
CLUSTER_NODE = re.compile(r"^(?P<id>[0-9a-f]{40}) (?P<address>\S+?)@\S+ (?P<flags>\S+) ", re.MULTILINE)


def redis_instances(instances: list[Data], common: Data, memory: float) -> list[Data]:
    """Return every Redis server of a host, complete: its own values before those of its use, and these before the common ones."""
    chosen = instances or [{}]
    names = [instance.get("name", "") for instance in chosen]
    _refuse_names("redis_instances", [name for name in names if name])
    _refuse_twice("redis_instances", "port", [int({**common, **instance}["port"]) for instance in chosen])
    share = float(common["memory_share"])
    if not 0 < share <= 1:
        raise AnsibleFilterError(f"redis_memory_share is {share:g}. It is a part of the host's memory, above 0 and at most 1.")
    return [_redis_instance(instance, common, int(memory * share) // len(chosen)) for instance in chosen]


def _redis_instance(own: Data, common: Data, megabytes: int) -> Data:
    """Return one Redis server with the share of memory that is its."""
    values = {**common, **(REDIS_USES[own["use"]] if "use" in own else {}), **own}
    settings = {**common["settings"], **own.get("settings", {})}
    refused = sorted(REDIS_OWN_SETTINGS & set(settings))
    if refused:
        raise AnsibleFilterError(f"redis_settings may not hold {', '.join(refused)}: the role sets that itself.")
    return {
        **_paths(str(common["flavour"]), "server", own.get("name", "")),
        "port": int(values["port"]),
        "maxmemory": str(values["maxmemory"] or f"{max(megabytes, 16)}mb"),
        "maxmemory_policy": values["maxmemory_policy"],
        "append_only_enabled": bool(values["append_only_enabled"]),
        "snapshots": REDIS_USES[values["use"]]["snapshots"],
        "replica_of": values.get("replica_of") or {},
        "settings": settings,
    }


def redis_sentinels(sentinels: list[Data], flavour: str) -> list[Data]:
    """Return every Sentinel of a host with its unit and its files."""
    names = [sentinel.get("name", "") for sentinel in sentinels]
    if len(sentinels) > 1 and not all(names):
        raise AnsibleFilterError("redis_sentinels has several: each needs a name.")
    _refuse_names("redis_sentinels", [name for name in names if name])
    _refuse_twice("redis_sentinels", "port", [int(sentinel.get("port", 26379)) for sentinel in sentinels])
    return [{**_paths(flavour, "sentinel", sentinel.get("name", "")), "port": int(sentinel.get("port", 26379))} for sentinel in sentinels]


def redis_replication(answer: str) -> Data:
    """Return what a server says of itself to INFO replication and DBSIZE: its role, its primary, and what it would lose as a replica."""
    lines = answer.split()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    return {
        "role": info.get("role", ""),
        "primary": f"{info['master_host']}:{info['master_port']}" if "master_host" in info else "",
        "replicas": int(info.get("connected_slaves", 0)),
        "stored": int(lines[-1]) if lines and lines[-1].isdigit() else 0,
    }


def redis_sentinel_commands(answer: str, primary: Data) -> list[str]:
    """Return the commands that make a Sentinel watch the primary, given what it says to SENTINEL MASTER.

    Whom it holds for the primary stays.
    """
    name, lines = primary["name"], answer.splitlines()
    known = {} if len(lines) < 2 else dict(zip(lines[::2], lines[1::2]))
    wanted = {
        "quorum": primary.get("quorum", 2),
        "down-after-milliseconds": primary.get("down_after", 5000),
        "failover-timeout": primary.get("failover_timeout", 60000),
        "parallel-syncs": primary.get("parallel_syncs", 1),
    }
    first = [] if known else [f"SENTINEL MONITOR {name} {primary['address']} {primary.get('port', 6379)} {wanted['quorum']}"]
    return first + [f"SENTINEL SET {name} {key} {value}" for key, value in wanted.items() if str(value) != known.get(key)]


def redis_cluster(nodes: list[Data], answers: list[str]) -> Data:
    """Return how the nodes of a cluster stand, given what each says to CLUSTER INFO and CLUSTER NODES.

    Members know others. A stranger among members knows nobody: it is new, or lost its disk. What it was before is lost.
    """
    known = [KNOWN_NODES.search(answer) for answer in answers]
    counts = [int(found["count"]) if found else 0 for found in known]
    members = [node for node, count in zip(nodes, counts) if count > 1]
    strangers = [node for node, count in zip(nodes, counts) if members and count == 1]
    view = next((answer for answer, count in zip(answers, counts) if count > 1), "")
    addresses = [_address(node) for node in strangers]
    failed = [node for node in CLUSTER_NODE.finditer(view) if "fail" in node["flags"].split(",")]
    # As soon as another node answers at its address, the one that was there has none.
    lost = [node["id"] for node in failed if "noaddr" in node["flags"].split(",") or node["address"] in addresses]
    silent = [_address(node) for node, count in zip(nodes, counts) if not count]
    return {"members": members, "strangers": strangers, "silent": silent, "lost": lost}


def _address(node: Data) -> str:
    """Return how the tools of Redis name a node."""
    return f"{node['address']}:{node['port']}"


def _paths(flavour: str, kind: str, name: str) -> Data:
    """Return the unit and the files of a service, as Debian's units and their templates lay them out."""
    program, at, dash = f"{flavour}-{kind}", f"@{name}" if name else "", f"-{name}" if name else ""
    short = flavour if kind == "server" else kind
    etc = f"/etc/{flavour}/{short}{dash}"
    data = f"/var/lib/{flavour}/{name if kind == 'server' else short + dash}".rstrip("/")
    return {
        "name": name or "main",
        "kind": kind,
        "unit": program + at,
        "program": f"/usr/bin/{program}",
        "configuration": f"{etc}.conf",
        "secret": f"{etc}.secret",
        "users": f"{etc}.acl",
        "drop_in": f"/etc/systemd/system/{program}{at}.service.d/lms.conf",
        "directory": data,
        "rewritten": f"{data}/rewritten.conf",
        "run": f"/run/{short}{dash}",
        "pid": f"/run/{short}{dash}/{program}.pid",
        "log": f"/var/log/{flavour}/{program}{dash}.log",
    }


def _refuse_names(option: str, names: Iterable[str]) -> None:
    """Refuse a name that no unit can have, and one that stands twice."""
    names = list(names)
    for name in names:
        if not NAME.fullmatch(name):
            raise AnsibleFilterError(f"{option} has the name {name!r}. A name has small letters, digits and _ only.")
    _refuse_twice(option, "name", names)


def _refuse_twice(option: str, key: str, values: Iterable[Any]) -> None:
    """Refuse values of which one stands twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise AnsibleFilterError(f"{option} has the {key} {twice[0]} twice.")


def postgresql_memory(memory: float, share: float, connections: int) -> dict[str, str]:
    """Return the settings that follow from the megabytes of memory of a host, of which a share is PostgreSQL's."""
    if not 0 < float(share) <= 1:
        raise AnsibleFilterError(f"postgresql_memory_share is {float(share):g}. It is a part of the host's memory, above 0 and at most 1.")
    own = float(memory) * float(share)
    # A connection can use work_mem several times over: a quarter of the memory, shared by all of them, leaves room for that.
    return {
        "shared_buffers": _megabytes(own / 4, 32, 16384),
        "effective_cache_size": _megabytes(own * 3 / 4, 96, 1048576),
        "work_mem": _megabytes(own / 4 / max(int(connections), 1), 4, 64),
        "maintenance_work_mem": _megabytes(own / 16, 64, 2048),
    }


def _megabytes(value: float, least: int, most: int) -> str:
    """Return a size in PostgreSQL's notation, within bounds."""
    return f"{min(max(int(value), least), most)}MB"


class FilterModule:
    """The collection's filters for stores."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "postgresql_memory": postgresql_memory,
            "redis_cluster": redis_cluster,
            "redis_instances": redis_instances,
            "redis_replication": redis_replication,
            "redis_sentinel_commands": redis_sentinel_commands,
            "redis_sentinels": redis_sentinels,
        }
