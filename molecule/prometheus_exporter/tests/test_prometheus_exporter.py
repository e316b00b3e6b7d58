"""What an operator and Prometheus notice of the prometheus_exporter role."""

from __future__ import annotations

import re
import time

import pytest
from checks import access_to, apply_role, converge, listening_addresses, once, said, service_is_up

PASSWORD = 'it\'s a "te$t" of #pass words'
PORTS = {"accesslog": 9114, "blackbox": 9115, "mysqld": 9104, "nginx": 9113, "node": 9100, "phpfpm": 9253, "postgres": 9187, "redis": 9121}
WITH_SECRETS = ["mysqld", "redis"]
MARIADB_REPLICA = "CHANGE MASTER TO MASTER_HOST='192.0.2.1', MASTER_USER='x'; START SLAVE"


def metrics(host, name):
    """Return what an exporter tells, by the name of the metric with its labels."""
    text = host.check_output(f"curl --silent --fail http://127.0.0.1:{PORTS[name]}/metrics")
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def names(host, name):
    return {sample.partition("{")[0] for sample in metrics(host, name)}


def process(host, name):
    return host.check_output(f"systemctl show --property=MainPID --value prometheus-{name}-exporter")


def environment_of(host, name):
    return f"/etc/default/prometheus-{name}-exporter"


