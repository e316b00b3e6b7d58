"""What an operator and a visitor notice of the nginx role."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from checks import apply_role, once, said, service_is_up

SECURITY_HEADERS = {
    "content-security-policy": "base-uri 'self'; frame-ancestors 'self'; object-src 'none'",
    "referrer-policy": "strict-origin-when-cross-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
}

# New connections, one after the other, for some seconds: prints how many answers were right and how many were not.
LOAD = """
import http.client, sys, threading, time
right, wrong = [], []
end = time.time() + float(sys.argv[1])
def visit():
    while time.time() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=10)
            connection.request("GET", "/load", headers={"Host": "api.lms.test"})
            status = connection.getresponse().status
            (right if status == 200 else wrong).append(status)
        except OSError as error:
            wrong.append(error)
threads = [threading.Thread(target=visit) for _visit in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(right), len(wrong))
"""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def told(self):
        """What the application behind nginx was told."""
        return json.loads(self.body)["told"]


def visit(host, path, site="api", port=8000, options=""):
    """Visit a site with curl, and return the answer."""
    url = shlex.quote(f"http://{site}.lms.test:{port}{path}")
    output = host.check_output(
        f"curl --silent --include --path-as-is --http1.1 --resolve '{site}.lms.test:{port}:127.0.0.1' {options} {url}"
    )
    head, _blank, body = output.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.split("\n")
    return Answer(int(status.split()[1]), {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body)


def security_headers_of(answer):
    return {name: answer.headers.get(name) for name in SECURITY_HEADERS}


def running_configuration(host):
    return host.check_output("curl --silent --fail http://127.0.0.1:8081/configuration")


def start(host, unit, *command):
    host.check_output(f"systemctl is-active {unit} || systemd-run --collect --unit={unit} {shlex.join(command)}")


@pytest.fixture(scope="module", autouse=True)
def applications(host):
    """Two releases of an application, and the processes behind nginx."""
    program = Path(__file__).parents[1].joinpath("applications.py").read_text()
    host.check_output("mkdir -p /srv/backend && printf %%s %s > /srv/applications.py", program)
    for release in "12":
        public = f"/srv/backend/releases/{release}/public"
        host.check_output(f"mkdir -p {public}/build {public}/.well-known {public}/.git {public}/uploads")
        host.check_output(f"echo file-of-{release} | tee {public}/file.txt {public}/build/app-1234.js {public}/.well-known/security.txt")
        for secret in [".env", ".git/config", "index.php", "other.php", "uploads/x.PHP", "x.phtml"]:
            host.check_output(f"echo secret > {public}/{secret}")
    point_to(host, "1")
    for kind, socket, name in [("fastcgi", "php", "php"), ("http", "one", "one"), ("http", "two", "two")]:
        start(host, f"application-{name}", "python3", "/srv/applications.py", kind, f"/run/applications/{socket}.sock", name)
    for release in "12":
        socket = f"/srv/backend/releases/{release}/run/fpm.sock"
        start(host, f"application-of-release-{release}", "python3", "/srv/applications.py", "fastcgi", socket, release)
        host.check_output("timeout 10 sh -c 'until [ -S %s ]; do sleep 0.1; done'", socket)
    host.check_output("timeout 10 sh -c 'until [ -S /run/applications/two.sock ]; do sleep 0.1; done'")
    host.check_output("ln -sfn one.sock /run/applications/current.sock")


def point_to(host, release):
    """Switch the release as a deploy does: a new link is renamed over the old one."""
    host.check_output(f"cd /srv/backend && ln -s releases/{release} next && mv -T next current")


def test_nginx_runs_and_starts_at_boot(host):
    assert service_is_up(host, "nginx")


def test_the_next_request_after_a_switch_reaches_the_new_release(host):
    before = visit(host, "/courses?page=2").told

    point_to(host, "2")
    after, file = visit(host, "/courses?page=2").told, visit(host, "/file.txt").body
    point_to(host, "1")

    assert before["SCRIPT_FILENAME"] == "/srv/backend/releases/1/public/index.php"
    assert after["SCRIPT_FILENAME"] == "/srv/backend/releases/2/public/index.php"
    assert after["DOCUMENT_ROOT"] == "/srv/backend/releases/2/public"
    assert after["QUERY_STRING"] == "page=2"
    assert file == "file-of-2"


def test_one_link_decides_for_socket_and_files_and_the_script_stays(host):
    seen = []
    for release in ["1", "2", "1"]:
        point_to(host, release)
        answer = visit(host, "/courses?page=2", "fixed", 8002)
        seen.append((json.loads(answer.body)["name"], visit(host, "/file.txt", "fixed", 8002).body))

    assert seen == [("1", "file-of-1"), ("2", "file-of-2"), ("1", "file-of-1")]
    assert answer.told["SCRIPT_FILENAME"] == "/srv/backend/live/release/public/index.php"
    assert answer.told["DOCUMENT_ROOT"] == "/srv/backend/live/release/public"
    assert (answer.told["SCRIPT_NAME"], answer.told["QUERY_STRING"]) == ("/index.php", "page=2")


def test_the_next_request_after_a_switched_socket_reaches_the_new_process(host):
    names = []
    for socket in ["one", "two", "one"]:
        host.check_output(f"cd /run/applications && ln -s {socket}.sock next && mv -T next current.sock")
        names.append(json.loads(visit(host, "/", "student", 3001).body)["name"])

    assert names == ["one", "two", "one"]


@pytest.mark.parametrize(
    "path",
    [
        "/.env",
        "/.git/config",
        "/other.php",
        "/index.php/x",
        "/uploads/x.PHP",
        "/uploads/x.PHP/y",
        "/x.phtml",
        "/build/../.env",
        "/build../.env",
    ],
)
def test_what_is_not_public_is_not_there(host, path):
    answer = visit(host, path)

    # Laravel answers unknown paths, so that some of these reach it; none may show a file or run a script of its own.
    assert "secret" not in answer.body
    assert answer.status == 404 or answer.told["SCRIPT_NAME"] == "/index.php"


def test_the_well_known_folder_is_public(host):
    assert visit(host, "/.well-known/security.txt").body == "file-of-1"


@pytest.mark.parametrize(
    ("path", "status"), [("/", 200), ("/missing", 404), ("/broken", 500), ("/.env", 404), ("/file.txt", 200), ("/build/app-1234.js", 200)]
)
def test_every_answer_has_the_security_headers(host, path, status):
    answer = visit(host, path)

    assert answer.status == status
    assert security_headers_of(answer) == SECURITY_HEADERS


def test_the_application_may_send_its_own_security_headers(host):
    headers = security_headers_of(visit(host, "/own-headers"))

    assert headers == SECURITY_HEADERS | {"x-frame-options": "DENY", "content-security-policy": "default-src 'self'"}


def test_a_site_may_differ_in_its_security_headers(host):
    headers = visit(host, "/", "student", 3001).headers

    assert "x-frame-options" not in headers
    assert headers["permissions-policy"] == "camera=()"


def test_assets_may_be_kept_but_not_their_absence(host):
    assert visit(host, "/build/app-1234.js").headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "cache-control" not in visit(host, "/build/app-5678.js").headers
    assert "cache-control" not in visit(host, "/file.txt").headers


@pytest.mark.parametrize("port", [8000, 3001])
def test_an_unknown_host_name_gets_no_answer(host, port):
    result = host.run(f"curl --silent --include --header 'Host: evil.example' http://127.0.0.1:{port}/")

    assert (result.rc, result.stdout) == (52, "")


def test_a_trusted_proxy_says_who_the_client_is(host):
    forwarded = "--header 'X-Forwarded-For: 203.0.113.7' --header 'X-Forwarded-Proto: https' --header 'X-Request-Id: abc-123'"
    told = visit(host, "/", options=f"--interface 127.0.0.2 {forwarded}").told

    assert (told["REMOTE_ADDR"], told["HTTPS"], told["SERVER_PORT"]) == ("203.0.113.7", "on", "8000")
    assert (told["HTTP_X_FORWARDED_PROTO"], told["HTTP_X_REQUEST_ID"]) == ("https", "abc-123")


def test_nobody_else_is_believed(host):
    headers = ["X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil.example", "Proxy: evil"]
    lies = " ".join(f"--header '{header}'" for header in headers)
    php = visit(host, "/", options=lies).told
    node = visit(host, "/", "student", 3001, options=lies).told

    assert (php["REMOTE_ADDR"], php.get("HTTPS"), php["HTTP_X_FORWARDED_FOR"]) == ("127.0.0.1", None, "127.0.0.1")
    assert (php["HTTP_X_FORWARDED_HOST"], php["HTTP_X_FORWARDED_PROTO"]) == ("api.lms.test:8000", "http")
    assert (node["x-forwarded-for"], node["x-forwarded-host"], node["x-forwarded-proto"]) == ("127.0.0.1", "student.lms.test:3001", "http")
    assert node["host"] == "student.lms.test:3001"
    assert "HTTP_PROXY" not in php
    assert "proxy" not in node


def test_the_log_tells_each_request_in_json(host):
    visit(host, '/logged?quote="', options="--header 'User-Agent: tester \"quoted\"'")

    entries = [json.loads(line) for line in host.check_output("tail -n 20 /var/log/nginx/access.log").splitlines()]
    entry = next(entry for entry in entries if entry["uri"].startswith("/logged"))
    assert (entry["status"], entry["host"], entry["method"], entry["client"]) == (200, "api.lms.test", "GET", "127.0.0.1")
    assert (entry["agent"], entry["upstream_status"]) == ('tester "quoted"', "200")


def test_figures_are_for_the_host_alone(host):
    assert "Active connections" in host.check_output("curl --silent --fail http://127.0.0.1:8081/stub_status")
    assert host.run("curl --silent --fail http://$(hostname --ip-address):8081/stub_status").rc == 7


def test_the_version_is_not_told(host):
    assert visit(host, "/").headers["server"] == "nginx"


def test_a_reload_breaks_no_request(host):
    host.check_output("for i in 1 2 3 4; do sleep 0.5; systemctl reload nginx; done & echo")
    right, wrong = map(int, host.check_output("python3 -c %s 3", LOAD).split())

    assert right > 100
    assert wrong == 0


def test_a_run_that_was_cut_off_is_made_good_by_the_next(host):
    once(host)
    wanted = running_configuration(host)
    old = f"sed --in-place=.new 's/{wanted}/old/' /etc/nginx/nginx.conf && systemctl reload nginx && sleep 1"
    host.check_output(f"{old} && mv /etc/nginx/nginx.conf.new /etc/nginx/nginx.conf")
    assert running_configuration(host) == "old"

    run = apply_role(host, "nginx")

    assert run.returncode == 0, run.stdout
    assert running_configuration(host) == wanted


def test_a_configuration_that_nginx_rejects_does_not_land(host):
    wanted = running_configuration(host)

    run = apply_role(host, "nginx", nginx_client_max_body_size="plenty")

    assert run.returncode != 0
    assert '"client_max_body_size" directive invalid value' in said(run)
    assert "plenty" not in host.file("/etc/nginx/nginx.conf").content_string
    assert running_configuration(host) == wanted
    assert visit(host, "/").status == 200


def test_an_occupied_port_is_named_at_a_reload_and_at_a_start(host):
    once(host)
    host.check_output("systemd-run --collect --unit=squatter python3 -m http.server 9000 && sleep 1")
    site = {"name": "late", "listen": ["9000"], "server_names": ["late.lms.test"], "root": "/srv"}

    reloaded = apply_role(host, "nginx", nginx_sites=[site])
    host.check_output("systemctl stop nginx")
    started = apply_role(host, "nginx", nginx_sites=[site])
    host.check_output("systemctl stop squatter && systemctl start nginx")

    assert "port 9000 is held by python3 (pid " in said(reloaded)
    assert "port 9000 is held by python3 (pid " in said(started)
    assert (reloaded.returncode, started.returncode) == (2, 2)
