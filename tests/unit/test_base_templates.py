"""What the role base writes on each platform, those included that no test host runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles/base"
PLATFORMS = {"Debian_12": "bookworm", "Debian_13": "trixie", "Ubuntu_22": "jammy", "Ubuntu_24": "noble"}
TEMPLATES = sorted(path.name for path in (ROLE / "templates").iterdir())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Render every template for every platform, with the defaults of the role."""
    folder = tmp_path_factory.mktemp("rendered")
    distribution, version = "{{ item.split('_')[0] }}", "{{ item.split('_')[1] }}"
    # One task for all of them: what takes time is to start each.
    texts = ", ".join(f"'{name}': lookup('ansible.builtin.template', '{ROLE / 'templates' / name}')" for name in TEMPLATES)
    play = {
        "name": "Render",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "vars": {"ansible_facts": {"distribution": distribution, "distribution_major_version": version, "virtualization_type": "kvm"}},
        "tasks": [
            {
                "name": "Render the templates",
                "ansible.builtin.copy": {"content": f"{{{{ {{{texts}}} | to_json }}}}", "dest": f"{folder}/{{{{ item }}}}", "mode": "0644"},
                "loop": list(PLATFORMS),
            }
        ],
    }
    playbook = folder / "render.yml"
    playbook.write_text(json.dumps([play]))
    subprocess.run(["ansible-playbook", playbook], check=True, capture_output=True)
    return {platform: json.loads((folder / platform).read_text()) for platform in PLATFORMS}


def lines_of(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines()}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_security_updates_come_from_the_distributions_own_archive(rendered, platform):
    origin = {
        "Debian": '"origin=Debian,codename=${distro_codename}-security,label=Debian-Security";',
        "Ubuntu": '"origin=Ubuntu,archive=${distro_codename}-security";',
    }

    found = {line for line in lines_of(rendered[platform]["apt.conf.j2"]) if line.startswith('"origin=')}

    assert found == {origin[platform.split("_")[0]]}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_logs_are_rotated_as_the_group_that_ubuntu_opens_them_to(rendered, platform):
    assert ("su root adm" in lines_of(rendered[platform]["logrotate.conf.j2"])) == platform.startswith("Ubuntu")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_small_groups_are_left_out_where_there_is_a_group_exchange(rendered, platform):
    settings = rendered[platform]["sshd.conf.j2"]

    assert ("ModuliFile" in settings) == ("group-exchange" in settings) == (platform != "Debian_13")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nobody_comes_in_as_root_or_with_a_password(rendered, platform):
    wanted = {"PermitRootLogin no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitEmptyPasswords no"}

    assert wanted <= lines_of(rendered[platform]["sshd.conf.j2"])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_template_names_no_value_of_nothing(rendered, platform):
    assert {name for name, text in rendered[platform].items() if "None" in text or "{{" in text or "[]" in text} == set()


def test_the_table_has_every_platform():
    table = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__base_ssh_platforms"]

    assert set(table) == set(PLATFORMS)
