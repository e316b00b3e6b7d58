# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of AWS for traffic: how it is reached, which actions IAM has to allow, and which calls are made again.

All of these calls may be made twice: they say what should be, not what should be added.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError, NoRegionError
except ImportError as error:
    MISSING: ImportError | None = error
    # So that the code that names them can be read; nothing of it runs without a client.
    BotoCoreError = ClientError = ConnectTimeoutError = EndpointConnectionError = HTTPClientError = NoRegionError = LmsError
else:
    MISSING = None

# What IAM has to allow, by module.
READ_ALB = (
    "elasticloadbalancing:DescribeListeners",
    "elasticloadbalancing:DescribeLoadBalancers",
    "elasticloadbalancing:DescribeRules",
    "elasticloadbalancing:DescribeTargetGroups",
    "elasticloadbalancing:DescribeTargetHealth",
)
WEIGH_ALB = (*READ_ALB, "elasticloadbalancing:ModifyListener", "elasticloadbalancing:ModifyRule")
READ_ECS = ("ecs:DescribeServices", "ecs:DescribeTaskDefinition", "ecs:DescribeTasks", "ecs:ListTasks")
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "alb_traffic": WEIGH_ALB,
    "alb_traffic_info": tuple(action for action in READ_ALB if not action.endswith(":DescribeTargetGroups")),
    "alb_targets": (
        *READ_ALB,
        "elasticloadbalancing:DeregisterTargets",
        "elasticloadbalancing:RegisterTargets",
    ),
    "asg_capacity": (
        *READ_ALB,
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeScalingActivities",
        "autoscaling:UpdateAutoScalingGroup",
    ),
    "ecs_rollout_service": (*READ_ALB, *READ_ECS, "ecs:RegisterTaskDefinition", "ecs:UpdateService"),
    "ecs_run_task": (*READ_ECS, "ecs:RunTask"),
    "elasticache_replication_group": (
        "elasticache:AddTagsToResource",
        "elasticache:CreateReplicationGroup",
        "elasticache:DecreaseReplicaCount",
        "elasticache:DeleteReplicationGroup",
        "elasticache:DescribeCacheClusters",
        "elasticache:DescribeReplicationGroups",
        "elasticache:IncreaseReplicaCount",
        "elasticache:ListTagsForResource",
        "elasticache:ModifyReplicationGroup",
        "elasticache:ModifyReplicationGroupShardConfiguration",
        "elasticache:RemoveTagsFromResource",
    ),
    # Without ListBucket a record that is missing cannot be told from one that may not be read.
    "traffic_rollout": (*WEIGH_ALB, "cloudwatch:DescribeAlarms", "s3:GetObject", "s3:ListBucket", "s3:PutObject"),
}

ATTEMPTS = 8
# The longest pause after a failure; it doubles from one to the next (seconds).
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 20.0
CONNECT_TIMEOUT = 10
READ_TIMEOUT = 60

# What AWS answers to who asks too often or at a bad moment. The retries of amazon.aws do not know ThrottlingException.
TRANSIENT = frozenset(
    {
        *("InternalError", "InternalFailure", "PriorRequestNotComplete", "RequestLimitExceeded", "RequestThrottled"),
        *("RequestThrottledException", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable", "SlowDown", "Throttling"),
        *("ThrottledException", "ThrottlingException", "TooManyRequestsException", "Unavailable"),
    }
)
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})

_WORD = re.compile(r"(?<!^)(?=[A-Z])")


