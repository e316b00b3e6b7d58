"""What an operator and a visitor notice of traffic that is split between two colours."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from checks import access_to, answers, eventually, once, play, said

TRAFFIC = "/var/lib/lms-traffic"
CURL = "curl --silent --cacert /etc/ssl/lms/authority.pem"
SERVERS = {"blue-1": 9001, "blue-2": 9002, "green-1": 9011, "green-2": 9012, "student-1": 9021}
CERTIFICATE = {"certificate": "/etc/ssl/lms/lms/fullchain.pem", "key": "/etc/ssl/lms/lms/privkey.pem"}
API = {
    "name": "api",
    "health_uri": "/up",
    "assets": ["/assets/"],
    "server_names": ["api.lms.test"],
    "upstreams": {"blue": "api_blue", "green": "api_green"},
    **CERTIFICATE,
}
STUDENT = {"name": "student", "server_names": ["student.lms.test"], "upstream": "student", **CERTIFICATE}

# One request for each pair of a source address and a cookie; prints for each the server that answered and the cookie that was set.
VISITORS = """
import http.client, json, ssl, sys
context = ssl.create_default_context(cafile="/etc/ssl/lms/authority.pem")
found = []
for address, cookie in json.load(sys.stdin):
    connection = http.client.HTTPSConnection("api.lms.test", 443, timeout=10, context=context, source_address=(address, 0))
    connection.request("GET", "/", headers={"Cookie": cookie} if cookie else {})
    answer = connection.getresponse()
    found.append([answer.getheader("X-Server", str(answer.status)), answer.getheader("Set-Cookie") or ""])
    connection.close()
print(json.dumps(found))
"""

SWITCH = """bash -euc '
    cd "$0"; rm -rf aside; mkdir -p aside/blue aside/green weights
    for bucket in {0..99}; do test "$bucket" -lt "$1" && colour=green || colour=blue; : > aside/$colour/$bucket; done
    test -d "weights/$2" || mv aside "weights/$2"
    ln -sfn "weights/$2" next && mv --no-target-directory next current
' %s %s %s"""


@dataclass
class Load:
    """What came of the requests of some visitors."""

    sent: dict[str, int]
    failed: dict[str, int]
    servers: dict[str, int]

    @property
    def colours(self) -> Counter[str]:
        """Return how many answers each colour gave."""
        found: Counter[str] = Counter()
        for server, count in self.servers.items():
            found[colour_of(server)] += count
        return found


def colour_of(server):
    return server.partition("-")[0]


def start(host, name):
    """Start a server, unless it runs, and wait until it listens."""
    port = SERVERS[name]
    host.check_output(f"systemctl is-active {name} || systemd-run --collect --unit={name} python3 /srv/backend.py {name} {port}")
    host.check_output(f"timeout 10 sh -c 'until ss --listening --no-header | grep -q \":{port} \"; do sleep 0.1; done'")


@pytest.fixture(scope="module", autouse=True)
def servers(host):
    """The servers behind the load balancer."""
    here = Path(__file__).parents[1]
    for script in [here.parent / "load_balancer/backend.py", here / "load.py"]:
        host.check_output("printf %s %s > %s", "%s", script.read_text(), f"/srv/{script.name}")
    host.check_output("grep -q lms.test /etc/hosts || echo 127.0.0.1 api.lms.test student.lms.test >> /etc/hosts")
    for name in SERVERS:
        start(host, name)


@pytest.fixture
def all_blue(host):
    """Weights with which a test begins."""
    switch(host, green=0)


@pytest.fixture
def one_stopped(host):
    host.check_output("systemctl stop green-1")
    yield
    start(host, "green-1")


@pytest.fixture
def green_stopped(host):
    host.check_output("systemctl stop green-1 green-2")
    yield
    start(host, "green-1")
    start(host, "green-2")
    # The servers rest after their failures.
    host.check_output("sleep 5")


def switch(host, green):
    """Give the site weights, as an operator does who has nothing but a shell."""
    host.check_output(SWITCH, f"{TRAFFIC}/api", str(green), f"blue-{100 - green}+green-{green}")


def module(host, name, **options):
    """Run a module of the collection on the host, and return what Ansible said."""
    arguments = [host.backend.get_hostname(), f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}", f"--module-name=bitflow.lms.{name}"]
    arguments += [f"--args={json.dumps(options)}"] if options else []
    return subprocess.run(["ansible", *arguments], capture_output=True, text=True, check=False)


def move(host, **weights):
    """Give the site weights with the module."""
    run = module(host, "nginx_traffic", weights=weights, gate={"consecutive": 1}, propagation_wait=0)
    assert run.returncode == 0, said(run)