def eventually(question, seconds=15):
    """Ask until the answer is true, and say whether it ever was."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if question():
            return True
        time.sleep(0.5)
    return False


@pytest.mark.parametrize("name", PORTS)
def test_each_exporter_runs_and_starts_at_boot(host, name):
    assert service_is_up(host, f"prometheus-{name}-exporter")


@pytest.mark.parametrize("name", PORTS)
def test_only_loopback_is_served_by_default(host, name):
    assert listening_addresses(host, PORTS[name]) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("accesslog", "nginx_log_up"),
        ("mysqld", "mysql_up"),
        ("nginx", "nginx_up"),
        ("phpfpm", 'php_fpm_up{socket="/srv/current.sock"}'),
        ("postgres", "pg_up"),
        ("redis", "redis_up"),
    ],
)
def test_each_exporter_gets_through_to_what_it_looks_at(host, name, sample):
    assert metrics(host, name)[sample] == "1"


def test_the_blackbox_exporter_visits_what_it_is_told_to(host):
    url = "http://127.0.0.1:9115/probe?module=http_2xx&target=http://127.0.0.1:8081/"

    assert "probe_success 1" in host.check_output(f"curl --silent --fail '{url}stub_status'")
    assert "probe_success 0" in host.check_output(f"curl --silent --fail '{url}nothing'")


def test_what_stops_is_told_and_comes_back(host):
    host.check_output("systemctl stop redis-server")
    try:
        assert metrics(host, "redis")["redis_up"] == "0"
    finally:
        host.check_output("systemctl start redis-server")
    assert eventually(lambda: metrics(host, "redis")["redis_up"] == "1")


def test_nginx_that_stops_is_told_or_its_exporter_waits_for_it(host):
    """The exporter of Debian 12 ends without nginx. It is started again however often that is."""
    host.check_output("systemctl stop nginx && systemctl restart --no-block prometheus-nginx-exporter && sleep 12")
    answer = host.run("curl --silent --fail http://127.0.0.1:9113/metrics")
    host.check_output("systemctl start nginx")

    assert answer.rc != 0 or "nginx_up 0" in answer.stdout
    assert eventually(lambda: "nginx_up 1" in host.run("curl --silent --fail http://127.0.0.1:9113/metrics").stdout, 30)


def test_the_link_to_a_pool_is_followed_anew_each_time(host):
    host.check_output("ln -sfn /run/php/nothing.sock /srv/current.sock")
    try:
        assert metrics(host, "phpfpm")['php_fpm_up{socket="/srv/current.sock"}'] == "0"
    finally:
        host.check_output("ln -sfn /run/php/lms.sock /srv/current.sock")

    found = metrics(host, "phpfpm")
    assert found['php_fpm_up{socket="/srv/current.sock"}'] == "1"
    assert found['php_fpm_total_processes{pool="lms",socket="/srv/current.sock"}'] == "2"


def test_what_nginx_answers_is_counted_over_a_rotation_too(host):
    def count(status):
        return int(metrics(host, "accesslog").get(f'nginx_log_requests_total{{site="files.lms.test",status="{status}"}}', 0))

    ask = "curl --silent --output /dev/null --header 'Host: files.lms.test' http://127.0.0.1:8000/nothing"
    before = count(404)

    host.check_output(f"{ask} && {ask}")
    host.check_output("mv /var/log/nginx/access.log /var/log/nginx/access.log.1 && systemctl kill --signal=USR1 nginx && sleep 1")
    host.check_output(ask)

    assert eventually(lambda: count(404) == before + 3)


def test_a_pool_without_a_status_page_is_down_and_not_a_crash(host):
    program = "python3 /usr/local/lib/lms-exporters/phpfpm.py --web.listen-address=127.0.0.1:9999 --phpfpm.status-path=/none"
    host.check_output(f"systemd-run --collect --unit=other-exporter {program} --phpfpm.socket-path=/run/php/lms.sock && sleep 2")
    answer = host.check_output("curl --silent --fail http://127.0.0.1:9999/metrics")
    told = host.check_output("journalctl --unit=other-exporter --output=cat")
    host.check_output("systemctl stop other-exporter")

    assert 'php_fpm_up{socket="/run/php/lms.sock"} 0' in answer
    assert "/run/php/lms.sock: /none is no status page of this pool. It answers: " in told


def test_files_of_the_folder_are_metrics_too(host):
    host.check_output("echo 'lms_migrations_pending 3' > /var/lib/prometheus/node-exporter/lms_test.prom")

    assert metrics(host, "node")["lms_migrations_pending"] == "3"
    host.check_output("rm /var/lib/prometheus/node-exporter/lms_test.prom")


def test_the_sandbox_hides_nothing_that_is_measured(host):
    found = metrics(host, "node")
    root = next(sample for sample in found if sample.startswith("node_filesystem_readonly") and 'mountpoint="/"' in sample)

    assert {"node_timex_sync_status", "node_timex_offset_seconds", "node_vmstat_oom_kill", "node_load5"} <= set(found)
    # The sandbox itself is read-only; the host is not.
    assert found[root] == "0"
    assert 'node_scrape_collector_success{collector="timex"}' in found
    assert found['node_scrape_collector_success{collector="filesystem"}'] == "1"


def test_the_length_of_a_queue_is_told(host):
    client = f"REDISCLI_AUTH='{PASSWORD.replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))}' redis-cli"
    host.check_output(f"{client} rpush lms_database_queues:default one two")

    assert metrics(host, "redis")['redis_key_size{db="db0",key="lms_database_queues:default"}'] == "2"
    host.check_output(f"{client} del lms_database_queues:default")


def test_a_replica_is_told(host):
    client = f"REDISCLI_AUTH='{PASSWORD.replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))}' redis-cli"
    host.check_output(f"{client} replicaof 192.0.2.1 6379 && mariadb -e %s", MARIADB_REPLICA)
    try:
        mysqld = names(host, "mysqld")
        redis = names(host, "redis")
    finally:
        host.check_output(f"{client} replicaof no one && mariadb -e 'STOP SLAVE; RESET SLAVE ALL'")

    assert {"mysql_slave_status_slave_io_running", "mysql_slave_status_slave_sql_running"} <= mysqld
    assert "redis_master_link_up" in redis


@pytest.mark.parametrize("name", PORTS)
def test_each_unit_is_in_a_sandbox(host, name):
    result = host.run(f"systemd-analyze security --no-pager --threshold=20 prometheus-{name}-exporter.service")

    assert result.rc == 0, result.stdout[-300:]


@pytest.mark.parametrize("name", PORTS)
def test_the_environment_is_private(host, name):
    assert access_to(host, environment_of(host, name)) == ("root", "root", "0640")


@pytest.mark.parametrize("name", WITH_SECRETS)
def test_a_password_is_where_root_alone_reads_it(host, name):
    unit = f"prometheus-{name}-exporter"
    seen = [
        host.check_output("ps axww -o args"),
        host.check_output(f"systemctl show {unit}"),
        host.check_output(f"systemctl cat {unit}"),
        host.check_output(f"journalctl --unit {unit} --output cat"),
        host.check_output(f"cat /etc/prometheus/{name}* 2>/dev/null || true"),
        host.check_output(f"curl --silent http://127.0.0.1:{PORTS[name]}/metrics"),
    ]

    assert [text for text in seen if "pass words" in text] == []
    assert "pass words" in host.file(environment_of(host, name)).content_string


def test_a_password_is_not_told_by_ansible(host):
    before = {name: process(host, name) for name in WITH_SECRETS}

    run = converge(host, __password=f"{PASSWORD} of old")
    back = converge(host)

    assert run.returncode == 0, run.stdout
    assert back.returncode == 0, back.stdout
    assert "pass words" not in run.stdout + run.stderr
    assert [name for name in WITH_SECRETS if process(host, name) == before[name]] == []
    assert metrics(host, "redis")["redis_up"] == "1"


def test_a_run_that_was_cut_off_is_made_good_by_the_next(host):
    file = environment_of(host, "node")
    old = f"sed --in-place=.new -e s/:9100/:9101/ -e s/LMS_CONFIGURATION=.*/LMS_CONFIGURATION=old/ {file}"
    host.check_output(f"{old} && systemctl restart prometheus-node-exporter && mv {file}.new {file}")
    assert eventually(lambda: listening_addresses(host, 9101) == {"127.0.0.1"})
    others = {name: process(host, name) for name in PORTS if name != "node"}

    run = apply_role(host, "prometheus_exporter", tasks="service")

    assert run.returncode == 0, run.stdout
    assert listening_addresses(host, 9101) == set()
    assert listening_addresses(host, 9100) == {"127.0.0.1"}
    assert {name: process(host, name) for name in others} == others


def test_a_sandbox_that_systemd_has_not_read_is_made_good_by_the_next_run(host):
    once(host)
    file = "/etc/systemd/system/prometheus-node-exporter.service.d/lms.conf"
    reload = "systemctl daemon-reload && systemctl restart prometheus-node-exporter"
    host.check_output(f"mv {file} /var/tmp/lms.conf && {reload} && mv /var/tmp/lms.conf {file}")

    run = apply_role(host, "prometheus_exporter", tasks="service")

    assert run.returncode == 0, run.stdout
    assert host.check_output("systemctl show --property=ProtectSystem --value prometheus-node-exporter") == "strict"
    assert host.run("systemd-analyze security --no-pager --threshold=20 prometheus-node-exporter.service").rc == 0


def test_arguments_that_the_program_does_not_know_do_not_land(host):
    before = process(host, "node"), host.file(environment_of(host, "node")).content_string

    run = apply_role(host, "prometheus_exporter", prometheus_exporter_list=[{"name": "node", "arguments": ["--no-such-argument"]}])

    assert run.returncode != 0
    assert "unknown long flag '--no-such-argument'" in said(run)
    assert (process(host, "node"), host.file(environment_of(host, "node")).content_string) == before
    assert "node_load1" in metrics(host, "node")


def test_without_the_guard_such_arguments_end_the_exporter(host):
    once(host)
    file = environment_of(host, "node")
    host.check_output(f"sed --in-place=.before s/ARGS=./\\&--no-such-argument' '/ {file} && systemctl restart prometheus-node-exporter")
    try:
        assert eventually(lambda: host.run("curl --silent --fail http://127.0.0.1:9100/metrics").rc != 0)
    finally:
        host.check_output(f"mv {file}.before {file} && systemctl restart prometheus-node-exporter")
    assert eventually(lambda: host.run("curl --silent --fail http://127.0.0.1:9100/metrics").rc == 0)


def test_probes_that_the_blackbox_exporter_does_not_understand_do_not_land(host):
    probes = {"http_2xx": {"prober": "http", "timeout": "often"}}

    run = apply_role(host, "prometheus_exporter", prometheus_exporter_probes=probes)

    assert run.returncode != 0
    assert "not a valid duration" in said(run)
    assert "often" not in host.file("/etc/prometheus/blackbox.yml").content_string
    assert service_is_up(host, "prometheus-blackbox-exporter")


@pytest.mark.parametrize(
    ("exporters", "message"),
    [
        ([{"name": "node"}, {"name": "node"}], "prometheus_exporter_list has node more than once."),
        ([{"name": "phpfpm"}], "prometheus_exporter_list names phpfpm without sockets."),
        (
            [{"name": "mysqld", "target": "db"}],
            "gives mysqld a target that is neither a socket such as /run/mysqld/mysqld.sock nor a host with a port.",
        ),
        (
            [{"name": "node", "arguments": ["--a b"]}],
            "has an argument with a space, a quote or a backslash: --a b.",
        ),
        (
            [{"name": "nodes"}],
            "value of name must be one of: accesslog, blackbox, mysqld, nginx, node, phpfpm, postgres, redis, got: nodes",
        ),
        ([{"name": "node", "prot": 1}], "prot. Supported parameters include: address, arguments, environment"),
        ([{"name": "node", "port": "x"}], "cannot be converted to an int"),
    ],
)
def test_what_no_exporter_can_be_given_is_refused_before_the_first_change(host, exporters, message):
    run = apply_role(host, "prometheus_exporter", prometheus_exporter_list=exporters)

    assert run.returncode != 0
    assert message in said(run)
    assert not re.search(r"changed: ", run.stdout)


def test_an_occupied_port_is_named(host):
    once(host)
    host.check_output("systemd-run --collect --unit=squatter python3 -m http.server --bind 127.0.0.1 9200 && sleep 1")
    file = environment_of(host, "node")
    host.check_output(f"cp --preserve {file} /var/tmp/environment")

    run = apply_role(host, "prometheus_exporter", prometheus_exporter_list=[{"name": "node", "port": 9200}])
    host.check_output(f"systemctl stop squatter && cp --preserve /var/tmp/environment {file}")
    back = converge(host)

    assert run.returncode != 0
    assert "prometheus-node-exporter does not answer at http://127.0.0.1:9200/metrics." in said(run)
    assert "address already in use" in said(run)
    assert back.returncode == 0, back.stdout
