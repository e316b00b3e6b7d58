# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of the own load balancer as Ansible runs them, and traffic_rollout on it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.bitflow.lms.plugins.module_utils import _nginx_traffic
from ansible_collections.bitflow.lms.plugins.module_utils._nginx_traffic_sites import traffic_directory_argspec
from ansible_collections.bitflow.lms.plugins.modules import nginx_traffic, nginx_traffic_info, traffic_rollout
from ansible_collections.bitflow.lms.tests.unit.plugins.module_utils.nginx_model import BEFORE, Nginx

MODULES = [nginx_traffic, nginx_traffic_info]
QUICK: dict[str, Any] = {"gate": {"interval": 0}, "propagation_wait": 0, "verify_timeout": 0}
SHIFTED = {"blue": 0, "green": 100}
ROLLOUT: dict[str, Any] = {
    "name": "prod/lms",
    "provider": "nginx",
    "steps": [{"weight": 10, "bake": 0}, {"weight": 100, "bake": 0}],
    "gate": {"consecutive": 1, "interval": 0.05},
    "propagation_wait": 0,
}


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nginx:
    """Return a load balancer with the sites api and web, as the only world there is."""
    made = Nginx(tmp_path)
    monkeypatch.setattr(_nginx_traffic, "Network", lambda: made.network)
    return made


def name_of(module: ModuleType) -> str:
    """Return the name of a module."""
    return module.__name__.rpartition(".")[2]


def call(module: Any, nginx: Nginx, capsys: pytest.CaptureFixture[str], check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run a module and return its result, without what Ansible adds."""
    given = {"traffic_directory": str(nginx.directory), **options, "_ansible_check_mode": check_mode}
    with patch_module_args(given), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    result.pop("invocation", None)
    return result


def test_a_switch_from_the_first_look_to_the_last(nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
    nginx.by_hand("api", {"blue": 100})

    attached = call(nginx_traffic, nginx, capsys, **QUICK, weights={"blue": "100", "green": "0"})
    planned = call(nginx_traffic, nginx, capsys, check_mode=True, **QUICK, weights=SHIFTED)
    shifted = call(nginx_traffic, nginx, capsys, **QUICK, weights=SHIFTED, expect=BEFORE)
    again = call(nginx_traffic, nginx, capsys, **QUICK, weights=SHIFTED, expect=BEFORE)
    looked = call(nginx_traffic_info, nginx, capsys, routes=[{"name": "api"}])
    refused = call(nginx_traffic, nginx, capsys, **QUICK, weights={"blue": 1, "green": 2})

    assert [result["changed"] for result in (attached, planned, shifted, again, looked)] == [True, True, True, False, False]
    assert planned == shifted
    assert (looked["live"], looked["findings"]) == ("green", [])
    assert (refused["failed"], refused["msg"][:52]) == (True, "The route api cannot have blue 1, green 2: nginx spl")


def test_what_is_not_ready_is_a_failure_and_in_check_mode_a_warning(
    nginx: Nginx, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a controller's modules were loaded before, ansible-core shows warnings itself and leaves them out of the result.
    warned: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, warning, **_options: warned.append(warning))
    nginx.faults.update(dict.fromkeys(("192.0.2.21", "192.0.2.22"), "refused"))
    options: dict[str, Any] = {**QUICK, "weights": {"blue": 1, "green": 1}, "gate": {"timeout": 0, "interval": 0}}

    planned = call(nginx_traffic, nginx, capsys, check_mode=True, **options)
    failed = call(nginx_traffic, nginx, capsys, **options)

    assert planned["changed"] is True
    assert warned[0].startswith("api-green could not take traffic now: api-green has 0 healthy of 2 targets")
    assert (failed["failed"], failed["msg"][:34]) == (True, "api-green cannot take traffic: api")


def test_a_release_goes_out_and_comes_back(nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {**ROLLOUT, "state": str(nginx.directory / "lms.json"), "action": "advance"}

    planned = call(traffic_rollout, nginx, capsys, check_mode=True, **options, release="r1", colour="green")
    untouched = {site: nginx.link(site) for site in ("api", "web")}
    retained = call(traffic_rollout, nginx, capsys, **options, release="r1", colour="green", max_wait=30)
    shifted = {site: nginx.link(site) for site in ("api", "web")}
    back = call(traffic_rollout, nginx, capsys, **{**options, "action": "rollback"})

    assert [result["phase"] for result in (planned, retained, back)] == ["retained", "retained", "rolled_back"]
    assert untouched == dict.fromkeys(("api", "web"), "weights/blue-100+green-0")
    assert shifted == dict.fromkeys(("api", "web"), "weights/blue-0+green-100")
    assert {site: nginx.link(site) for site in ("api", "web")} == dict.fromkeys(("api", "web"), "weights/blue-100+green-0")


def test_a_rollout_of_one_site_leaves_the_others(nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {**ROLLOUT, "state": str(nginx.directory / "lms.json"), "action": "advance", "routes": [{"name": "web"}]}

    call(traffic_rollout, nginx, capsys, **options, release="r1", colour="green", max_wait=30)

    assert {site: nginx.link(site) for site in ("api", "web")} == {"api": "weights/blue-100+green-0", "web": "weights/blue-0+green-100"}


def test_a_load_balancer_of_aws_needs_routes_and_colours(nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
    failed = call(traffic_rollout, nginx, capsys, **{**ROLLOUT, "provider": "alb"}, action="status", state="/nowhere/lms.json")

    assert failed["msg"] == "provider is alb but all of the following are missing: routes, colours"


def test_a_rollout_says_what_the_weights_of_a_site_were_lost_to(nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
    (nginx.directory / "api" / "current").unlink()

    failed = call(traffic_rollout, nginx, capsys, **ROLLOUT, action="status", state=str(nginx.directory / "lms.json"))

    assert (failed["failed"], failed["done"]) == (True, True)
    assert failed["msg"].startswith("The site api has lost its weights: ")


# Documentation


def plain(options: dict[str, Any], below: str) -> dict[str, Any]:
    """Return options, of the documentation or of the specification, in one form."""
    kept = ("type", "required", "default", "choices", "elements")
    return {
        name: {**{key: option[key] for key in kept if key in option}, "options": plain(option.get(below, {}), below)}
        for name, option in options.items()
    }


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_option_is_documented_as_it_is(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class StoppedError(Exception):
        """The end of a module that was only asked for its options."""

    def stop(**arguments: Any) -> None:
        """Note the specification."""
        seen.update(arguments["argument_spec"])
        raise StoppedError

    monkeypatch.setattr(module, "AnsibleModule", stop)
    with pytest.raises(StoppedError):
        module.main()

    specified = {name: option for name, option in seen.items() if name not in traffic_directory_argspec()}
    assert plain(yaml.safe_load(module.DOCUMENTATION)["options"], "suboptions") == plain(specified, "options")


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_key_of_the_result_is_documented(module: Any, nginx: Nginx, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {nginx_traffic: {**QUICK, "weights": SHIFTED}, nginx_traffic_info: {}}[module]
    found = call(module, nginx, capsys, **options)
    returned = yaml.safe_load(module.RETURN)

    assert set(found) - {"changed", "diff"} == set(returned)
    for key in set(found) & {"routes", "health", "groups"}:
        assert found[key]
        assert all(set(entry) == set(returned[key]["contains"]) for entry in found[key])