def keep_clients_by(host, affinity):
    """Have the load balancer keep clients on their colour by their address, a cookie or nothing."""
    wanted = {
        "address": "$remote_addr $traffic_bucket",
        "cookie": "$request_id $traffic_new_bucket",
        "request": "$request_id $traffic_bucket",
    }
    if f"split_clients {wanted[affinity]}" not in host.file("/etc/nginx/nginx.conf").content_string:
        run = play(host, "load_balancer", load_balancer_traffic_affinity=affinity)
        assert run.returncode == 0, said(run)


def visits(host, *visitors):
    """Visit the site once for each pair of an address and a cookie; return the servers that answered and the cookies that were set."""
    result = host.run("printf %s %s | python3 -c %s", "%s", json.dumps(visitors), VISITORS)
    assert result.rc == 0, result
    return json.loads(result.stdout)


def colours(host, count=12):
    """Visit the site some times from one address; return the colours that answered."""
    return {colour_of(server) for server, _cookie in visits(host, *[("127.0.0.1", "")] * count)}


def by_address(host, count=300):
    """Visit the site from many addresses; return the colour that each got."""
    addresses = [f"127.0.{number // 100 + 1}.{number % 100 + 1}" for number in range(count)]
    found = visits(host, *[(address, "") for address in addresses])
    return {address: colour_of(server) for address, (server, _cookie) in zip(addresses, found)}


def who(found, colour):
    return {visitor for visitor, got in found.items() if got == colour}


def status(host):
    """Return what nginx says of each bucket."""
    found = host.check_output("curl --silent --fail 'http://127.0.0.1:8081/traffic/api/[0-99]'").split()
    assert len(found) == 100
    return found


def curl(host, path, options="", site="api"):
    return host.check_output(f"{CURL} {options} {shlex.quote(f'https://{site}.lms.test{path}')}")


@contextmanager
def load(host) -> Iterator[Load]:
    """Have visitors come while something is done, and tell afterwards what came of their requests."""
    host.check_output("rm -f /run/load.stop")
    command = ["docker", "exec", host.backend.get_hostname(), "python3", "/srv/load.py", "api.lms.test", "/run/load.stop"]
    result = Load({}, {}, {})
    visitors = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield result
    finally:
        host.check_output("touch /run/load.stop")
        output, _nothing = visitors.communicate(timeout=400)
    result.sent, result.failed, result.servers = (json.loads(output)[key] for key in ("sent", "failed", "servers"))


def test_a_new_site_gives_all_its_traffic_to_its_first_colour(host):
    once(host)
    run = play(host, "load_balancer", load_balancer_sites=[API, {**API, "name": "new", "server_names": ["new.lms.test"]}, STUDENT])
    link = host.check_output(f"readlink {TRAFFIC}/new/current")
    buckets = {colour: host.check_output(f"ls {TRAFFIC}/new/current/{colour}").split() for colour in ("blue", "green")}
    back = play(host, "load_balancer")
    host.check_output(f"rm -r {TRAFFIC}/new")

    assert [run.returncode, back.returncode] == [0, 0], said(run) + said(back)
    assert link == "weights/blue-100+green-0"
    assert {colour: sorted(map(int, names)) for colour, names in buckets.items()} == {"blue": list(range(100)), "green": []}


def test_the_modules_are_told_what_there_is(host):
    assert json.loads(host.file(f"{TRAFFIC}/sites.json").content_string) == {
        "method": "flag",
        "status_url": "http://127.0.0.1:8081",
        "sites": {
            "api": {
                "health": {"uri": "/up", "host": "api.lms.test"},
                "colours": {
                    "blue": [{"address": "127.0.0.1", "port": 9001}, {"address": "127.0.0.1", "port": 9002}],
                    "green": [{"address": "127.0.0.1", "port": 9011}, {"address": "127.0.0.1", "port": 9012}],
                },
            }
        },
    }


def test_only_root_moves_traffic(host):
    assert access_to(host, TRAFFIC) == ("root", "root", "0755")
    assert access_to(host, f"{TRAFFIC}/api") == ("root", "root", "0755")
    assert access_to(host, f"{TRAFFIC}/sites.json") == ("root", "root", "0644")


def test_a_site_without_colours_is_served_by_its_upstream(host):
    assert json.loads(curl(host, "/", site="student"))["name"] == "student-1"


def test_a_switch_moves_everybody_at_once_and_back(host, all_blue):
    before = colours(host)
    switch(host, green=100)
    after = colours(host)
    switch(host, green=0)

    assert (before, after, colours(host)) == ({"blue"}, {"green"}, {"blue"})


