"""What an operator notices of the certificate role."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path

import pytest
from checks import access_to, apply_role, once, said
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


def offer(host, offers, folder):
    """Offer each certificate to the role, as if to a host of its own, and return what the role says."""
    address = {"ansible_connection": "community.docker.docker", "ansible_host": host.backend.get_hostname()}
    hosts = {label: {**address, "certificate_list": [offered]} for label, offered in offers.items()}
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    role = "name=bitflow.lms.certificate tasks_from=configure.yml"
    command = ["ansible", "all", f"--inventory={inventory}", "--module-name=include_role", f"--args={role}"]
    return said(subprocess.run(command, capture_output=True, text=True, check=False))


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


def test_changed_names_are_signed_and_read_by_the_service_also_after_a_run_that_was_cut_off(host, consumer):
    more = [signed([*NAMES, "admin.lms.test"])]

    run = apply_role(host, "certificate", certificate_list=more)

    assert run.returncode == 0, said(run)
    assert verifies(host, "admin.lms.test")
    assert reloads(host) == "1"

    # As if that run had been cut off between the certificate and the reload.
    host.check_output(f"touch {FOLDER}/lms/fullchain.pem")
    apply_role(host, "certificate", certificate_list=more)

    assert reloads(host) == "2"


def test_a_certificate_that_runs_out_is_renewed_with_the_key_it_had(host):
    once(host)
    before, key = serial(host), host.file(f"{FOLDER}/lms/privkey.pem").sha256sum

    run = apply_role(host, "certificate", certificate_renew_before=366)

    assert run.returncode == 0, said(run)
    assert serial(host) != before
    assert host.file(f"{FOLDER}/lms/privkey.pem").sha256sum == key
    # A service that does not run is left alone.
    assert host.run("systemctl is-active consumer").stdout.strip() == "inactive"


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
    before = serial(host)

    answer = offer(host, offers, tmp_path)

    def certificate(label):
        return offers[label]["certificate"]

    def key(label):
        return offers[label]["key"]

    refused = "The certificate lms in certificate_list is refused, and the host keeps what it has:"
    assert f"{refused} {certificate('expired')} expired at " in answer
    assert f"{refused} {certificate('early')} is not valid before " in answer
    assert f"{refused} {key('alien')} does not belong to {certificate('alien')}. Give the key that the certificate" in answer
    assert f"{refused} {certificate('narrow')} does not cover api.lms.test. Give one that does, or correct the option names." in answer
    assert f"{refused} {key('locked')} holds no private key that can be read. Give one in PEM form, without a passphrase." in answer
    assert f"{refused} {certificate('rubbish')} holds no certificate that can be read. Give one in PEM form." in answer
    assert serial(host) == before


def test_what_can_serve_is_installed(host, make):
    once(host)
    given = make("wildcard", names=["*.lms.test"]) | {"group": "adm"}

    run = apply_role(host, "certificate", certificate_list=[given])

    assert run.returncode == 0, said(run)
    assert host.file(f"{FOLDER}/lms/fullchain.pem").content_string == Path(given["certificate"]).read_text()
    assert host.file(f"{FOLDER}/lms/privkey.pem").content_string == Path(given["key"]).read_text()
    assert access_to(host, f"{FOLDER}/lms/privkey.pem") == ("root", "adm", "0640")
    assert "BEGIN PRIVATE KEY" not in run.stdout
