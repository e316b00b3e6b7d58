# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the firewall: which rules services become, and which values none can be made of."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.bitflow.lms.plugins.filter.firewall import FilterModule, firewall_admits, firewall_rules

SSH: dict[str, Any] = {"name": "ssh", "ports": ["22"]}


def test_a_service_for_anybody_is_a_rule_of_both_families() -> None:
    assert firewall_rules([SSH]) == [
        {
            "name": "ssh",
            "protocol": "tcp",
            "ports": ["22"],
            "families": [{"name": "ip", "sources": []}, {"name": "ip6", "sources": []}],
            "rate": {},
        }
    ]


def test_sources_and_ports_that_overlap_become_one() -> None:
    service = SSH | {
        "ports": [3001, "3002-3014", "80", "3010-3020"],
        "protocol": "udp",
        "sources": ["192.0.2.7", "192.0.2.0/24", "198.51.100.1", "2001:db8::1"],
        "rate_limit": "20/hour",
    }

    assert firewall_rules([service]) == [
        {
            "name": "ssh",
            "protocol": "udp",
            "ports": ["80", "3001-3020"],
            "families": [{"name": "ip", "sources": ["192.0.2.0/24", "198.51.100.1"]}, {"name": "ip6", "sources": ["2001:db8::1"]}],
            "rate": {"limit": "20/hour", "burst": 20, "remembered": "1h"},
        }
    ]


def test_a_service_of_one_family_has_no_rule_of_the_other() -> None:
    rules = firewall_rules([SSH | {"sources": ["2001:db8::/32"]}])

    assert rules[0]["families"] == [{"name": "ip6", "sources": ["2001:db8::/32"]}]


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ([{"name": "SSH; drop", "ports": ["22"]}], "has the name 'SSH; drop'"),
        ([SSH, SSH], "Two services of the firewall have the name ssh"),
        ([SSH | {"ports": []}], "The service ssh of the firewall has no ports"),
        ([SSH | {"ports": ["0"]}], "the port '0'"),
        ([SSH | {"ports": ["65536"]}], "the port '65536'"),
        ([SSH | {"ports": ["30-20"]}], "the port '30-20'"),
        ([SSH | {"ports": ["22 accept"]}], "the port '22 accept'"),
        ([SSH | {"sources": ["192.0.2.1/24"]}], "the source '192.0.2.1/24', no address and no network: .* has host bits set"),
        ([SSH | {"sources": ["example.com"]}], "the source 'example.com'"),
        ([SSH | {"rate_limit": "20 a minute"}], "the rate limit '20 a minute'"),
    ],
)
def test_a_value_that_no_rule_can_be_made_of_is_named(services: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        firewall_rules(services)


@pytest.mark.parametrize(
    ("service", "address", "port", "admitted"),
    [
        ({}, "192.0.2.1", 22, True),
        ({}, "2001:db8::1", 22, True),
        ({}, "192.0.2.1", 2222, False),
        ({"ports": ["2000-3000"]}, "192.0.2.1", 2222, True),
        ({"protocol": "udp"}, "192.0.2.1", 22, False),
        ({"sources": ["192.0.2.0/24"]}, "192.0.2.1", 22, True),
        ({"sources": ["192.0.2.0/24"]}, "198.51.100.1", 22, False),
        ({"sources": ["192.0.2.0/24"]}, "2001:db8::1", 22, False),
        ({"sources": ["fe80::/10"]}, "fe80::1%eth0", 22, True),
    ],
)
def test_a_connection_is_let_in_by_port_protocol_and_source(service: dict[str, Any], address: str, port: int, admitted: bool) -> None:
    assert firewall_admits([{"name": "other", "ports": ["1"]}, SSH | service], address, port) is admitted


def test_the_filters_have_their_names() -> None:
    assert FilterModule().filters() == {"firewall_admits": firewall_admits, "firewall_rules": firewall_rules}