def test_a_visitor_keeps_its_colour_by_its_address(host, all_blue):
    keep_clients_by(host, "address")
    switch(host, green=5)
    few = by_address(host)
    again = by_address(host)
    switch(host, green=25)
    more = by_address(host)
    switch(host, green=0)

    assert few == again
    assert set() < who(few, "green") < who(more, "green") < set(more)
    # Nobody stays on a colour without weight.
    assert who(by_address(host), "green") == set()


def test_the_role_moves_no_traffic(host, all_blue):
    switch(host, green=25)

    run = play(host, "load_balancer")

    assert run.returncode == 0, said(run)
    assert "changed=0" in said(run)
    assert Counter(status(host)) == {"blue": 75, "green": 25}


def test_requests_reach_the_servers_as_they_were_sent(host, all_blue):
    body = json.loads(curl(host, "/a%2Fb//c%20d?x=1&y=%2F", "--http1.1"))
    switch(host, green=100)
    spoken, version = curl(host, "/", "--write-out '\n%{http_version}'").split("\n")

    assert body["seen"][-1] == "GET /a%2Fb//c%20d?x=1&y=%2F"
    assert body["told"]["x-forwarded-proto"] == "https"
    assert (version, colour_of(json.loads(spoken)["name"])) == ("2", "green")


@pytest.mark.parametrize("restart", [False, True])
def test_nginx_says_of_each_bucket_what_its_clients_get(host, all_blue, restart):
    keep_clients_by(host, "cookie")
    switch(host, green=37)
    if restart:
        host.check_output("systemctl restart nginx")

    told = status(host)

    assert told == ["green"] * 37 + ["blue"] * 63
    assert [colour_of(server) for server, _set in visits(host, *[("127.0.0.1", f"lms_traffic={bucket}") for bucket in range(100)])] == told


def test_a_visitor_keeps_its_colour_by_a_cookie(host, all_blue):
    keep_clients_by(host, "cookie")
    switch(host, green=5)
    cookies = [cookie for _server, cookie in visits(host, *[("127.0.0.1", "")] * 200)]
    visitors = [("127.0.0.1", cookie.partition(";")[0]) for cookie in cookies]
    few = visits(host, *visitors)
    again = visits(host, *visitors)
    switch(host, green=25)
    more = visits(host, *visitors)

    assert {cookie.partition("; ")[2] for cookie in cookies} == {"Path=/; Secure; HttpOnly; SameSite=Lax"}
    # Who has one gets no other.
    assert {cookie for _server, cookie in few} == {""}
    assert [colour_of(server) for server, _cookie in few] == [colour_of(server) for server, _cookie in again]
    came_early, came_later = (
        {number for number, (server, _cookie) in enumerate(found) if colour_of(server) == "green"} for found in (few, more)
    )
    assert came_early < came_later


@pytest.mark.parametrize("cookie", ["100", "00", "-1", "../green/1", "7/../../blue/7", "", "green"])
def test_a_cookie_that_names_no_bucket_is_replaced(host, all_blue, cookie):
    keep_clients_by(host, "cookie")

    (server, replaced), *_others = visits(host, ("127.0.0.1", f"lms_traffic={cookie}"))

    assert colour_of(server) == "blue"
    assert replaced.startswith("lms_traffic=")


def test_a_share_is_what_the_weights_say(host, all_blue):
    keep_clients_by(host, "request")
    switch(host, green=5)

    with load(host) as found:
        pass

    total = sum(found.sent.values())
    assert total >= 4000
    assert found.failed == {}
    # Five standard deviations to each side.
    assert 0.033 < found.colours["green"] / total < 0.067


def test_a_switch_breaks_no_request(host, all_blue):
    keep_clients_by(host, "request")

    with load(host) as found:
        for green in (5, 50, 100, 50, 5, 0):
            move(host, blue=100 - green, green=green)

    assert sum(found.sent.values()) >= 4000
    assert min(found.sent.values()) > 300
    assert min(found.colours["blue"], found.colours["green"]) > 20
    assert found.failed == {}