class AwsError(LmsError):
    """A call that AWS refused, or that did not reach it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def aws_argspec() -> dict[str, dict[str, Any]]:
    """Return the options of the documentation fragment aws_connection."""
    return {
        "region": {"type": "str", "aliases": ["aws_region"]},
        "profile": {"type": "str", "aliases": ["aws_profile"]},
        "access_key": {"type": "str", "aliases": ["aws_access_key"], "no_log": False},
        "secret_key": {"type": "str", "aliases": ["aws_secret_key"], "no_log": True},
        "session_token": {"type": "str", "aliases": ["aws_session_token"], "no_log": True},
        "endpoint_url": {"type": "str", "aliases": ["aws_endpoint_url"]},
        "ca_bundle": {"type": "path", "aliases": ["aws_ca_bundle"]},
    }


def client_for(service: str, options: Mapping[str, Any]) -> Any:
    """Return a client of a service. What the options leave out the SDK finds by itself. Nothing is asked yet."""
    if MISSING is not None:
        raise LmsError("Traffic of AWS needs boto3. Install the Debian package python3-boto3 on the host that runs this task.") from MISSING
    given = {key: options.get(key) or None for key in aws_argspec()}
    # The SDK's own retries would multiply with those of Api, and hide them.
    config = Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, retries={"total_max_attempts": 1})
    try:
        session = boto3.session.Session(
            # The SDK itself knows only AWS_DEFAULT_REGION.
            region_name=given["region"] or os.environ.get("AWS_REGION") or None,
            profile_name=given["profile"],
            aws_access_key_id=given["access_key"],
            aws_secret_access_key=given["secret_key"],
            aws_session_token=given["session_token"],
        )
        return session.client(service, endpoint_url=given["endpoint_url"], verify=given["ca_bundle"], config=config)
    except NoRegionError as error:
        raise LmsError("No region of AWS is known. Give region, or set AWS_REGION where the task runs.") from error
    except (BotoCoreError, ValueError) as error:
        raise LmsError(f"AWS cannot be reached with these options: {error}") from error


def error_code(error: BaseException) -> str:
    """Return what AWS calls an error; nothing for one of the connection."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def is_transient(error: BaseException) -> bool:
    """Say whether the same call may succeed a moment later."""
    if not isinstance(error, ClientError):
        return isinstance(error, (ConnectTimeoutError, EndpointConnectionError, HTTPClientError, OSError))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error_code(error) in TRANSIENT or status == 429 or (status >= 500 and status != 501)


class Api:
    """A service of AWS, through a client that is handed in."""

    def __init__(
        self,
        client: Any,
        service: str = "elasticloadbalancing",
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._service = service
        self._sleep = sleep
        self._chance = chance

    def call(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """Make a call, some times where that may help. What says which failure it would be."""
        method = getattr(self._client, _WORD.sub("_", operation).lower())
        failures = 0
        while True:
            try:
                reply: dict[str, Any] = method(**parameters)
            except (BotoCoreError, ClientError, OSError) as error:
                failures += 1
                if failures == ATTEMPTS or not is_transient(error):
                    raise self._failure(operation, what, error) from error
                self._sleep(self._pause(failures))
            else:
                return reply

    def pages(self, operation: str, key: str, what: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return a list whole, whatever the number of its pages."""
        found: list[dict[str, Any]] = []
        marker: dict[str, str] = {}
        while True:
            reply = self.call(operation, what, **parameters, **marker)
            found.extend(reply[key])
            if not reply.get("NextMarker"):
                return found
            marker = {"Marker": reply["NextMarker"]}

    def _pause(self, failures: int) -> float:
        """Return how long to wait after some failures: many that wait would else come back together."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1)) * (0.5 + self._chance() / 2)

    def _failure(self, operation: str, what: str, error: BaseException) -> AwsError:
        """Say what failed, and what to do where that is known."""
        code = error_code(error)
        if code in DENIED:
            return AwsError(f"{what}: AWS does not allow it. Allow {self._service}:{operation} to the identity of this task.", code)
        said = error.response["Error"].get("Message", "") if isinstance(error, ClientError) else str(error)
        sentence = f"{what}: {': '.join(part for part in (code, said.rstrip('.')) if part)}"
        return AwsError(f"{sentence}, {ATTEMPTS} times in a row." if is_transient(error) else f"{sentence}.", code)
