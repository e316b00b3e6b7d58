"""The filters that wire inventories to roles."""

from __future__ import annotations

from ansible_collections.bitflow.lms.plugins.filter.wiring import (
    database_access,
    exporter_jobs,
    frontend_artifact,
    frontend_artifacts,
    frontend_sites,
    host_exporters,
    host_services,
    public_sites,
    upstreams,
)

FRONTENDS = [{"name": "student", "port": 3001}, {"name": "admin", "port": 3002}]


def test_every_frontend_and_the_api_get_an_upstream_with_every_host():
    result = upstreams(FRONTENDS[:1], {"backend": ["192.0.2.1", "192.0.2.2"], "frontend": ["192.0.2.3"]}, 8000)

    assert result == [
        {"name": "api", "servers": [{"address": "192.0.2.1", "port": 8000}, {"address": "192.0.2.2", "port": 8000}]},
        {"name": "student", "servers": [{"address": "192.0.2.3", "port": 3001}]},
    ]


def test_with_colours_each_of_them_has_an_upstream_of_its_own_hosts():
    servers = {"backend": {"blue": ["192.0.2.1"], "green": ["192.0.2.2"]}, "frontend": {"blue": ["192.0.2.3"], "green": []}}

    result = upstreams(FRONTENDS[:1], servers, 8000)

    assert result == [
        {"name": "api_blue", "servers": [{"address": "192.0.2.1", "port": 8000}]},
        {"name": "api_green", "servers": [{"address": "192.0.2.2", "port": 8000}]},
        {"name": "student_blue", "servers": [{"address": "192.0.2.3", "port": 3001}]},
        {"name": "student_green", "servers": []},
    ]


def test_with_colours_a_site_leads_to_both_and_says_how_its_servers_are_asked():
    sites = public_sites(FRONTENDS[:1], "example.com", "/etc/ssl/lms/lms", True, {"api": "/health"})

    assert [{key: value for key, value in site.items() if key in ("upstream", "upstreams", "health_uri", "assets")} for site in sites] == [
        {"upstreams": {"blue": "api_blue", "green": "api_green"}, "health_uri": "/health"},
        {"upstreams": {"blue": "student_blue", "green": "student_green"}, "health_uri": "/", "assets": ["/_next/static/"]},
    ]


def test_the_first_frontend_answers_at_the_bare_domain_too():
    names = {site["name"]: site["server_names"] for site in public_sites(FRONTENDS, "example.com", "/etc/ssl/lms/lms")}

    assert names == {"api": ["api.example.com"], "student": ["student.example.com", "example.com"], "admin": ["admin.example.com"]}


def test_the_socket_goes_through_the_one_link_and_assets_outlive_their_release():
    site = frontend_sites(FRONTENDS, "example.com", "/srv/lms/frontend")[1]

    assert site == {
        "name": "admin",
        "listen": ["3002"],
        "server_names": ["admin.example.com"],
        "proxy": {"socket": "/srv/lms/frontend/current/apps/admin/run/admin.sock"},
        "assets": [
            {
                "location": "/_next/static/",
                "directory": "/srv/lms/frontend/assets/apps/admin/.next/static/",
                "immutable": True,
            }
        ],
    }


def test_the_database_admits_single_addresses_with_password_and_tls():
    rules = database_access(["192.0.2.1", "2001:db8::1"], "lms", "lms")

    assert [(rule["type"], rule["address"], rule["method"]) for rule in rules] == [
        ("hostssl", "192.0.2.1/32", "scram-sha-256"),
        ("hostssl", "2001:db8::1/128", "scram-sha-256"),
    ]


def test_a_release_holds_the_server_and_the_assets_beside_it():
    assert frontend_artifact(FRONTENDS[:1]) == [
        {"from": "apps/student/.next/standalone", "to": ".", "optional": False},
        {"from": "apps/student/.next/static", "to": "apps/student/.next/static", "optional": False},
        {"from": "apps/student/public", "to": "apps/student/public", "optional": True},
    ]


def test_each_front_end_is_an_artifact_of_its_own():
    student, admin = frontend_artifacts(FRONTENDS)

    assert student == {
        "name": "frontend-student",
        "package": "apps/student",
        "steps": [{"argv": ["pnpm", "--filter", "{apps/student}...", "--fail-if-no-match", "run", "build"]}],
        "collect": frontend_artifact(FRONTENDS[:1]),
    }
    assert admin["name"] == "frontend-admin"


EXPORTERS = [
    {"name": "node", "port": 9100, "groups": ["backend", "cache", "monitoring"]},
    {"name": "redis", "port": "9121", "groups": ["cache"], "settings": {"password": "secret"}},
    {"name": "blackbox", "port": 9115, "groups": ["monitoring"]},
]


def test_a_host_has_the_exporters_of_its_groups():
    assert host_exporters(EXPORTERS, ["cache", "database"]) == [{"name": "node"}, {"name": "redis", "password": "secret"}]


def test_every_host_is_read_once_and_what_no_host_has_is_not_read():
    hosts = {"one": {"lms_address": "192.0.2.1"}, "two": {"lms_address": "2001:db8::2"}}

    assert exporter_jobs(EXPORTERS, {"backend": ["two", "one"], "cache": ["one"], "monitoring": []}, hosts) == [
        {"name": "node", "targets": ["192.0.2.1:9100", "[2001:db8::2]:9100"]},
        {"name": "redis", "targets": ["192.0.2.1:9121"]},
    ]


def test_a_host_lets_in_what_its_groups_are_for_and_nothing_that_nobody_may_reach():
    services = [
        {"name": "redis", "ports": ["6379"], "groups": ["cache"], "sources": ["192.0.2.2", "192.0.2.1", "192.0.2.2"]},
        {"name": "web", "ports": ["443"], "groups": ["loadbalancer"], "sources": ["0.0.0.0/0"]},
        {"name": "exporters", "ports": ["9100"], "groups": ["cache"], "sources": []},
        {"name": "frontends", "ports": [], "groups": ["cache"], "sources": ["192.0.2.1"]},
    ]

    assert host_services(services, ["cache"]) == [{"name": "redis", "ports": ["6379"], "sources": ["192.0.2.1", "192.0.2.2"]}]
