"""What an operator and a visitor notice of the firewall role."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import time

import pytest
from checks import access_to, address_of, answers, apply_role, new_key, once, over_ssh, play, said, service_is_up

SSH = {"name": "ssh", "ports": ["22"]}
WEB = {"name": "web", "ports": ["8001"]}
# The last one is not listed.
PORTS = ["8001", "8002", "8003", "8004", "8009"]

# Lets nobody in.
SHUT = """table inet lms
delete table inet lms
table inet lms {
    chain input {
        type filter hook input priority filter; policy drop;
    }
}
"""
# Answers every TCP connection, of IPv4 and IPv6.
LISTENER = """
import asyncio, sys
async def main():
    for port in sys.argv[1:]:
        await asyncio.start_server(lambda reader, writer: writer.close(), None, int(port))
    await asyncio.sleep(3600)
asyncio.run(main())
"""
# Connects to each address and port, and prints what became of it.
VISITOR = """
import json, socket, sys
def visit(address, port):
    try:
        socket.create_connection((address, int(port)), timeout=1).close()
        return "open"
    except TimeoutError:
        return "dropped"
    except OSError as error:
        return str(error)
print(json.dumps([visit(*place.rsplit(":", 1)) for place in sys.argv[1:]]))
"""
# A host of its own in the host: its interface is filtered by the same ruleset. Containers have no IPv6, a new namespace has.
NEIGHBOURHOOD = """
for name in server neighbour; do ip netns delete $name 2>/dev/null; ip netns add $name; ip -n $name link set lo up; done
ip link add to-server netns neighbour type veth peer name to-neighbour netns server
ip -n server link set to-neighbour up
ip -n neighbour link set to-server up
ip -n server address add 192.0.2.1/24 dev to-neighbour
ip -n server address add 203.0.113.1/24 dev to-neighbour
ip -n server address add 2001:db8::1/64 dev to-neighbour nodad
ip -n neighbour address add 192.0.2.2/24 dev to-server
ip -n neighbour address add 203.0.113.2/24 dev to-server
ip -n neighbour address add 2001:db8::2/64 dev to-server nodad
ip netns exec server nft --file /etc/nftables.conf
"""


def loaded(host):
    """Return the table as the kernel has it, without counters and collected addresses."""
    return host.run("nft --stateless --terse list table inet lms").stdout


def written(host):
    return host.check_output("cat /etc/nftables.conf")


def reaches(host, port, timeout=1.0):
    """Say whether the machine that runs the tests can connect to the host."""
    try:
        socket.create_connection((address_of(host), port), timeout=timeout).close()
    except OSError:
        return False
    return True


def start(host, unit, command):
    host.check_output(f"systemctl is-active {unit} || systemd-run --collect --unit={unit} {command}")


def way_back(host):
    """Say whether the host would still take its former ruleset back."""
    return host.run("systemctl is-active lms-firewall-way-back.timer lms-firewall-way-back.service").rc == 0


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def services(host):
    """What listens on the host."""
    host.check_output(
        "dpkg --status openssh-server iputils-ping >/dev/null 2>&1"
        " || DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends openssh-server iputils-ping"
    )
    host.check_output("systemctl start ssh")
    start(host, "listener", shlex.join(["python3", "-c", LISTENER, *PORTS]))
    wait_until(lambda: reaches(host, 8001))


@pytest.fixture(scope="module")
def neighbour(host):
    """Return a function that visits addresses from another host."""
    host.run("systemctl stop listener-of-neighbour")
    host.check_output("sh -c %s", NEIGHBOURHOOD)
    start(host, "listener-of-neighbour", "ip netns exec server " + shlex.join(["python3", "-c", LISTENER, *PORTS]))

    def visit(*places):
        return json.loads(host.check_output("ip netns exec neighbour " + shlex.join(["python3", "-c", VISITOR, *places])))

    wait_until(lambda: visit("192.0.2.1:8001") == ["open"])
    return visit


@pytest.fixture(scope="module")
def key(host, tmp_path_factory):
    """A key that lets the machine that runs the tests in as root."""
    key = new_key(tmp_path_factory.mktemp("ssh"))
    public = key.with_suffix(".pub").read_text().strip()
    host.check_output("mkdir -p -m 700 ~/.ssh && echo %s > ~/.ssh/authorized_keys", public)
    return key


@pytest.fixture
def apply(host, key):
    """Return a function that applies the role over SSH."""

    def apply(**variables):
        return play(host, "firewall", **over_ssh(host, key, "root"), **variables)

    return apply


def test_a_listed_service_is_reached_and_no_other(host):
    assert [reaches(host, port) for port in (8001, 8009)] == [True, False]


def test_sources_count_in_both_families(neighbour):
    addresses = ["192.0.2.1", "203.0.113.1", "2001:db8::1"]

    seen = {port: neighbour(*(f"{address}:{port}" for address in addresses)) for port in (8001, 8002, 8003, 8009)}

    assert seen == {
        8001: ["open", "open", "open"],
        8002: ["open", "dropped", "open"],
        8003: ["dropped", "dropped", "open"],
        8009: ["dropped", "dropped", "dropped"],
    }


def test_an_address_that_connects_too_often_has_to_wait_and_others_do_not(neighbour):
    assert neighbour(*["192.0.2.1:8004"] * 5) == ["open"] * 3 + ["dropped"] * 2
    assert neighbour("203.0.113.1:8004", "2001:db8::1:8004") == ["open", "open"]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_ping_is_answered(host, neighbour, address):
    host.check_output("ip netns exec neighbour ping -c 1 -W 2 %s", address)


def test_the_host_itself_gets_answers(host):
    assert host.run("python3 -c %s 127.0.0.1:8009", VISITOR).stdout.strip() == '["open"]'


def test_the_firewall_is_loaded_at_boot(host):
    assert service_is_up(host, "nftables")
    assert access_to(host, "/etc/nftables.conf") == ("root", "root", "0644")


def test_a_restart_of_the_service_keeps_the_ruleset(host):
    before = loaded(host)

    host.check_output("systemctl restart nftables && systemctl reload nftables")

    assert loaded(host) == before != ""


def test_stopping_the_service_leaves_the_tables_of_others(host):
    host.check_output("nft add table ip somebody_elses")

    host.check_output("systemctl stop nftables")
    tables, open_to_all = host.check_output("nft list tables"), reaches(host, 8009)
    host.check_output("systemctl start nftables")

    assert tables == "table ip somebody_elses"
    assert open_to_all
    assert not reaches(host, 8009)
    host.check_output("nft delete table ip somebody_elses")


# From here on tests change the ruleset, and start with the one that the test before them left.
def test_what_cannot_be_is_refused_before_the_first_change(host, key):
    once(host)
    before = loaded(host), written(host)
    by_ssh = over_ssh(host, key, "root")
    shut_out = "firewall_services does not let Ansible in: it connects from"
    refused = {
        "port": ({"firewall_services": [SSH | {"ports": ["70000"]}]}, "The service ssh of the firewall has the port '70000'"),
        "rate": ({"firewall_services": [SSH | {"rate_limit": f"{10**40}/minute"}]}, "Could not use the ruleset"),
        "no_ssh": ({"firewall_services": [WEB], **by_ssh}, shut_out),
        "no_source": ({"firewall_services": [SSH | {"sources": ["192.0.2.0/24"]}], **by_ssh}, shut_out),
    }

    answer = answers(host, "firewall", {name: variables for name, (variables, _message) in refused.items()})

    for name, (_variables, message) in refused.items():
        assert message in answer[name].failure
        assert answer[name].changed == 0
    assert (loaded(host), written(host)) == before


def test_a_rule_that_was_removed_by_hand_is_shown_and_comes_back(host):
    once(host)
    before = loaded(host)
    rules = json.loads(host.check_output("nft --json list chain inet lms input"))["nftables"]
    handle = next(item["rule"]["handle"] for item in rules if item.get("rule", {}).get("comment") == "web")
    host.check_output("nft delete rule inet lms input handle %s", str(handle))
    assert not reaches(host, 8001)

    planned = play(host, "firewall", "--check", "--diff")
    still_closed = not reaches(host, 8001)
    applied = apply_role(host, "firewall")

    assert planned.returncode == applied.returncode == 0, said(planned) + said(applied)
    assert '+ tcp dport { 8001, 8010-8012 } accept comment "web"' in said(planned)
    assert still_closed
    assert reaches(host, 8001)
    assert loaded(host) == before


def load_and_be_killed(host, seconds):
    """Load another ruleset without ever confirming it, as a run whose control host dies."""
    arguments = json.dumps({"content": SHUT, "confirm_timeout": seconds})
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    command = ["ansible", host.backend.get_hostname(), f"--inventory={inventory}", "-m", "bitflow.lms.nftables_ruleset", "-a", arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, said(run)


def test_what_nobody_confirmed_goes_by_itself(host):
    once(host)
    before = loaded(host), written(host)

    load_and_be_killed(host, 5)
    shut = not reaches(host, 8001)

    wait_until(lambda: loaded(host) == before[0])
    assert shut
    assert reaches(host, 8001)
    assert written(host) == before[1]


def test_what_a_killed_run_loaded_is_mended_by_the_next(host):
    once(host)
    before = loaded(host), written(host)
    load_and_be_killed(host, 600)

    run = apply_role(host, "firewall")

    assert run.returncode == 0, said(run)
    assert (loaded(host), written(host)) == before
    assert not way_back(host)


def test_a_new_ruleset_is_confirmed_over_ssh(host, apply):
    run = apply(firewall_services=[SSH, WEB])

    assert run.returncode == 0, said(run)
    assert '8001 accept comment "web"' in loaded(host)
    assert "dport { 8001 }" in written(host)
    assert not way_back(host)


def test_the_host_that_shut_ansible_out_takes_its_former_ruleset_back(host, apply):
    before = loaded(host), written(host)

    run = apply(firewall_services=[WEB], firewall_lockout_allowed=True, firewall_confirm_timeout=5)

    assert run.returncode != 0
    assert "The ruleset was taken back, and the host has its former one again" in said(run)
    assert reaches(host, 22)
    assert (loaded(host), written(host)) == before


def test_without_the_way_back_such_a_host_stays_shut(host, apply):
    assert reaches(host, 22)

    apply(firewall_services=[WEB], firewall_lockout_allowed=True, firewall_confirm_timeout=0)

    assert not way_back(host)
    assert not reaches(host, 22)
    assert 'comment "ssh"' not in loaded(host)
    assert 'comment "ssh"' not in written(host)


# The last one: what the other tests need on the host is gone then.
def test_a_reboot_brings_the_ruleset_back(host):
    before = loaded(host)

    # As after a loss of power.
    subprocess.run(["docker", "restart", "--time=0", host.backend.get_hostname()], check=True, capture_output=True)
    wait_until(lambda: host.run("systemctl is-system-running").stdout.strip() in {"running", "degraded"}, 60)

    assert loaded(host) == before != ""
