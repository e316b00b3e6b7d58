"""What an operator notices of the nodejs role."""

from __future__ import annotations

import pytest
from checks import apply_role

# Without a network, as a user who may write nothing but the folder.
AS_ANYBODY = "cd %s && unshare --net runuser --user nobody -- env HOME=%s "


@pytest.fixture(scope="module")
def major(host):
    return host.check_output("node --version").lstrip("v").split(".")[0]


@pytest.fixture()
def builds(host):
    """Skip where Node.js comes without Corepack."""
    if not host.exists("corepack"):
        pytest.skip("this Node.js comes without Corepack")


@pytest.fixture()
def project(host):
    """Return a project that asks for another pnpm than the one that is installed."""
    folder = host.check_output("mktemp --directory")
    host.check_output("printf %%s %s > %s/package.json", '{"name": "x", "packageManager": "pnpm@9.1.0"}', folder)
    host.check_output("chown -R nobody %s", folder)
    yield folder
    host.check_output("rm -r %s", folder)


def test_node_runs_a_script(host):
    assert host.check_output("node --print '1 + 1'") == "2"


@pytest.mark.usefixtures("builds")
def test_any_user_has_pnpm_without_a_network(host, project):
    assert host.check_output(AS_ANYBODY + "pnpm --version", project, project) == "10.34.9"


@pytest.mark.usefixtures("builds")
def test_a_project_that_asks_for_another_pnpm_is_built_with_ours(host, project):
    assert "using pnpm v10.34.9" in host.check_output(AS_ANYBODY + "pnpm install", project, project)


@pytest.mark.usefixtures("builds")
def test_without_our_command_that_project_wants_the_network(host, project):
    program = "node /usr/local/lib/pnpm/10.34.9/*/10.34.9/bin/pnpm.cjs"
    settings = "npm_config_fetch_retries=0 "

    assert host.run(AS_ANYBODY + settings + program + " install", project, project).rc != 0


@pytest.mark.usefixtures("builds")
def test_only_root_can_change_pnpm(host):
    assert host.check_output("find /usr/local/bin/pnpm /usr/local/lib/pnpm ! -user root -o -perm /022 ! -type l") == ""


@pytest.mark.usefixtures("builds")
def test_an_archive_with_another_hash_is_refused(host, major):
    run = apply_role(host, "nodejs", tasks="pnpm", nodejs_version=major, nodejs_pnpm_version=f"10.34.8+sha512.{'0' * 128}")

    assert "pnpm 10.34.8 was not installed: Internal Error: Mismatch hashes." in run.stdout
    assert host.check_output("pnpm --version") == "10.34.9"


def test_pnpm_without_corepack_is_refused(host, major):
    if host.exists("corepack"):
        pytest.skip("this Node.js comes with Corepack")

    run = apply_role(host, "nodejs", tasks="pnpm", nodejs_version=major, nodejs_pnpm_version="10.34.9")

    assert f"nodejs_pnpm_version needs Corepack, which Node.js {major} of this host comes without." in run.stdout


def test_a_version_that_cannot_be_had_is_refused_with_those_that_can(host, major):
    run = apply_role(host, "nodejs", tasks="install", nodejs_version="99")

    assert f"nodejs_version 99 is not in the package lists of this host. They have: {major}." in run.stdout