def test_weights_in_the_configuration_would_break_requests(host, all_blue):
    # The plain way, and the reason for all this: the same moves by a changed configuration and a reload.
    configuration = host.file("/etc/nginx/nginx.conf").content_string
    with load(host) as found:
        for green in (5, 50, 95, 50, 5, 1):
            shares = f"http {{\n split_clients $request_id $plain {{ {green}% api_green; * api_blue; }}"
            plain = configuration.replace("http {", shares, 1).replace("http://$traffic_group;", "http://$plain;")
            host.check_output("printf %s %s > /etc/nginx/nginx.conf && nginx -s reload && sleep 1", "%s", plain)
    host.check_output("printf %s %s > /etc/nginx/nginx.conf && nginx -s reload", "%s", configuration)

    assert sum(found.sent.values()) >= 4000
    assert found.colours["green"] > 20
    assert [kind for kind in found.failed if kind.startswith("kept")] != []


@pytest.mark.parametrize(
    ("path", "status"), [("/assets/blue.css", "200"), ("/assets/green.css", "200"), ("/assets/red.css", "404"), ("/green.css", "200")]
)
def test_a_page_that_was_loaded_before_a_switch_finds_its_files(host, all_blue, path, status):
    assert curl(host, path, "--output /dev/null --write-out '%{http_code}'") == status


def test_a_long_request_ends_where_it_began(host, all_blue):
    host.check_output(
        f"systemd-run --collect --unit=long sh -c {shlex.quote(f'{CURL} https://api.lms.test/slow/4 > /run/long.json')} && sleep 1"
    )
    switch(host, green=100)
    others = colours(host)
    busy = host.run("systemctl is-active long").rc == 0

    assert busy
    assert others == {"green"}
    assert eventually(lambda: host.run("systemctl is-active long").rc != 0)
    assert json.loads(host.file("/run/long.json").content_string)["name"].startswith("blue")


def test_a_stopped_server_of_a_colour_is_not_noticed(host, all_blue, one_stopped):
    keep_clients_by(host, "request")
    switch(host, green=100)

    with load(host) as found:
        pass

    assert found.failed == {}
    assert set(found.servers) == {"green-2"}


def test_a_page_of_our_own_tells_that_no_server_of_a_colour_answers(host, all_blue, green_stopped):
    switch(host, green=100)

    page = curl(host, "/", "--write-out '%{http_code}'")

    assert "Back in a moment" in page
    assert page.endswith("502")


def test_all_servers_serve_while_the_weights_are_lost(host, all_blue):
    keep_clients_by(host, "request")

    with load(host) as found:
        switch(host, green=0)
        host.check_output(f"rm {TRAFFIC}/api/current")
    told = status(host)
    run = module(host, "nginx_traffic_info")
    switch(host, green=0)

    assert found.failed == {}
    assert set(found.servers) == {"blue-1", "blue-2", "green-1", "green-2"}
    assert set(told) == {"lost"}
    assert "has lost its weights" in said(run)


@pytest.mark.parametrize(
    ("break_it", "fault"),
    [
        (
            f"rm {TRAFFIC}/api/current",
            f"{TRAFFIC}/api/current is missing, so all servers of both colours serve. Say in load_balancer_traffic_initial",
        ),
        (
            f"ln -sfn weights/none {TRAFFIC}/api/current",
            f"{TRAFFIC}/api/current leads nowhere, so all servers of both colours serve. Remove it, say",
        ),
    ],
)
def test_the_role_does_not_guess_weights_that_are_lost(host, all_blue, break_it, fault):
    once(host)
    host.check_output(break_it)
    refused = play(host, "load_balancer")
    host.check_output(f"rm -f {TRAFFIC}/api/current")
    mended = play(host, "load_balancer", load_balancer_traffic_initial={"blue": 10, "green": "90"})
    told = status(host)

    assert refused.returncode != 0
    assert fault in said(refused)
    assert mended.returncode == 0, said(mended)
    assert Counter(told) == {"blue": 10, "green": 90}
    assert host.check_output(f"ls -A {TRAFFIC}") == "api\nsites.json"


