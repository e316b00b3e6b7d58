"""What an operator and a visitor notice of the load_balancer role."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from checks import apply_role, converge, listening_addresses, once, said, service_is_up

HSTS = "max-age=63072000"

# New connections that verify the certificate, for some seconds: prints how many answers were right and how many were not.
LOAD = """
import http.client, ssl, sys, threading, time
right, wrong = [], []
end = time.time() + float(sys.argv[1])
context = ssl.create_default_context(cafile="/etc/ssl/lms/authority.pem")
def visit(method):
    while time.time() < end:
        try:
            connection = http.client.HTTPSConnection("api.lms.test", 443, timeout=10, context=context)
            connection.request(method, "/load")
            status = connection.getresponse().status
            (right if status == 200 else wrong).append(status)
        except OSError as error:
            wrong.append(error)
threads = [threading.Thread(target=visit, args=[method]) for method in ["GET", "GET", "POST", "POST"]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(right), len(wrong), wrong[:1])
"""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def backend(self):
        return json.loads(self.body)


def curl(host, url, options=""):
    """Run curl as a client that knows the throwaway authority and where the sites are."""
    resolve = "--resolve '*:80:127.0.0.1' --resolve '*:443:127.0.0.1'"
    return host.run(f"curl --silent --include {resolve} --cacert /etc/ssl/lms/authority.pem {options} {shlex.quote(url)}")


def visit(host, path, site="api", options="", scheme="https"):
    """Visit a site, and return the answer."""
    result = curl(host, f"{scheme}://{site}.lms.test{path}", options)
    assert result.rc == 0, result
    head, _blank, body = result.stdout.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.split("\n")
    return Answer(int(status.split()[1]), {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body)


def running_configuration(host):
    return host.check_output("curl --silent --fail http://127.0.0.1:8081/configuration")


def handshake(host, options):
    return host.run(f"openssl s_client -connect 127.0.0.1:443 -servername api.lms.test -brief {options} </dev/null")


def accepted_ciphers(host):
    """Return the ciphers of TLS 1.2 that a client may have, of all that its OpenSSL knows."""
    known = host.check_output("openssl ciphers -s -tls1_2 ALL:COMPLEMENTOFALL:@SECLEVEL=0").split(":")
    options = "-connect 127.0.0.1:443 -servername api.lms.test -tls1_2 </dev/null >/dev/null 2>&1"
    script = f"for cipher in {' '.join(known)}; do openssl s_client -cipher $cipher:@SECLEVEL=0 {options} && echo $cipher; done; true"
    return set(host.check_output(script).split())


def start(host, name, address):
    """Start a server, unless it runs, and wait until it listens."""
    host.check_output(f"systemctl is-active {name} || systemd-run --collect --unit={name} python3 /srv/backend.py {name} {address}")
    listens = f'ss --listening --no-header | grep -qE "[:/]({address}|student.sock) "'
    host.check_output(f"timeout 10 sh -c 'until {listens}; do sleep 0.1; done'")


@pytest.fixture(scope="module", autouse=True)
def backends(host):
    """The servers behind the load balancer."""
    host.check_output("printf %s %s > /srv/backend.py", "%s", Path(__file__).parents[1].joinpath("backend.py").read_text())
    host.check_output("grep -q lms.test /etc/hosts || echo 127.0.0.1 api.lms.test >> /etc/hosts")
    for name, address in [("one", "9001"), ("two", "9002"), ("student", "/run/student.sock")]:
        start(host, name, address)


@pytest.fixture
def one_stopped(host):
    host.check_output("systemctl stop one")
    yield
    start(host, "one", "9001")


@pytest.fixture
def all_stopped(host):
    host.check_output("systemctl stop one two")
    yield
    start(host, "one", "9001")
    start(host, "two", "9002")
    # The servers rest after their failures.
    host.check_output("sleep 5")


def test_it_runs_and_starts_at_boot(host):
    assert service_is_up(host, "nginx")


def test_clients_are_served_on_all_addresses(host):
    assert listening_addresses(host, 443) == {"0.0.0.0"}  # noqa: S104
    assert listening_addresses(host, 8081) == {"127.0.0.1"}


def test_a_client_that_verifies_speaks_http_2(host):
    result = curl(host, "https://student.lms.test/", "--write-out 'version:%{http_version}'")

    assert result.stdout.endswith("version:2")


def test_http_leads_to_https_where_clients_see_it(host):
    answer = visit(host, "/courses?page=2", scheme="http")

    assert (answer.status, answer.headers["location"]) == (301, "https://api.lms.test:8443/courses?page=2")


def test_challenges_of_an_acme_server_are_answered_before_the_redirect(host):
    host.check_output("mkdir -p /var/lib/lms-acme/.well-known/acme-challenge && cd /var/lib/lms-acme && echo secret > other")
    host.check_output("echo token.thumbprint > /var/lib/lms-acme/.well-known/acme-challenge/token")
    challenge = "/.well-known/acme-challenge"

    answer = visit(host, f"{challenge}/token", scheme="http")

    assert (answer.status, answer.body.strip(), answer.headers["content-type"]) == (200, "token.thumbprint", "text/plain; charset=utf-8")
    assert visit(host, f"{challenge}/unknown", scheme="http").status == 404
    assert visit(host, "/other", scheme="http").status == 301
    assert visit(host, f"{challenge}/../../other", scheme="http", options="--path-as-is").status == 301
    assert curl(host, f"http://evil.example{challenge}/token").rc == 52


@pytest.mark.parametrize(
    ("url", "options", "statuses"),
    [
        ("http://evil.example/", "", {52}),
        ("https://evil.example/", "--insecure", {35}),
        ("https://127.0.0.1/", "--insecure", {35}),
        # Versions of curl differ in how they call a connection that is closed instead of an answer.
        ("https://api.lms.test/", "--http1.1 --header 'Host: evil.example'", {52, 56}),
    ],
)
def test_an_unknown_host_name_gets_no_answer(host, url, options, statuses):
    result = curl(host, url, options)

    assert result.rc in statuses
    assert result.stdout == ""


def test_old_tls_is_refused(host):
    assert handshake(host, "-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256").rc == 0
    assert handshake(host, "-tls1_1 -cipher ALL@SECLEVEL=0").rc == 1
    assert handshake(host, "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA").rc == 1


def test_the_key_exchange_withstands_quantum_computers_where_openssl_can(host):
    capable = "OpenSSL 3.5" in host.check_output("openssl version")

    assert (handshake(host, "-groups X25519MLKEM768").rc == 0) == capable


def test_the_intermediate_profile_offers_what_mozilla_lists_and_nothing_more(host):
    assert accepted_ciphers(host) == {
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    }
    curves = ["X25519", "P-256", "P-384", "X448", "P-521"]
    assert [curve for curve in curves if handshake(host, f"-groups {curve}").rc == 0] == ["X25519", "P-256", "P-384"]


def test_the_modern_profile_speaks_tls_1_3_alone(host):
    once(host)
    run = converge(host, load_balancer_tls_profile="modern")
    tls = {version: handshake(host, f"-{version}").rc for version in ("tls1_2", "tls1_3")}
    status = visit(host, "/").status
    back = converge(host)

    assert [run.returncode, back.returncode] == [0, 0], said(run) + said(back)
    assert tls == {"tls1_2": 1, "tls1_3": 0}
    assert status == 200
    assert handshake(host, "-tls1_2").rc == 0


def test_all_servers_get_requests(host):
    names = [visit(host, "/").backend["name"] for _visit in range(6)]

    assert sorted(names) == ["one"] * 3 + ["two"] * 3


def test_a_server_that_is_down_gets_none(host):
    names = {visit(host, "/", "student").backend["name"] for _visit in range(6)}

    assert names == {"student"}


def test_servers_are_told_who_asks_and_how(host):
    lies = ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: http", "X-Request-Id: evil", "Forwarded: for=203.0.113.7"]
    answer = visit(host, "/", options=" ".join(f"--header '{lie}'" for lie in lies))
    told = answer.backend["told"]

    assert {name: told.get(name) for name in told if name.startswith(("x-", "forwarded", "host"))} == {
        "host": "api.lms.test",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "api.lms.test",
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
        "x-real-ip": "127.0.0.1",
        "x-request-id": answer.headers["x-request-id"],
    }


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/missing", 404), ("/maintenance", 503)])
def test_answers_of_servers_come_through_with_hsts(host, path, status):
    answer = visit(host, path)

    assert (answer.status, answer.headers["strict-transport-security"]) == (status, HSTS)
    assert answer.backend["name"] in {"one", "two"}


def test_what_may_be_sent_twice_is_and_what_may_not_is_not(host):
    gotten = visit(host, "/dies/get")
    posted = visit(host, "/dies/post", options="--data x=1")
    answers = [visit(host, "/").backend for _visit in range(4)]
    seen = [entry for entries in {answer["name"]: answer["seen"] for answer in answers}.values() for entry in entries]

    # A GET goes on to the other server, where it dies too. A POST has been seen by one server alone.
    assert (gotten.status, posted.status) == (502, 502)
    assert (seen.count("GET /dies/get"), seen.count("POST /dies/post")) == (2, 1)


def test_a_page_that_breaks_every_server_takes_none_out(host):
    poisoned = [visit(host, "/poison").status for _visit in range(4)]
    others = [visit(host, "/").status for _visit in range(10)]

    assert poisoned == [502] * 4
    assert others == [200] * 10


def test_a_stopped_server_is_not_noticed(host, one_stopped):
    curl = "curl --silent --output /dev/null --write-out '%{http_code} ' --cacert /etc/ssl/lms/authority.pem https://api.lms.test/"
    statuses = host.check_output(f"for method in GET POST; do for i in $(seq 25); do {curl} --request $method; done; done")

    assert statuses.split() == ["200"] * 50


def test_a_page_of_our_own_tells_that_no_server_answers(host, all_stopped):
    answer = visit(host, "/")

    assert answer.status == 502
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["strict-transport-security"] == HSTS
    assert "Back in a moment" in answer.body
    assert answer.headers["x-request-id"] in answer.body


def test_the_log_tells_each_request_in_json(host):
    answer = visit(host, '/logged?quote="')

    entries = [json.loads(line) for line in host.check_output("tail -n 20 /var/log/nginx/access.log").splitlines()]
    entry = next(entry for entry in entries if entry["id"] == answer.headers["x-request-id"])
    assert (entry["status"], entry["host"], entry["uri"], entry["upstream_status"]) == (200, "api.lms.test", '/logged?quote="', "200")
    assert entry["upstream"] in {"127.0.0.1:9001", "127.0.0.1:9002"}
    assert float(entry["upstream_seconds"]) >= 0


def test_probes_and_figures_are_for_the_host_alone(host):
    assert host.check_output("curl --silent --fail http://127.0.0.1:8081/load-balancer/health") == "healthy"
    assert "Active connections" in host.check_output("curl --silent --fail http://127.0.0.1:8081/stub_status")


def test_a_reload_breaks_no_request(host):
    host.check_output("for i in 1 2 3 4; do sleep 0.5; systemctl reload nginx; done & echo")
    right, wrong, errors = host.check_output("python3 -c %s 3", LOAD).split(maxsplit=2)

    assert int(right) > 50
    assert (wrong, errors) == ("0", "[]")


def test_a_new_certificate_is_served_at_once(host):
    more = {"name": "lms", "names": ["api.lms.test", "new.lms.test"], "source": "authority"}

    run = apply_role(host, "certificate", certificate_list=[more])

    assert run.returncode == 0, said(run)
    served = host.check_output("openssl s_client -connect 127.0.0.1:443 -servername api.lms.test </dev/null | openssl x509 -noout -text")
    assert "new.lms.test" in served


def test_a_run_that_was_cut_off_is_made_good_by_the_next(host):
    once(host)
    wanted = running_configuration(host)
    old = f"sed --in-place=.new 's/{wanted}/old/' /etc/nginx/nginx.conf && systemctl reload nginx && sleep 1"
    host.check_output(f"{old} && mv /etc/nginx/nginx.conf.new /etc/nginx/nginx.conf")
    assert running_configuration(host) == "old"

    run = converge(host)

    assert run.returncode == 0, said(run)
    assert running_configuration(host) == wanted


def test_a_configuration_that_nginx_rejects_does_not_land(host):
    once(host)
    wanted = running_configuration(host)

    run = converge(host, load_balancer_upstreams=[{"name": "api", "servers": [{"address": "127.0.0.1", "port": 9001}]}])

    # The site of the front end has lost its servers: nginx would look for a host of that name.
    assert run.returncode != 0
    assert 'host not found in upstream "student"' in said(run)
    assert running_configuration(host) == wanted
    assert visit(host, "/").status == 200


def test_an_occupied_port_is_named(host):
    once(host)
    host.check_output("systemctl stop nginx && systemd-run --collect --unit=squatter python3 -m http.server 80 && sleep 1")
    occupied = converge(host)
    host.check_output("systemctl stop squatter && systemctl start nginx")

    assert occupied.returncode != 0
    assert "port 80 is held by python3 (pid " in said(occupied)
