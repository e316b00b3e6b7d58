# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook switch_traffic with a load balancer of AWS and auto scaling groups, against a plain moto: what an operator types."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.tests.lab.moto_process import PlainAlb, moto_process

ROOT = Path(__file__).parents[2]
REGION = "eu-central-1"


class Operator:
    """Somebody at a control host, and the AWS that the playbook finds."""

    def __init__(self, alb: PlainAlb) -> None:
        self.alb = alb
        self.scaling = alb.moto.client("autoscaling", REGION)
        image = alb.moto.client("ec2", REGION).describe_images()["Images"][0]["ImageId"]
        self.scaling.create_launch_configuration(LaunchConfigurationName="lms", ImageId=image, InstanceType="t3.small")
        for colour, size in (("blue", 2), ("green", 0)):
            self.scaling.create_auto_scaling_group(
                AutoScalingGroupName=f"lms-{colour}",
                LaunchConfigurationName="lms",
                MinSize=size,
                DesiredCapacity=size,
                MaxSize=4,
                AvailabilityZones=[f"{REGION}a"],
            )
        alb.elb.register_targets(TargetGroupArn=alb.groups["lms-green"], Targets=[{"Id": "10.0.2.1", "Port": 8080}])

    def sizes(self) -> dict[str, int]:
        """Return how large the groups should be."""
        groups = self.scaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        return {group["AutoScalingGroupName"]: group["DesiredCapacity"] for group in groups}

    def switch(self, action: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run the playbook."""
        sizes = {"min_size": 2, "desired_capacity": 2, "max_size": 4}
        known = {
            "lms_domain": "example.com",
            "lms_deploy_strategy": "blue_green",
            "lms_traffic_provider": "alb",
            "lms_traffic_name": "prod/lms",
            "lms_traffic_routes": [{"load_balancer": "lms", "port": 443}, {"load_balancer": "lms", "port": 443, "priority": 10}],
            "lms_traffic_colours": {"blue": "lms-blue", "green": "lms-green"},
            "lms_traffic_state": f"s3://{self.alb.bucket}/traffic/lms.json",
            "lms_traffic_steps": [{"weight": 10, "bake": 0}, {"weight": 100, "bake": 0}],
            "lms_traffic_gate": {"consecutive": 1, "interval": 0.1, "timeout": 30},
            "lms_traffic_propagation_wait": 0,
            "lms_traffic_capacity": [{"colour": colour, "auto_scaling_group": f"lms-{colour}", **sizes} for colour in ("blue", "green")],
            "lms_traffic_max_wait": 60,
            "traffic_action": action,
        }
        return subprocess.run(
            [
                *(sys.executable, "-m", "ansible", "playbook", "bitflow.lms.switch_traffic", "-i", "localhost,"),
                *("-e", json.dumps({**known, **variables}), *options),
            ],
            env={
                **self.alb.moto.environment(REGION),
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    """Return an operator whose LMS is on blue."""
    with moto_process() as moto:
        yield Operator(PlainAlb(moto, REGION, "lab-switch-traffic"))


def said(run: subprocess.CompletedProcess[str]) -> str:
    """Return what a run said as one line."""
    return " ".join((run.stdout + run.stderr).split())


def test_a_release_gets_all_traffic_goes_back_and_gives_its_capacity_up(operator: Operator) -> None:
    asked = operator.switch("status")
    planned = operator.switch("advance", "--check", lms_traffic_release="r1", lms_traffic_colour="green")
    sizes_of_plan, weights_of_plan = operator.sizes(), operator.alb.weights()
    moved = operator.switch("advance", lms_traffic_release="r1", lms_traffic_colour="green")
    sizes_after, weights_after = operator.sizes(), operator.alb.weights()
    ticked = operator.switch("advance")
    sizes_of_tick = operator.sizes()
    over = operator.switch("advance", lms_traffic_retain=0)
    sizes_at_the_end = operator.sizes()
    back = operator.switch("rollback", lms_traffic_colour="blue")

    assert [run.returncode for run in (asked, planned, moved, ticked, over, back)] == [0] * 6, "\n".join(
        run.stdout[-3000:] + run.stderr for run in (asked, planned, moved, ticked, over, back) if run.returncode
    )
    assert "No rollout was begun." in said(asked)
    assert (sizes_of_plan, weights_of_plan) == ({"lms-blue": 2, "lms-green": 0}, {"listener": {"lms-blue": 1}, "rule": {"lms-blue": 1}})
    assert "all traffic is on green; blue is kept for the way back" in said(moved)
    assert weights_after == {"listener": {"lms-blue": 0, "lms-green": 100}, "rule": {"lms-blue": 0, "lms-green": 100}}
    # While blue is kept, a timer's call changes nothing.
    assert sizes_after == sizes_of_tick == {"lms-blue": 2, "lms-green": 2}
    assert "changed=0" in ticked.stdout
    assert sizes_at_the_end == {"lms-blue": 0, "lms-green": 2}
    # Blue comes back before it is asked for its health; green is given up once it has no traffic.
    assert operator.sizes() == {"lms-blue": 2, "lms-green": 0}
    assert operator.alb.weights()["rule"] == {"lms-blue": 100, "lms-green": 0}
