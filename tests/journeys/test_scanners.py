"""What independent scanners say of the provisioned hosts, each with the score below which it is a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from environment import DOMAIN, PROJECT, Environment, run

SSLYZE = "sslyze==6.3.1"
GIXY = "gixy-ng==0.2.59"

# Mozilla's guideline 6.0, intermediate: https://ssl-config.mozilla.org/guidelines/6.0.json, in the words of sslyze's own 5.7.
# sslyze cannot see X25519MLKEM768.
KEYS = ("ECDSA", "RSA")
SUITES = ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
INTERMEDIATE = {
    "certificate_curves": ["prime256v1", "secp384r1"],
    "certificate_signatures": ["sha256WithRSAEncryption", "ecdsa-with-SHA256", "ecdsa-with-SHA384", "ecdsa-with-SHA512"],
    "certificate_types": ["ecdsa", "rsa"],
    "ciphersuites": [f"TLS_{suite}" for suite in SUITES],
    "ciphers": {
        "iana": [f"TLS_ECDHE_{key}_WITH_{suite}" for key in KEYS for suite in SUITES],
        **{other: [] for other in ("caddy", "go", "openssl")},
    },
    "dh_param_size": None,
    "ecdh_param_size": 256,
    "hsts_min_age": 63072000,
    "maximum_certificate_lifespan": 366,
    "ocsp_staple": False,
    "recommended_certificate_lifespan": 90,
    "rsa_key_size": 2048,
    "server_preferred_order": False,
    "tls_curves": ["X25519", "prime256v1", "secp384r1"],
    "tls_versions": ["TLSv1.2", "TLSv1.3"],
}

# What must not be served, and a piece of what would be in it.
HIDDEN = {
    "/.env": "APP_KEY",
    "/.env.example": "APP_KEY",
    "/.env.backup": "APP_KEY",
    "/.git/config": "[core]",
    "/.git/HEAD": "ref:",
    "/.git/x.php": "[core]",
    "/.gitignore": "/vendor",
    "/.htaccess": "Rewrite",
    "/.DS_Store": "Bud1",
    "/.ssh/id_ed25519": "PRIVATE KEY",
    "/.well-known/../.env": "APP_KEY",
    "/..%2f.env": "APP_KEY",
    "/%2e%2e/.env": "APP_KEY",
    "/storage/../.env": "APP_KEY",
    "//.env": "APP_KEY",
    "/build../.env": "APP_KEY",
    "/artisan": "LARAVEL_START",
    "/composer.json": '"require"',
    "/composer.lock": '"packages"',
    "/package.json": '"scripts"',
    "/phpunit.xml": "<phpunit",
    "/server.php": "<?php",
    "/index.php.bak": "<?php",
    "/index.php~": "<?php",
    "/index.phps": "<?php",
    "/config/database.php": "<?php",
    "/bootstrap/cache/config.php": "APP_KEY",
    "/storage/logs/laravel.log": "local.ERROR",
    "/storage/framework/sessions": "Index of",
    "/vendor/autoload.php": "<?php",
    "/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php": "<?php",
    "/database/database.sqlite": "SQLite",
    "/phpinfo.php": "PHP Version",
    "/favicon.ico/x.php": "<?php",
    "/stub_status": "Active connections",
    "/fpm-status": "accepted conn",
    "/server-status": "Apache",
    "/release.json": '"commit"',
    "/REVISION": "commit",
}

# Units of a host, and the exposure that systemd-analyze may find at most, in tenths.
EXPOSURES = {
    # nginx has a master that is root, since it opens the logs of its workers.
    "lb": {"nginx": 26, "prometheus-node-exporter": 20, "prometheus-nginx-exporter": 20, "prometheus-accesslog-exporter": 20},
    "app1": {
        "nginx": 26,
        "lms-fpm@*": 20,
        "lms-queue@1": 20,
        "lms-schedule": 20,
        "lms-student@*": 20,
        "prometheus-phpfpm-exporter": 20,
    },
    "data": {
        "redis-server": 15,
        "prometheus": 20,
        "prometheus-alertmanager": 20,
        "prometheus-postgres-exporter": 20,
        "prometheus-redis-exporter": 20,
        "prometheus-blackbox-exporter": 20,
    },
}


def scanner(requirement: str, module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a scanner from PyPI, installed on first use in a folder of its own."""
    folder = PROJECT / ".cache" / requirement
    if not folder.exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"--target={folder}", requirement)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(folder)})