REFUSED = {
    "unknown": (
        {"upstreams": {"blue": "api_blue", "green": "api_gren"}},
        "load_balancer_upstreams has no api_gren. It has api_blue, api_green",
    ),
    "three": ({"upstreams": {"blue": "api_blue", "green": "api_green", "red": "student"}}, "it has the colours blue, green, red."),
    "one": ({"upstreams": {"blue": "api_blue"}}, "it has the colours blue."),
    "same": ({"upstreams": {"blue": "api_blue", "green": "api_blue"}}, "its upstreams share a server."),
    "capital": ({"upstreams": {"Blue": "api_blue", "green": "api_green"}}, "call its colours by small letters"),
    "status": ({"upstreams": {"blue": "api_blue", "lost": "api_green"}}, "none of them lost"),
    "assets": ({"assets": ["assets; return 200"]}, "Give paths such as /assets/."),
    "name": ({"name": "../api"}, "give its name letters, digits, hyphens and underscores alone"),
    "both": ({"upstream": "student"}, "mutually exclusive: upstream|upstreams"),
}
REFUSED_VARIABLES = {
    "neither": (
        {"load_balancer_sites": [{name: value for name, value in STUDENT.items() if name != "upstream"}]},
        "one of the following is required: upstream, upstreams",
    ),
    "twice": ({"load_balancer_sites": [API, {**STUDENT, "name": "api"}]}, "another site has its name."),
    "initial": (
        {"load_balancer_traffic_initial": {"blue": 50, "green": 40}},
        "Give percents of its colours blue and green that come to 100.",
    ),
    "stranger": ({"load_balancer_traffic_initial": {"red": 100}}, "Give percents of its colours blue and green"),
    "half": ({"load_balancer_traffic_initial": {"blue": 99.5, "green": 0.5}}, "Give percents of its colours blue and green"),
    "folder": (
        {"load_balancer_traffic_directory": "/run/traffic"},
        'load_balancer_traffic_directory is "/run/traffic". Give an absolute path',
    ),
    "blank": ({"load_balancer_traffic_directory": "/var/lib/lms traffic"}, "Give an absolute path"),
}


def test_what_traffic_cannot_be_split_by_is_refused_before_anything_changes(host, all_blue):
    once(host)
    cases = {
        name: ({"load_balancer_sites": [{**API, **change}, STUDENT]}, fault) for name, (change, fault) in REFUSED.items()
    } | REFUSED_VARIABLES
    before = host.check_output(f"sha1sum /etc/nginx/nginx.conf {TRAFFIC}/sites.json")

    found = answers(host, "load_balancer", {name: variables for name, (variables, _fault) in cases.items()})

    assert {name: fault in found[name].failure for name, (_variables, fault) in cases.items()} == dict.fromkeys(cases, True), found
    assert {name: answer.changed for name, answer in found.items()} == dict.fromkeys(cases, 0)
    assert host.check_output(f"sha1sum /etc/nginx/nginx.conf {TRAFFIC}/sites.json") == before


def test_a_server_that_nobody_knows_is_refused_before_anything_changes(host, all_blue):
    once(host)
    before = host.check_output(f"sha1sum /etc/nginx/nginx.conf {TRAFFIC}/sites.json")
    strangers = [
        {"name": "api_blue", "servers": [{"address": "127.0.0.1", "port": 9001}]},
        {"name": "student", "servers": [{"address": "127.0.0.1", "port": 9021}]},
    ]

    run = play(
        host, "load_balancer", load_balancer_upstreams=[*strangers, {"name": "api_green", "servers": [{"address": "nobody.invalid"}]}]
    )

    assert run.returncode != 0
    assert 'host not found in upstream "nobody.invalid"' in said(run)
    assert host.check_output(f"sha1sum /etc/nginx/nginx.conf {TRAFFIC}/sites.json") == before
    assert colours(host) == {"blue"}


def test_a_site_gets_colours_and_gives_them_up(host, all_blue):
    once(host)
    upstreams = [
        {"name": name, "servers": [{"address": "127.0.0.1", "port": port} for port in ports]}
        for name, ports in {"api_blue": [9001, 9002], "api_green": [9011, 9012], "student": [9021]}.items()
    ]
    plain = {name: value for name, value in API.items() if name != "upstreams"} | {"upstream": "api_green"}

    switch(host, green=5)
    without = play(host, "load_balancer", load_balancer_sites=[plain, STUDENT], load_balancer_upstreams=upstreams)
    served = colours(host)
    told = host.file(f"{TRAFFIC}/sites.json").exists
    again = play(host, "load_balancer")

    assert [without.returncode, again.returncode] == [0, 0], said(without) + said(again)
    assert served == {"green"}
    # The modules cannot move what nginx does not go by, and weights that were there are there again.
    assert not told
    assert Counter(status(host)) == {"blue": 95, "green": 5}


def test_kept_connections_to_servers_do_not_keep_a_colour(host, all_blue):
    once(host)
    run = play(host, "load_balancer", load_balancer_keepalive=16, load_balancer_traffic_affinity="request")
    with load(host) as found:
        for green in (100, 0, 100):
            switch(host, green=green)
            host.check_output("sleep 1")
    after = colours(host)
    back = play(host, "load_balancer")

    assert [run.returncode, back.returncode] == [0, 0], said(run) + said(back)
    assert found.failed == {}
    assert min(found.colours["blue"], found.colours["green"]) > 20
    assert after == {"green"}
