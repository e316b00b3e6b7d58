# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A moto server with what it lacks for the whole infrastructure. Run as a program, it takes the options of moto_server.

ElastiCache has nodes and changes (elasticache_model). What AWS tells and moto does not: all attributes of a load balancer, the tags of NAT
gateways by their type, performance insights of a database. And a launch template keeps its own tags out of what instances get.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any
from unittest import mock

from ansible_collections.bitflow.lms.tests.lab.elasticache_model import elasticache
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE
from moto.elbv2.models import FakeLoadBalancer
from moto.rds.models import DBInstance
from moto.server import main

# The modules of amazon.aws read these without asking whether they are there, as AWS always tells them.
ATTRIBUTES = {
    "routing.http.desync_mitigation_mode": "defensive",
    "routing.http.drop_invalid_header_fields.enabled": "false",
    "routing.http.x_amzn_tls_version_and_cipher_suite.enabled": "false",
    "routing.http.xff_client_port.enabled": "false",
}


def run() -> None:
    """Serve until somebody ends it."""
    make_balancer, make_database, make_template = FakeLoadBalancer.__init__, DBInstance.__init__, LaunchTemplate.__init__

    def balancer(made: FakeLoadBalancer, *arguments: Any, **named: Any) -> None:
        make_balancer(made, *arguments, **named)
        made.attrs = {**ATTRIBUTES, **made.attrs}

    def database(made: Any, *arguments: Any, **named: Any) -> None:
        make_database(made, *arguments, **named)
        made.performance_insights_enabled = str(named.get("enable_performance_insights")).lower() == "true"
        made.performance_insights_retention_period = int(named.get("performance_insights_retention_period") or 7)

    def template(made: LaunchTemplate, backend: Any, name: str, data: dict[str, Any], *arguments: Any) -> None:
        tagged = [each for each in data.get("TagSpecifications", []) if each["ResourceType"] != "launch-template"]
        make_template(made, backend, name, {**data, "TagSpecifications": tagged}, *arguments)

    with contextlib.ExitStack() as stack:
        stack.enter_context(elasticache(time.time, busy=0))
        stack.enter_context(mock.patch.dict(EC2_PREFIX_TO_RESOURCE, {"nat": "natgateway"}))
        for owner, replacement in ((FakeLoadBalancer, balancer), (DBInstance, database), (LaunchTemplate, template)):
            stack.enter_context(mock.patch.object(owner, "__init__", replacement))
        main(sys.argv[1:])


if __name__ == "__main__":
    run()