def test_sslyze_finds_the_tls_of_mozillas_intermediate_guideline(environment, tmp_path):
    guideline = tmp_path / "intermediate.json"
    guideline.write_text(json.dumps(INTERMEDIATE))
    given = (f"--custom_tls_config={guideline}", f"--certinfo_ca_file={environment.authority}", f"--sni=api.{DOMAIN}")

    scan = scanner(SSLYZE, "sslyze", *given, f"127.0.0.1:{environment.port}")

    assert scan.returncode == 0, scan.stdout[-3000:] + scan.stderr


@pytest.mark.parametrize("host", ["lb", "app1"])
def test_gixy_finds_nothing_in_the_configuration_of_nginx(environment, host, tmp_path):
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(environment.on(host, "nginx", "-T", "-q"))

    # try_files is how a Laravel application is served; the check is about what that costs.
    scan = scanner(GIXY, "gixy.cli.main", "--format=json", "--skips=try_files_is_evil_too", "--disable-includes", configuration)

    found = json.loads(scan.stdout)
    assert found == [], found


@pytest.mark.parametrize(("host", "unit", "most"), [(host, *item) for host, units in EXPOSURES.items() for item in units.items()])
def test_a_unit_is_closed(environment: Environment, host, unit, most):
    if "*" in unit:
        listed = environment.on(host, "systemctl", "list-units", "--plain", "--no-legend", f"{unit}.service")
        unit = listed.split()[0].removesuffix(".service")

    environment.on(host, "systemd-analyze", "security", "--no-pager", f"--threshold={most}", f"{unit}.service")


def test_nothing_is_served_that_should_be_hidden(environment):
    assert len(HIDDEN) >= 33
    leaks = {}
    for site in ("api", "student"):
        for path, mark in HIDDEN.items():
            answer = environment.answer(path, site=site)
            if mark in answer.data.decode(errors="replace") or "root:x:0" in answer.data.decode(errors="replace"):
                leaks[f"{site} {path}"] = answer.status
    assert leaks == {}


def test_an_unknown_name_gets_no_answer(environment):
    curl = ["curl", "--silent", "--max-time", "5", "--insecure", "--output", "/dev/null", "--write-out", "%{http_code}"]
    resolve = ["--connect-to", f"evil.example::127.0.0.1:{environment.port}"]

    asked = subprocess.run([*curl, *resolve, "https://evil.example/"], capture_output=True, text=True, check=False)

    assert asked.stdout == "000"
    # Nor does one that a client asks for inside a connection to a known one.
    inside = subprocess.run(
        [*curl, "--connect-to", f"api.{DOMAIN}::127.0.0.1:{environment.port}", "--header", "Host: evil.example", f"https://api.{DOMAIN}/"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert inside.stdout in {"000", "421"}


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/nothing-is-here", 404), ("/.env", 404)])
def test_every_answer_has_the_security_headers(environment, path, status):
    answer = environment.answer(path)

    assert answer.status == status
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert headers["strict-transport-security"] == "max-age=63072000"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["referrer-policy"] == "strict-origin-when-cross-origin"
    assert "frame-ancestors" in headers["content-security-policy"]
    # The versions of what runs are nobody's business.
    assert "x-powered-by" not in headers
    assert re.search(r"\d", headers.get("server", "")) is None
