"""The exporters that are programs of the role, with stand-ins for what they look at."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import socketserver
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "roles/prometheus_exporter/files/exporters"
STATUS = {
    "pool": 'a "pool"',
    "process manager": "static",
    "start time": 1764000000,
    "accepted conn": 12,
    "listen queue": 3,
    "max listen queue": 4,
    "listen queue len": 511,
    "idle processes": 0,
    "active processes": 2,
    "total processes": 2,
    "max active processes": 2,
    "max children reached": 0,
    "slow requests": 0,
}


def load(name):
    loader = importlib.machinery.SourceFileLoader(f"exporter_{name}", str(FOLDER / f"{name}.py"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def phpfpm(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load("phpfpm")


@pytest.fixture
def accesslog(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load("accesslog")


def record(kind, content=b""):
    return struct.pack(">BBHHBB", 1, kind, 1, len(content), 0, 0) + content


def answer(body, headers=b"Content-Type: application/json"):
    return record(6, headers + b"\r\n\r\n" + body[:40]) + record(6, body[40:]) + record(3, bytes(8))


@pytest.fixture
def pool(tmp_path):
    """Return a function that starts a pool, and gives its socket."""
    servers = []

    def start(name, output, seen=None):
        class Pool(socketserver.StreamRequestHandler):
            def handle(self):
                kind, words = None, b""
                while kind != 5:
                    _version, kind, _request, length, padding, _reserved = struct.unpack(">BBHHBB", self.rfile.read(8))
                    words += self.rfile.read(length + padding)[:length]
                if seen is not None:
                    seen.append(words)
                # Errors that PHP-FPM logs come as records of their own.
                self.wfile.write(record(7, b"a warning") + output)

        server = socketserver.UnixStreamServer(str(tmp_path / name), Pool)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return str(tmp_path / name)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_a_pool_says_becomes_metrics(phpfpm, pool):
    seen = []
    path = pool("a.sock", answer(json.dumps(STATUS).encode()), seen)

    lines = phpfpm.render([path], "/fpm-status").splitlines()

    labels = f'{{pool="a \\"pool\\"",socket="{path}"}}'
    assert f'php_fpm_up{{socket="{path}"}} 1' in lines
    assert [line for line in lines if not line.startswith("#")][1:] == [
        f"{name}{labels} {STATUS[key]}" for name, (_kind, key, _help) in phpfpm.METRICS.items()
    ]
    assert "# TYPE php_fpm_accepted_connections_total counter" in lines
    assert b"SCRIPT_NAME/fpm-status" in seen[0]
    assert b"QUERY_STRINGjson" in seen[0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (answer(b"File not found.\n", b"Status: 404 Not Found"), "/fpm-status is no status page of this pool. It answers: "),
        (b"", "The pool hung up before it was done."),
        (record(6, b"Content-Type: x"), "The pool hung up before it was done."),
    ],
    ids=["no status page", "nothing", "half an answer"],
)
def test_a_pool_that_does_not_tell_is_down_and_the_journal_says_why(phpfpm, pool, capsys, output, message):
    path = pool("a.sock", output)

    text = phpfpm.render([path], "/fpm-status")

    assert text.splitlines()[2:] == [f'php_fpm_up{{socket="{path}"}} 0']
    assert capsys.readouterr().err.startswith(f"{path}: {message}")


def test_one_pool_that_is_down_hides_no_other(phpfpm, pool, tmp_path):
    good = pool("good.sock", answer(json.dumps(STATUS).encode()))
    missing = str(tmp_path / "missing.sock")

    lines = phpfpm.render([missing, good], "/fpm-status").splitlines()

    assert f'php_fpm_up{{socket="{missing}"}} 0' in lines
    assert f'php_fpm_up{{socket="{good}"}} 1' in lines
    assert f'php_fpm_listen_queue{{pool="a \\"pool\\"",socket="{good}"}} 3' in lines


def line(status=200, seconds=0.3, **more):
    return json.dumps({"site": "api", "status": status, "seconds": seconds, **more}) + "\n"


def samples(log):
    """Return the samples that a scrape gives, without those of the histogram's buckets."""
    return [text for text in log.render().splitlines() if not text.startswith("#") and "_bucket" not in text]


def test_what_was_in_the_log_before_is_not_counted(accesslog, tmp_path):
    path = tmp_path / "access.log"
    path.write_text(line() * 3)
    log = accesslog.Log(str(path))

    with path.open("a") as file:
        file.write(line(500) + line(200, 2) + line(200))

    assert samples(log) == [
        "nginx_log_up 1",
        'nginx_log_requests_total{site="api",status="200"} 2',
        'nginx_log_requests_total{site="api",status="500"} 1',
        'nginx_log_request_seconds_sum{site="api"} 2.6',
        'nginx_log_request_seconds_count{site="api"} 3',
        "nginx_log_lines_unreadable_total 0",
    ]


