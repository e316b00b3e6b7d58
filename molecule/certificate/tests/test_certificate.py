"""What an operator notices of the certificate role."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from checks import access_to, answers, apply_role, once, said
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FOLDER = "/etc/ssl/lms"
NAMES = ["api.lms.test", "student.lms.test"]

# A service that writes down its reloads.
CONSUMER = """
[Service]
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c 'echo reloaded >> /run/consumer.reloads'
"""


def signed(names, **options):
    return {"name": "lms", "names": names, "source": "authority", **options}


def verifies(host, name):
    command = f"openssl verify -CAfile {FOLDER}/authority.pem -verify_hostname {name} {FOLDER}/lms/fullchain.pem"
    return host.run(command).rc == 0


def serial(host):
    return host.check_output(f"openssl x509 -in {FOLDER}/lms/fullchain.pem -noout -serial")


def reloads(host):
    return host.run("wc -l < /run/consumer.reloads").stdout.strip()


@pytest.fixture
def consumer(host):
    """A running service that uses certificates, and has not been reloaded."""
    host.check_output("printf %s %s > /etc/systemd/system/consumer.service && systemctl daemon-reload", "%s", CONSUMER)
    host.check_output("systemctl start consumer && : > /run/consumer.reloads")
    yield
    host.check_output("systemctl stop consumer")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that makes a certificate and its key, as an operator would be given them."""
    folder = tmp_path_factory.mktemp("given")

    def make(label, names=("api.lms.test",), begins=-1, ends=30, key_of=None, passphrase=None):
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, label)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=begins))
            .not_valid_after(now + datetime.timedelta(days=ends))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
            .sign(key, hashes.SHA256())
        )
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        folder.joinpath(f"{label}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        folder.joinpath(f"{label}.key").write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return {
            "name": "lms",
            "names": ["api.lms.test"],
            "source": "files",
            "certificate": str(folder / f"{label}.pem"),
            "key": str(folder / f"{key_of or label}.key"),
        }

    return make


def test_a_client_that_has_the_authority_verifies_the_names(host):
    assert [verifies(host, name) for name in [*NAMES, "evil.example"]] == [True, True, False]


def test_the_key_is_private_and_the_certificate_is_not(host):
    assert access_to(host, f"{FOLDER}/lms/privkey.pem") == ("root", "root", "0640")
    assert access_to(host, f"{FOLDER}/lms/fullchain.pem") == ("root", "root", "0644")


def test_the_key_of_the_authority_stays_on_the_control_host(host):
    authority = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "authority")

    assert (authority.stat().st_mode & 0o777, authority.joinpath("authority.key").stat().st_mode & 0o777) == (0o700, 0o600)
    assert host.run("find / -xdev -name authority.key | grep .").rc == 1


def test_no_browser_minds_how_long_it_is_valid(host):
    assert host.run(f"openssl x509 -in {FOLDER}/lms/fullchain.pem -noout -checkend {398 * 86400}").rc == 1
    assert host.run(f"openssl x509 -in {FOLDER}/lms/fullchain.pem -noout -checkend {360 * 86400}").rc == 0


def test_what_cannot_serve_is_refused_and_the_host_keeps_what_it_has(host, make, tmp_path):
    once(host)
    tmp_path.joinpath("rubbish.pem").write_text("rubbish")
    offers = {
        "expired": make("expired", begins=-9, ends=-2),
        "early": make("early", begins=2),
        "alien": make("alien", key_of="expired"),
        "narrow": make("narrow", names=["student.lms.test", "*.api.lms.test"]),
        "locked": make("locked", passphrase=b"secret"),
        "rubbish": make("good") | {"certificate": str(tmp_path / "rubbish.pem")},
    }
    program = "/etc/letsencrypt/renewal-hooks/deploy/lms-certificates"
    before, written = serial(host), host.file(program).sha256sum
    cases = {label: {"__certificate": offered} for label, offered in offers.items()}
    # A service whose name breaks the program that follows a renewal.
    cases["quoted"] = {
        "certificate_list": [{"name": "web", "names": ["web.lms.test"], "source": "acme"}],
        "certificate_reload_services": ["nginx'"],
    }

    found = answers(host, "certificate", cases, tasks={label: "certbot" if label == "quoted" else "given" for label in cases})

    files = {label: (offered["certificate"], offered["key"]) for label, offered in offers.items()}
    faults = {
        "expired": "{0} expired at ",
        "early": "{0} is not valid before ",
        "alien": "{1} does not belong to {0}. Give the key that the certificate",
        "narrow": "{0} does not cover api.lms.test. Give one that does, or correct the option names.",
        "locked": "{1} holds no private key that can be read. Give one in PEM form, without a passphrase.",
        "rubbish": "{0} holds no certificate that can be read. Give one in PEM form.",
    }
    for label, fault in faults.items():
        refused = "The certificate lms in certificate_list is refused, and the host keeps what it has: " + fault.format(*files[label])
        assert refused in found[label].failure, found[label].failure
    assert "failed to validate" in found["quoted"].failure
    assert (serial(host), host.file(program).sha256sum) == (before, written)


def test_changed_names_and_given_files_are_read_by_the_service_also_after_a_run_that_was_cut_off(host, make, consumer):
    once(host)
    given = make("wildcard", names=["*.api.lms.test"]) | {"name": "given", "names": ["v1.api.lms.test"], "group": "adm"}
    listed = {"certificate_list": [signed([*NAMES, "admin.lms.test"]), given], "certificate_metrics_directory": ""}

    run = apply_role(host, "certificate", **listed)

    assert run.returncode == 0, said(run)
    assert verifies(host, "admin.lms.test")
    assert host.file(f"{FOLDER}/given/fullchain.pem").content_string == Path(given["certificate"]).read_text()
    assert host.file(f"{FOLDER}/given/privkey.pem").content_string == Path(given["key"]).read_text()
    assert access_to(host, f"{FOLDER}/given/privkey.pem") == ("root", "adm", "0640")
    assert "BEGIN PRIVATE KEY" not in run.stdout
    assert reloads(host) == "1"

    # As if that run had been cut off between the certificate and the reload.
    host.check_output(f"touch {FOLDER}/lms/fullchain.pem")
    apply_role(host, "certificate", tasks="service", **listed)

    assert reloads(host) == "2"


def test_a_certificate_that_runs_out_is_renewed_with_the_key_it_had(host):
    once(host)
    before, key = serial(host), host.file(f"{FOLDER}/lms/privkey.pem").sha256sum
    ending = {"certificate_list": [signed(NAMES)], "certificate_metrics_directory": "", "certificate_renew_before": 366}

    run = apply_role(host, "certificate", **ending)

    assert run.returncode == 0, said(run)
    assert serial(host) != before
    assert host.file(f"{FOLDER}/lms/privkey.pem").sha256sum == key
    # A service that does not run is left alone.
    assert host.run("systemctl is-active consumer").stdout.strip() == "inactive"
