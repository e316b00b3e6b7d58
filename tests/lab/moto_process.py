# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A plain moto in a process of its own, for programs that only know its address, and a load balancer in it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

_ADDRESS = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass(frozen=True)
class Moto:
    """A moto that runs."""

    url: str

    def environment(self, region: str) -> dict[str, str]:
        """Return the environment of a program that is to take it for AWS."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {**kept, **CREDENTIALS, "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": region}

    def client(self, service: str, region: str) -> Any:
        """Return a client of a service in it."""
        return boto3.client(
            service,  # type: ignore[call-overload, unused-ignore]
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )


@contextlib.contextmanager
def moto_process(program: str = "moto.server") -> Iterator[Moto]:
    """Start a moto, or a program that is one and more, at a free port of this host, and end it."""
    command = [sys.executable, "-m", program, "-H", "127.0.0.1", "-p", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "collections")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        url = next((found[1] for line in process.stderr if (found := _ADDRESS.search(line))), None)
        if url is None:
            raise RuntimeError("moto did not start")
        # So that it never waits for somebody who reads what it says.
        with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL):
            yield Moto(url)
            process.terminate()
    finally:
        process.kill()
        process.wait()


class PlainAlb:
    """A load balancer as moto has it: a listener and a rule that forward to blue, and a bucket for the record."""

    def __init__(self, moto: Moto, region: str, bucket: str) -> None:
        self.moto, self.region, self.bucket = moto, region, bucket
        self.elb = moto.client("elbv2", region)
        network = moto.client("ec2", region)
        vpc = network.describe_vpcs()["Vpcs"][0]["VpcId"]
        subnets = [subnet["SubnetId"] for subnet in network.describe_subnets()["Subnets"][:2]]
        arn = self.elb.create_load_balancer(Name="lms", Subnets=subnets)["LoadBalancers"][0]["LoadBalancerArn"]
        self.groups = {
            name: self.elb.create_target_group(Name=name, Protocol="HTTP", Port=8080, VpcId=vpc, TargetType="ip")["TargetGroups"][0][
                "TargetGroupArn"
            ]
            for name in ("lms-blue", "lms-green")
        }
        self.elb.register_targets(TargetGroupArn=self.groups["lms-blue"], Targets=[{"Id": "10.0.1.1", "Port": 8080}])
        forward = [{"Type": "forward", "TargetGroupArn": self.groups["lms-blue"]}]
        listeners = self.elb.create_listener(LoadBalancerArn=arn, Protocol="HTTP", Port=443, DefaultActions=forward)["Listeners"]
        self.listener = listeners[0]["ListenerArn"]
        conditions = [{"Field": "path-pattern", "Values": ["/api/*"]}]
        rules = self.elb.create_rule(ListenerArn=self.listener, Priority=10, Conditions=conditions, Actions=forward)["Rules"]
        self.rule = rules[0]["RuleArn"]
        moto.client("s3", region).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
        cloudwatch = moto.client("cloudwatch", region)
        cloudwatch.put_metric_alarm(
            AlarmName="lms-5xx",
            ComparisonOperator="GreaterThanThreshold",
            EvaluationPeriods=1,
            MetricName="HTTPCode_Target_5XX_Count",
            Namespace="AWS/ApplicationELB",
            Period=60,
            Statistic="Sum",
            Threshold=1,
        )
        cloudwatch.set_alarm_state(AlarmName="lms-5xx", StateValue="OK", StateReason="quiet")

    def weights(self) -> dict[str, Mapping[str, int]]:
        """Return the weights of the listener and the rule by the names of their groups."""
        listener = self.elb.describe_listeners(ListenerArns=[self.listener])["Listeners"][0]["DefaultActions"][0]
        rule = self.elb.describe_rules(RuleArns=[self.rule])["Rules"][0]["Actions"][0]
        return {"listener": _weights(listener), "rule": _weights(rule)}

    def objects(self) -> list[str]:
        """Return the names of the objects in the bucket."""
        return [each["Key"] for each in self.moto.client("s3", self.region).list_objects_v2(Bucket=self.bucket).get("Contents", [])]


def _weights(action: Mapping[str, Any]) -> dict[str, int]:
    """Return the weights of an action."""
    groups = action.get("ForwardConfig", {}).get("TargetGroups") or [{"TargetGroupArn": action["TargetGroupArn"], "Weight": 1}]
    return {group["TargetGroupArn"].split("/")[1]: group["Weight"] for group in groups}
