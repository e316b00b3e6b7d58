# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command of Ansible with an AWS in its own process: python ansible_in_aws.py WORLD COMMAND ARGUMENT...

WORLD is a JSON object: region, instances (each with tags, address and, where it does not run, stopped) and secrets (texts by name).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import boto3
from moto import mock_aws

NETWORK = "10.0.0.0/16"
# One that moto knows.
IMAGE = "ami-12c6146b"


def make(world: Mapping[str, Any]) -> None:
    """Put what the world has into AWS."""
    ec2 = boto3.client("ec2", region_name=world["region"])
    vpc = ec2.create_vpc(CidrBlock=NETWORK)["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=NETWORK)["Subnet"]["SubnetId"]
    for instance in world["instances"]:
        tags = [{"Key": key, "Value": value} for key, value in instance["tags"].items()]
        made = ec2.run_instances(
            ImageId=IMAGE,
            InstanceType="t3.large",
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
            PrivateIpAddress=instance["address"],
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        if instance.get("stopped"):
            ec2.stop_instances(InstanceIds=[made["Instances"][0]["InstanceId"]])
    secrets = boto3.client("secretsmanager", region_name=world["region"])
    for name, text in world["secrets"].items():
        secrets.create_secret(Name=name, SecretString=text)


def main() -> int:
    """Make the world and run the command in it."""
    world, command, *arguments = sys.argv[1:]
    # Never those of somebody's account.
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    with mock_aws():
        make(json.loads(world))
        return int(importlib.import_module(f"ansible.cli.{command}").main([f"ansible-{command}", *arguments]) or 0)


if __name__ == "__main__":
    sys.exit(main())
