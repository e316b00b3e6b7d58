"""What an operator and a visitor notice of certificates from an ACME server, which here is pebble."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile

import pytest
from checks import Answer, access_to, answers, apply_role, once, said, texts

FOLDER = "/etc/ssl/lms"
WEB = {"name": "web", "names": ["web.lms.test", "www.lms.test"], "source": "acme", "group": "adm"}
LATE = {"name": "late", "names": ["late.lms.test"], "source": "acme"}
HOOK = "/etc/letsencrypt/renewal-hooks/deploy/lms-certificates"
FIGURES = "/var/lib/prometheus/node-exporter/certificates.prom"
CONNECT = "openssl s_client -connect 127.0.0.1:443 -servername {} </dev/null 2>/dev/null"
SITES = [
    {
        "name": item["name"],
        "listen": ["443"],
        "server_names": item["names"],
        "root": "/srv/www",
        "tls": {"certificate": f"{FOLDER}/{item['name']}/fullchain.pem", "key": f"{FOLDER}/{item['name']}/privkey.pem"},
    }
    for item in (WEB, LATE)
]
CERTBOT = "REQUESTS_CA_BUNDLE=/etc/pebble.pem certbot --no-random-sleep-on-renew"

# A DNS server that may be changed by those who have the key, and a second pebble that asks it.
KEY = "c2VjcmV0LW9mLXRoZS10ZXN0cy1mb3ItdGhlLWRucw=="
ZONE = """$TTL 1
@ IN SOA ns.lms.test. admin.lms.test. 1 60 60 60 1
@ IN NS ns.lms.test.
ns IN A 127.0.0.1
"""
NAMED = f"""
options {{ directory "/var/cache/bind"; listen-on port 5353 {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; pid-file none; }};
controls {{ }};
key certbot {{ algorithm hmac-sha256; secret "{KEY}"; }};
zone lms.test {{ type primary; file "/var/cache/bind/lms.test"; allow-update {{ key certbot; }}; }};
"""
CREDENTIALS = f"""dns_rfc2136_server = 127.0.0.1
dns_rfc2136_port = 5353
dns_rfc2136_name = certbot.
dns_rfc2136_secret = {KEY}
dns_rfc2136_algorithm = HMAC-SHA256
"""

# New connections, one after the other, until a file says that it is enough: prints how many answers were right and how many were not.
# The pause leaves the host time for what is tested.
LOAD = """
import http.client, pathlib, ssl, threading, time
right, wrong = [], []
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
def visit():
    while not pathlib.Path("/run/enough").exists():
        try:
            connection = http.client.HTTPSConnection("web.lms.test", 443, timeout=10, context=context)
            connection.request("GET", "/")
            answer = connection.getresponse()
            (right if (answer.status, answer.read()) == (200, b"page\\n") else wrong).append(answer.status)
        except OSError as error:
            wrong.append(error)
        time.sleep(0.02)
threads = [threading.Thread(target=visit) for _visit in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(right), len(wrong), wrong[:1])
"""


def issue(host, *options, **variables):
    """Request what is missing."""
    inventory, role = os.environ["MOLECULE_INVENTORY_FILE"], "name=bitflow.lms.certificate tasks_from=issue"
    command = ["ansible", host.backend.get_hostname(), f"--inventory={inventory}", "--module-name=include_role", f"--args={role}"]
    return subprocess.run([*command, f"--extra-vars={json.dumps(variables)}", *options], capture_output=True, text=True, check=False)


def part(role="certificate", tasks="main", **variables):
    """Return a task that applies part of a role with the variables."""
    return {"include_role": {"name": f"bitflow.lms.{role}", "tasks_from": tasks}, "vars": variables}


def web_server(**variables):
    """Return the tasks that have the web server serve the sites of these tests."""
    return [part("nginx", tasks, nginx_sites=SITES, **variables) for tasks in ("configure", "service")]


def look(command):
    """Return a task that runs a command on the host."""
    return {"ansible.builtin.shell": command, "changed_when": False}


def steps(host, *plays):
    """Run each list of tasks as a play, all in one run, and return for each how it ended and what its last task printed.

    What fails does not keep the next play from being run.
    """
    name = host.backend.get_hostname()
    goes_on = [{"meta": "clear_host_errors"}]
    playbook = [{"hosts": name, "tasks": [{"block": tasks, "rescue": goes_on}]} for tasks in plays]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(playbook, file)
        file.flush()
        command = ["ansible-playbook", file.name, f"--inventory={os.environ['MOLECULE_INVENTORY_FILE']}"]
        environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    report = json.JSONDecoder().raw_decode(run.stdout[run.stdout.index("{") :])[0]
    found = []
    for play in report["plays"]:
        results = [task["hosts"][name] for task in play["tasks"] if name in task["hosts"]]
        failure = " ".join(texts([result for result in results if result.get("failed")]))
        changed = sum(bool(result.get("changed")) for result in results)
        found.append((Answer(failure, changed), results[-1].get("stdout", "")))
    return found, run.stdout


def tell_dns(host, what, name):
    host.check_output("curl --silent --fail --data %s http://127.0.0.1:8055/%s", json.dumps({"host": name}), what)


def served(host, name="web.lms.test"):
    """Return the serial number, the issuer and the names of the certificate that a visitor of the name gets."""
    text = host.check_output(f"{CONNECT.format(name)} | openssl x509 -noout -serial -issuer -ext subjectAltName")
    serial, issuer = re.findall(r"^(?:serial|issuer)=(.*)$", text, re.MULTILINE)
    return serial, issuer, sorted(re.findall(r"DNS:([^\s,]+)", text))


def serial(host):
    return served(host)[0]


def reloads(host):
    """Return how often nginx was told to reload."""
    return int(host.check_output("journalctl --unit nginx --output cat | grep -c '^Reloaded nginx'"))


@pytest.fixture
def visitors(host):
    """People who visit the site all the while. Call the result to learn how many answers were right, and how many were not."""
    host.check_output("rm -f /run/enough && printf %s %s > /srv/load.py", "%s", LOAD)
    host.check_output("systemd-run --collect --unit=visitors sh -c 'python3 /srv/load.py > /run/visitors'")

    def leave():
        host.check_output("touch /run/enough && timeout 30 sh -c 'while systemctl is-active --quiet visitors; do sleep 0.1; done'")
        right, wrong, first = host.check_output("cat /run/visitors").split(maxsplit=2)
        return int(right), int(wrong), first

    yield leave
    host.check_output("touch /run/enough")


def test_a_visitor_that_trusts_the_acme_server_trusts_the_site(host):
    host.check_output("curl --silent --fail --cacert /etc/pebble.pem https://localhost:15000/roots/0 > /run/pebble.root")

    answer = host.check_output("curl --silent --fail --cacert /run/pebble.root https://www.lms.test/")

    assert answer == "page"
    assert served(host)[2] == WEB["names"]


def test_the_key_is_readable_for_those_who_were_named(host):
    assert access_to(host, f"{FOLDER}/web/privkey.pem") == ("root", "adm", "0640")
    assert access_to(host, f"{FOLDER}/web/fullchain.pem") == ("root", "root", "0644")


def test_challenges_are_answered_and_all_else_is_redirected(host):
    ask = "curl --silent --output /dev/null --write-out '%{http_code}%{redirect_url}' http://web.lms.test"

    assert host.check_output(f"{ask}/.well-known/acme-challenge/probe") == "200"
    assert host.check_output(f"{ask}/.well-known/acme-challenge/unknown") == "404"
    assert host.check_output(f"{ask}/courses?page=2") == "301https://web.lms.test/courses?page=2"


def test_the_timer_that_renews_is_on(host):
    assert host.check_output("systemctl is-active certbot.timer lms-certificate-metrics.timer").split() == ["active", "active"]
    assert host.check_output("systemctl is-enabled certbot.timer lms-certificate-metrics.timer").split() == ["enabled", "enabled"]


def test_figures_tell_when_each_certificate_ends(host):
    host.check_output(f"rm {FIGURES} && systemctl start lms-certificate-metrics.service")
    ends = {
        name: host.check_output(f'date --date "$(openssl x509 -in {FOLDER}/{name}/fullchain.pem -noout -enddate | cut -d= -f2)" +%s')
        for name in ("lms", "web")
    }

    figures = [line for line in host.file(FIGURES).content_string.splitlines() if not line.startswith("#")]

    assert figures == [
        f'tls_certificate_expiry_timestamp_seconds{{name="lms"}} {ends["lms"]}',
        f'tls_certificate_expiry_timestamp_seconds{{name="web"}} {ends["web"]}',
        'tls_certificate_self_signed{name="lms"} 0',
        'tls_certificate_self_signed{name="web"} 0',
    ]
    assert access_to(host, FIGURES) == ("root", "root", "0644")
    assert host.check_output("systemd-analyze security lms-certificate-metrics.service --threshold=30 >/dev/null && echo fine") == "fine"


def test_a_renewal_of_the_packaged_unit_is_served_and_breaks_no_request(host, visitors):
    before = serial(host)
    # Due already: the certificates of pebble are valid for years.
    host.check_output("sed --in-place '1i renew_before_expiry = 9000 days' /etc/letsencrypt/renewal/web.conf")

    host.check_output("systemctl start certbot.service")
    host.check_output("sed --in-place '/^renew_before_expiry/d' /etc/letsencrypt/renewal/web.conf")

    right, wrong, first = visitors()
    assert serial(host) != before
    assert access_to(host, f"{FOLDER}/web/privkey.pem") == ("root", "adm", "0640")
    assert (wrong, first) == (0, "[]")
    assert right > 50


def test_a_renewal_that_was_cut_off_is_made_good_by_the_next_run(host):
    once(host)
    # As if certbot had been killed before it ran what follows a renewal.
    host.check_output(f"{CERTBOT} renew --quiet --force-renewal --cert-name web --no-directory-hooks")
    new = host.check_output("openssl x509 -in /etc/letsencrypt/live/web/fullchain.pem -noout -serial").partition("=")[2]
    assert serial(host) != new

    alone = {"certificate_list": [WEB], "certificate_authority_directory": "", "certificate_metrics_directory": ""}
    run = apply_role(host, "certificate", tasks="configure", **alone)

    assert run.returncode == 0, said(run)
    assert serial(host) == new


def test_a_reload_that_was_cut_off_is_made_good_by_what_follows_a_renewal(host):
    before = reloads(host)

    host.check_output(f"touch {FOLDER}/web/fullchain.pem")
    first = host.check_output(f"{HOOK} /etc/letsencrypt/live/web")
    second = host.check_output(f"{HOOK} /etc/letsencrypt/live/web")

    assert (first, second) == ("The services that use certificates have read it.", "")
    assert reloads(host) == before + 1


def test_a_request_that_fails_leaves_what_is_served_and_says_why(host):
    before = serial(host)
    # This web server says yes to any name.
    host.check_output("mkdir -p /srv/yes && ln -sfn /var/lib/lms-acme/.well-known /srv/yes/.well-known")
    host.check_output("systemd-run --collect --unit=yes python3 -m http.server --directory /srv/yes 8888")
    host.check_output("curl --silent --retry 30 --retry-delay 1 --retry-connrefused http://127.0.0.1:8888/")
    tell_dns(host, "set-servfail", "late.lms.test")
    yes = {"certificate_acme_web_server": "http://127.0.0.1:8888"}

    found, _output = steps(
        host,
        [part(tasks="issue", certificate_list=[{**WEB, "names": ["web.lms.test", "ghost.lms.test"]}])],
        [look("grep --recursive --files-with-matches ghost.lms.test /var/log/letsencrypt || echo not asked for")],
        [part(tasks="issue", **yes, certificate_list=[{**WEB, "names": ["web.lms.test", "late.lms.test"]}])],
        [part(tasks="issue", **yes, certificate_list=[{**WEB, "names": ["web.lms.test", "blocked.lms.test"]}])],
    )
    host.check_output("systemctl stop yes")
    tell_dns(host, "clear-servfail", "late.lms.test")

    unserved, failed, refused = (found[place][0].failure for place in (0, 2, 3))
    # Of the name whose challenges are not served, before anything is requested.
    assert (
        "No certificate is requested, and what is served stays: http://ghost.lms.test/.well-known/acme-challenge/probe must be "
        "/var/lib/lms-acme/.well-known/acme-challenge/probe, but the web server at http://127.0.0.1 answers:"
    ) in unserved
    assert "or use the challenge dns-01." in unserved
    assert found[1][1] == "not asked for"
    # Of the name that the ACME server cannot find, and of the one that it will not sign.
    assert re.search(r"Domain: late\.lms\.test Type: (dns|connection) Detail: .*late\.lms\.test", failed), failed
    assert re.search(r"forbidden by policy: \"?blocked\.lms\.test", refused), refused
    for answer in (failed, refused):
        assert "certbot got no certificate web from https://acme.lms.test:14000/dir, and what is served stays. It says: " in answer
        assert "The whole story is in /var/log/letsencrypt/letsencrypt.log on the host." in answer
    assert serial(host) == before


REFUSED = {
    "a wildcard without the DNS": (
        {"certificate_list": [{**WEB, "names": ["*.lms.test"]}]},
        "*.lms.test stands for many names, which only the challenge dns-01 can prove. Set its challenge to dns-01, or list the names.",
    ),
    "the DNS without a plugin": (
        {"certificate_list": [{**WEB, "challenge": "dns-01"}]},
        "its challenge is dns-01, and certificate_acme_dns names no plugin of certbot. Set certificate_acme_dns.plugin.",
    ),
    "two ACME servers": (
        {"certificate_acme_staging": True},
        "certificate_acme_staging stands for the staging server of letsencrypt.org, and certificate_acme_directory_url names "
        "https://acme.lms.test:14000/dir. Set one of the two.",
    ),
}


def test_what_no_acme_server_could_sign_is_refused_before_any_change(host):
    once(host)
    refused = "The certificate web in certificate_list is refused, and nothing is changed:"

    found = answers(host, "certificate", {name: variables for name, (variables, _fault) in REFUSED.items()})

    for name, (_variables, fault) in REFUSED.items():
        assert f"{refused} {fault}" in found[name].failure, name
    assert {answer.changed for answer in found.values()} == {0}


def test_a_certificate_that_the_host_was_not_prepared_for_is_an_error_for_the_role_and_none_for_certbot(host):
    once(host)

    result = host.run(f"{HOOK} /etc/letsencrypt/live/other")

    assert (result.rc, result.stderr.strip()) == (1, f"{HOOK} does not know the certificate other. Apply the role certificate first.")
    assert host.run(f"RENEWED_LINEAGE=/etc/letsencrypt/live/other {HOOK}").rc == 0


def test_a_key_that_does_not_belong_to_its_certificate_does_not_land(host):
    once(host)
    before = serial(host)
    host.check_output("mkdir -p /run/broken/web && cp /etc/letsencrypt/live/web/fullchain.pem /run/broken/web/")
    host.check_output("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out /run/broken/web/privkey.pem")

    result = host.run(f"{HOOK} /run/broken/web")

    assert (result.rc, result.stderr.strip()) == (
        1,
        "The key of /run/broken/web does not belong to its certificate. The one that is served stays.",
    )
    assert host.run(f"ls -A {FOLDER}/web").stdout.split() == ["fullchain.pem", "privkey.pem"]
    host.check_output("systemctl reload nginx")
    assert serial(host) == before


def test_the_first_certificate_of_a_site_and_another_challenge_folder_need_no_downtime(host, visitors):
    once(host)
    both = {"certificate_list": [WEB, LATE], "certificate_authority_directory": ""}
    moved = {**both, "certificate_acme_webroot": "/var/lib/other-acme/"}
    before = serial(host)

    found, output = steps(
        host,
        [part(tasks="configure", **both), part(tasks="service", **both), *web_server()],
        [look(f"{CONNECT.format('late.lms.test')} | openssl x509 -noout -issuer; cat {FIGURES}")],
        # Without anything between that lets nginx read where the challenges are now.
        [
            part(tasks="configure", **moved, certificate_metrics_directory=""),
            *web_server(nginx_acme_directory="/var/lib/other-acme"),
            part(tasks="issue", **moved),
        ],
    )

    assert [answer.failure for answer, _printed in found] == ["", "", ""], output
    placeholder = found[1][1]
    assert re.search("^issuer=.*placeholder$", placeholder, re.MULTILINE)
    assert 'tls_certificate_self_signed{name="late"} 1' in placeholder
    _serial, issuer, names = served(host, "late.lms.test")
    assert ("Pebble" in issuer, names) == (True, ["late.lms.test"])
    assert "webroot_path = /var/lib/other-acme," in host.file("/etc/letsencrypt/renewal/web.conf").content_string
    assert serial(host) != before
    assert visitors()[1:] == (0, "[]")


def test_a_rehearsal_and_other_names_are_requested_anew_and_check_mode_says_so_alone(host):
    once(host)
    alone = [{"name": "rehearsal", "names": ["late.lms.test"], "source": "acme"}]
    wanted = [{**WEB, "names": [*WEB["names"], "late.lms.test"]}, *alone]
    staging = {"certificate_list": alone, "certificate_acme_directory_url": "https://staging.lms.test:14000/dir"}
    serials = f"cd {FOLDER} && for name in web rehearsal; do openssl x509 -in $name/fullchain.pem -noout -serial; done"

    staged, output = steps(
        host,
        [part(tasks="configure", certificate_list=wanted, certificate_authority_directory="", certificate_metrics_directory="")],
        [*web_server(), part(tasks="issue", **staging)],
        [look(serials)],
    )
    planned = issue(host, "--check", certificate_list=wanted)
    real, more = steps(
        host,
        [look(serials)],
        [part(tasks="issue", certificate_list=wanted)],
        [look(serials)],
        [part(tasks="issue", **staging)],
        [look(serials)],
    )

    refused = real[3][0].failure
    assert {answer.failure for answer, _printed in staged + real} == {"", refused}, output + more
    assert "replace a seemingly valid certificate with a test certificate" in refused
    # What would be requested was said, and not done.
    assert (
        "A certificate for web.lms.test, www.lms.test, late.lms.test would be requested from https://acme.lms.test:14000/dir: "
        "the one that certbot has is for web.lms.test, www.lms.test."
    ) in said(planned)
    assert (
        "would be requested from https://acme.lms.test:14000/dir: the one that certbot has comes from https://staging.lms.test:14000/dir."
    ) in said(planned)
    rehearsed, kept, issued, last = (printed.splitlines() for printed in (staged[2][1], real[0][1], real[2][1], real[4][1]))
    assert rehearsed == kept
    assert [old == new for old, new in zip(kept, issued, strict=True)] == [False, False]
    assert last == issued
    assert served(host)[2] == ["late.lms.test", "web.lms.test", "www.lms.test"]


@pytest.fixture
def changeable_dns(host):
    """An ACME server that asks a DNS server which can be changed."""
    once(host)
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends bind9 && systemctl stop named")
    host.check_output("printf %s %s > /var/cache/bind/lms.test && chown bind: /var/cache/bind/lms.test", "%s", ZONE)
    host.check_output("printf %s %s > /etc/bind/lms.conf", "%s", NAMED)
    host.check_output("sed 's/:14000/:14001/; s/:15000/:15001/' /etc/pebble.json > /etc/pebble-dns.json")
    host.check_output("systemd-run --collect --unit=test-named named -f -u bind -c /etc/bind/lms.conf")
    pebble = "pebble -config /etc/pebble-dns.json -dnsserver 127.0.0.1:5353"
    host.check_output(f"systemd-run --collect --unit=test-pebble --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 {pebble}")
    host.check_output(
        "curl --silent --insecure --output /dev/null --retry 30 --retry-delay 1 --retry-connrefused https://127.0.0.1:14001/dir"
    )
    yield
    host.check_output("systemctl stop test-named test-pebble")


def test_a_wildcard_is_proven_by_the_dns(host, changeable_dns):
    once(host)
    variables = {
        "certificate_list": [{"name": "wild", "names": ["*.lms.test"], "source": "acme"}],
        "certificate_acme_directory_url": "https://acme.lms.test:14001/dir",
        "certificate_acme_challenge": "dns-01",
        "certificate_acme_dns": {"plugin": "rfc2136", "credentials": CREDENTIALS, "propagation_seconds": 1},
        "certificate_authority_directory": "",
        "certificate_metrics_directory": "",
    }

    found, output = steps(host, [part(**variables)], [part(tasks="issue", **variables)], [part(tasks="issue", **variables)])

    assert [answer.failure for answer, _printed in found] == ["", "", ""], output
    text = host.check_output(f"openssl x509 -in {FOLDER}/wild/fullchain.pem -noout -issuer -ext subjectAltName")
    assert ("Pebble" in text, "DNS:*.lms.test" in text) == (True, True)
    assert found[2][0].changed == 0
    # What may change the DNS is root's alone, and nobody else was told.
    assert access_to(host, "/etc/letsencrypt/lms-dns.ini") == ("root", "root", "0600")
    assert KEY not in output
    assert host.run(f"journalctl | grep {KEY}").rc == 1