def test_buckets_add_up(accesslog):
    counts = accesslog.Counts()
    for seconds in [0.05, 0.06, 3, 60]:
        counts.add(line(200, seconds).encode())

    found = [text.rpartition(" ") for text in counts.histogram("api") if "_bucket" in text]

    assert {label.partition('le="')[2].partition('"')[0]: int(count) for label, _space, count in found} == {
        "0.05": 1,
        "0.1": 2,
        "0.25": 2,
        "0.5": 2,
        "1.0": 2,
        "2.5": 2,
        "5.0": 3,
        "10.0": 3,
        "+Inf": 4,
    }


def test_a_line_that_is_not_complete_waits_for_its_end(accesslog, tmp_path):
    path = tmp_path / "access.log"
    path.touch()
    log = accesslog.Log(str(path))

    with path.open("a") as file:
        file.write(line()[:10])
        file.flush()
        before = samples(log)
        file.write(line()[10:])

    assert before == ["nginx_log_up 1", "nginx_log_lines_unreadable_total 0"]
    assert 'nginx_log_requests_total{site="api",status="200"} 1' in samples(log)


def test_a_rotation_loses_nothing(accesslog, tmp_path):
    path = tmp_path / "access.log"
    path.touch()
    log = accesslog.Log(str(path))

    with path.open("a") as file:
        file.write(line())
        file.flush()
        path.rename(tmp_path / "access.log.1")
        # nginx writes to the old file until it is told.
        file.write(line())
    path.write_text(line())

    assert 'nginx_log_requests_total{site="api",status="200"} 3' in samples(log)


def test_an_emptied_log_is_read_from_its_beginning(accesslog, tmp_path):
    path = tmp_path / "access.log"
    path.touch()
    log = accesslog.Log(str(path))
    path.write_text(line() * 3)
    samples(log)

    path.write_text(line())

    assert 'nginx_log_requests_total{site="api",status="200"} 4' in samples(log)


def test_a_log_that_is_not_there_is_told_and_read_once_it_is(accesslog, tmp_path, capsys):
    path = tmp_path / "access.log"
    log = accesslog.Log(str(path))

    before = samples(log)
    path.write_text(line())

    assert before == ["nginx_log_up 0", "nginx_log_lines_unreadable_total 0"]
    assert "No such file or directory" in capsys.readouterr().err
    assert samples(log)[:2] == ["nginx_log_up 1", 'nginx_log_requests_total{site="api",status="200"} 1']


@pytest.mark.parametrize(
    "text", ["127.0.0.1 - GET /", "[]", '{"status": 200}', '{"status": "-", "seconds": 1, "site": "x"}', "1", "\xff"], ids=range(6)
)
def test_a_line_that_says_nothing_is_counted_as_such(accesslog, text):
    counts = accesslog.Counts()

    counts.add(text.encode("latin-1"))

    assert (counts.unreadable, dict(counts.requests)) == (1, {})


def test_a_log_without_sites_is_counted_by_the_names_of_hosts(accesslog):
    counts = accesslog.Counts()

    counts.add(b'{"host": "api.example.com", "status": 301, "seconds": 0}')

    assert dict(counts.requests) == {("api.example.com", "301"): 1}


def test_visitors_cannot_make_metrics_without_end(accesslog):
    counts = accesslog.Counts()

    counts.add(line(444, site="evil.example").encode())
    for number in range(1000):
        counts.add(line(site=f"site-{number}").encode())

    assert counts.requests["others", "444"] == 1
    assert len(counts.buckets) == accesslog.SITES
    assert counts.requests["others", "200"] == 1000 - accesslog.SITES + 1


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:{}"), ("[::1]", "http://[::1]:{}")])
def test_a_scrape_is_answered_and_nothing_else_is(phpfpm, host, url):
    server = phpfpm.Server(f"{host}:0", lambda: "up 1\n")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = url.format(server.server_address[1])
    try:
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as found:  # noqa: S310
            assert found.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert found.read() == b"up 1\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/", timeout=5)  # noqa: S310
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", ["accesslog", "phpfpm"])
def test_a_program_says_whether_it_knows_its_arguments(name):
    def run(*arguments):
        return subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *arguments], capture_output=True, text=True, check=False)

    assert run("--web.listen-address=127.0.0.1:9999", "--version").returncode == 0
    refused = run("--no-such-argument", "--version")
    assert refused.returncode == 2
    assert "unrecognized arguments: --no-such-argument" in refused.stderr
