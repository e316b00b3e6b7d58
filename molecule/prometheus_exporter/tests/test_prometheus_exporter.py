"""What an operator and Prometheus notice of the prometheus_exporter role."""

from __future__ import annotations

import shlex

import pytest
from checks import access_to, answers, apply_role, eventually, exposure, listening_addresses, once, play, process, said, service_is_up

PASSWORD = 'it\'s a "te$t" of #pass words'
PORTS = {"accesslog": 9114, "blackbox": 9115, "mysqld": 9104, "nginx": 9113, "node": 9100, "phpfpm": 9253, "postgres": 9187, "redis": 9121}
UNITS = {name: f"prometheus-{name}-exporter.service" for name in PORTS}
WITH_SECRETS = ["mysqld", "redis"]
MARIADB_REPLICA = "CHANGE MASTER TO MASTER_HOST='192.0.2.1', MASTER_USER='x'; START SLAVE"


def ask(host, name, timeout=5):
    """Ask an exporter, and return curl's result with the answer."""
    return host.run(f"curl --silent --fail --max-time {timeout} http://127.0.0.1:{PORTS[name]}/metrics")


def metrics(host, name):
    """Return what an exporter tells, by the name of the metric with its labels."""
    answer = ask(host, name)
    assert answer.rc == 0, answer.stderr
    return dict(line.rsplit(" ", 1) for line in answer.stdout.splitlines() if not line.startswith("#"))


def names(host, name):
    return {sample.partition("{")[0] for sample in metrics(host, name)}


def processes(host):
    return {name: process(host, unit) for name, unit in UNITS.items()}


def environment_of(name):
    return f"/etc/default/prometheus-{name}-exporter"


def redis(host, *words):
    """Run redis-cli with the password, which never stands in its arguments."""
    return host.check_output(f"REDISCLI_AUTH={shlex.quote(PASSWORD)} redis-cli {shlex.join(words)}")


def test_each_exporter_runs_and_starts_at_boot(host):
    assert {name: service_is_up(host, unit) for name, unit in UNITS.items()} == dict.fromkeys(PORTS, True)


def test_only_loopback_is_served_by_default(host):
    assert {name: listening_addresses(host, port) for name, port in PORTS.items()} == {name: {"127.0.0.1"} for name in PORTS}


def test_each_exporter_gets_through_to_what_it_looks_at(host):
    samples = {
        "accesslog": "nginx_log_up",
        "mysqld": "mysql_up",
        "nginx": "nginx_up",
        "phpfpm": 'php_fpm_up{socket="/srv/current.sock"}',
        "postgres": "pg_up",
        "redis": "redis_up",
    }

    assert {name: metrics(host, name).get(sample) for name, sample in samples.items()} == dict.fromkeys(samples, "1")


def test_the_blackbox_exporter_visits_what_it_is_told_to(host):
    url = "http://127.0.0.1:9115/probe?module=http_2xx&target=http://127.0.0.1:8081/"

    assert "probe_success 1" in host.check_output(f"curl --silent --fail '{url}stub_status'")
    assert "probe_success 0" in host.check_output(f"curl --silent --fail '{url}nothing'")


def test_each_unit_is_in_a_sandbox(host):
    found = exposure(host, *UNITS.values())

    assert set(found) == set(UNITS.values())
    assert {unit: figure for unit, figure in found.items() if figure > 2.0} == {}


def test_the_environment_is_private(host):
    assert {access_to(host, environment_of(name)) for name in PORTS} == {("root", "root", "0640")}


@pytest.mark.parametrize("name", WITH_SECRETS)
def test_a_password_is_where_root_alone_reads_it(host, name):
    unit = UNITS[name]
    seen = [
        host.check_output("ps axww -o args"),
        host.check_output(f"systemctl show {unit}"),
        host.check_output(f"systemctl cat {unit}"),
        host.check_output(f"journalctl --unit {unit} --output cat"),
        host.check_output("find /etc/prometheus -type f -exec cat {} +"),
        ask(host, name).stdout,
    ]

    assert [text for text in seen if "pass words" in text] == []
    assert "pass words" in host.file(environment_of(name)).content_string


def test_files_of_the_folder_are_metrics_too(host):
    host.check_output("echo 'lms_migrations_pending 3' > /var/lib/prometheus/node-exporter/lms_test.prom")

    assert metrics(host, "node")["lms_migrations_pending"] == "3"


def test_the_sandbox_hides_nothing_that_is_measured(host):
    found = metrics(host, "node")
    # The root of a container is on a file system of a kind that the exporter leaves out.
    volume = 'mountpoint="/var/cache/apt/archives"'
    readonly = {figure for sample, figure in found.items() if sample.startswith("node_filesystem_readonly{") and volume in sample}

    assert {"node_timex_sync_status", "node_timex_offset_seconds", "node_vmstat_oom_kill", "node_load5"} <= set(found)
    # The sandbox itself is read-only; the host is not.
    assert readonly == {"0"}
    assert found['node_scrape_collector_success{collector="filesystem"}'] == "1"
    assert found['node_scrape_collector_success{collector="timex"}'] == "1"


def test_how_far_a_replica_of_postgresql_is_behind_is_told(host):
    """The exporter of Debian 12 does not ask for it by itself. This server is no replica: it is not behind."""
    assert metrics(host, "postgres")['pg_replication_lag{server="/run/postgresql:5432"}'] == "0"


def test_the_length_of_a_queue_is_told(host):
    redis(host, "rpush", "lms_database_queues:default", "one", "two")

    assert metrics(host, "redis")['redis_key_size{db="db0",key="lms_database_queues:default"}'] == "2"


def test_what_nginx_answers_is_counted_over_a_rotation_too(host):
    def count(status):
        return int(metrics(host, "accesslog").get(f'nginx_log_requests_total{{site="files.lms.test",status="{status}"}}', 0))

    visit = "curl --silent --output /dev/null --header 'Host: files.lms.test' http://127.0.0.1:8000/nothing"
    before = count(404)

    host.check_output(f"{visit} && {visit}")
    host.check_output("mv /var/log/nginx/access.log /var/log/nginx/access.log.1 && systemctl kill --signal=USR1 nginx")
    assert eventually(lambda: host.file("/var/log/nginx/access.log").exists)
    host.check_output(visit)

    assert eventually(lambda: count(404) == before + 3)


def test_the_link_to_a_pool_is_followed_anew_each_time(host):
    host.check_output("ln -sfn /run/php/nothing.sock /srv/current.sock")
    try:
        assert metrics(host, "phpfpm")['php_fpm_up{socket="/srv/current.sock"}'] == "0"
    finally:
        host.check_output("ln -sfn /run/php/lms.sock /srv/current.sock")

    found = metrics(host, "phpfpm")
    assert found['php_fpm_up{socket="/srv/current.sock"}'] == "1"
    assert found['php_fpm_total_processes{pool="lms",socket="/srv/current.sock"}'] == "2"


def test_a_pool_without_a_status_page_is_down_and_not_a_crash(host):
    program = "python3 /usr/local/lib/lms-exporters/phpfpm.py --web.listen-address=127.0.0.1:9999 --phpfpm.status-path=/none"
    host.check_output(f"systemd-run --collect --unit=other-exporter {program} --phpfpm.socket-path=/run/php/lms.sock")
    try:
        answer = host.check_output("curl --silent --fail --retry 20 --retry-delay 1 --retry-connrefused http://127.0.0.1:9999/metrics")
        told = "/run/php/lms.sock: /none is no status page of this pool. It answers: "
        assert 'php_fpm_up{socket="/run/php/lms.sock"} 0' in answer
        assert eventually(lambda: told in host.check_output("journalctl --unit=other-exporter --output=cat"))
    finally:
        host.check_output("systemctl stop other-exporter")


def test_what_stops_is_told_and_comes_back(host):
    host.check_output("systemctl stop redis-server")
    try:
        assert metrics(host, "redis")["redis_up"] == "0"
    finally:
        host.check_output("systemctl start redis-server")
    assert eventually(lambda: metrics(host, "redis")["redis_up"] == "1")


def test_nginx_that_stops_is_told_or_its_exporter_waits_for_it(host):
    """The exporter of Debian 12 ends without nginx. It is started again however often that is."""
    host.check_output("systemctl stop nginx && systemctl restart --no-block prometheus-nginx-exporter")
    restarts = "systemctl show --property=NRestarts --value prometheus-nginx-exporter"
    try:
        assert eventually(lambda: "nginx_up 0" in ask(host, "nginx").stdout or int(host.check_output(restarts)) >= 2)
        assert "nginx_up 1" not in ask(host, "nginx").stdout
    finally:
        host.check_output("systemctl start nginx")
    assert eventually(lambda: "nginx_up 1" in ask(host, "nginx").stdout)


def test_a_replica_is_told(host):
    redis(host, "replicaof", "192.0.2.1", "6379")
    host.check_output("mariadb -e %s", MARIADB_REPLICA)
    try:
        mysqld = names(host, "mysqld")
        told = names(host, "redis")
    finally:
        redis(host, "replicaof", "no", "one")
        host.check_output("mariadb -e 'STOP SLAVE; RESET SLAVE ALL'")

    assert {"mysql_slave_status_slave_io_running", "mysql_slave_status_slave_sql_running"} <= mysqld
    assert "redis_master_link_up" in told


def test_what_no_exporter_can_be_given_is_refused_before_the_first_change(host):
    once(host)
    refused = {
        "twice": ([{"name": "node"}, {"name": "node"}], "prometheus_exporter_list has node more than once."),
        "no_sockets": ([{"name": "phpfpm"}], "prometheus_exporter_list names phpfpm without sockets."),
        "target": (
            [{"name": "mysqld", "target": "db"}],
            "gives mysqld a target that is neither a socket such as /run/mysqld/mysqld.sock nor a host with a port.",
        ),
        "space": ([{"name": "node", "arguments": ["--a b"]}], "has an argument with a space, a quote or a backslash: --a b."),
        "name": (
            [{"name": "nodes"}],
            "value of name must be one of: accesslog, blackbox, mysqld, nginx, node, phpfpm, postgres, redis, got: nodes",
        ),
        "option": ([{"name": "node", "prot": 1}], "prot. Supported parameters include: address, arguments, environment"),
        "port": ([{"name": "node", "port": "x"}], "cannot be converted to an int"),
    }

    cases = {name: {"prometheus_exporter_list": given} for name, (given, _message) in refused.items()}

    answer = answers(host, "prometheus_exporter", cases)

    for name, (_given, message) in refused.items():
        assert message in answer[name].failure
        assert answer[name].changed == 0


def test_what_a_program_does_not_understand_does_not_land(host):
    given = {
        "arguments": {"prometheus_exporter_list": [{"name": "node", "arguments": ["--no-such-argument"]}]},
        "probes": {
            "prometheus_exporter_list": [{"name": "blackbox"}],
            "prometheus_exporter_probes": {"http_2xx": {"prober": "http", "timeout": "often"}},
        },
    }

    answer = answers(host, "prometheus_exporter", given, tasks="configure")

    assert "unknown long flag '--no-such-argument'" in answer["arguments"].failure
    assert "cannot unmarshal !!str `often` into time.Duration" in answer["probes"].failure
    assert {name: answer[name].changed for name in given} == {"arguments": 0, "probes": 0}
    assert "no-such-argument" not in host.file(environment_of("node")).content_string
    assert "often" not in host.file("/etc/prometheus/blackbox.yml").content_string


def test_without_the_guard_such_arguments_end_the_exporter(host):
    once(host)
    file = environment_of("node")
    host.check_output(f"sed --in-place=.before s/ARGS=./\\&--no-such-argument' '/ {file} && systemctl restart prometheus-node-exporter")
    try:
        assert eventually(lambda: ask(host, "node").rc != 0)
    finally:
        host.check_output(f"mv {file}.before {file} && systemctl restart prometheus-node-exporter")
    assert eventually(lambda: ask(host, "node").rc == 0)


def test_a_run_that_was_cut_off_is_made_good_by_the_next(host):
    """One exporter runs with old arguments, another in a sandbox that systemd has not read. The others run on as they do."""
    file, sandbox = environment_of("node"), "/etc/systemd/system/prometheus-blackbox-exporter.service.d/lms.conf"
    old = f"sed --in-place=.new -e s/:9100/:9101/ -e s/LMS_CONFIGURATION=.*/LMS_CONFIGURATION=old/ {file}"
    host.check_output(
        f"{old} && mv {sandbox} /var/tmp/lms.conf && systemctl daemon-reload"
        " && systemctl restart prometheus-node-exporter prometheus-blackbox-exporter"
        f" && mv {file}.new {file} && mv /var/tmp/lms.conf {sandbox}"
    )
    assert eventually(lambda: listening_addresses(host, 9101) == {"127.0.0.1"})
    before = processes(host)

    run = apply_role(host, "prometheus_exporter", tasks="service")

    assert run.returncode == 0, run.stdout
    assert listening_addresses(host, 9101) == set()
    assert listening_addresses(host, 9100) == {"127.0.0.1"}
    assert exposure(host, UNITS["blackbox"])[UNITS["blackbox"]] <= 2.0
    after = processes(host)
    assert {name for name in PORTS if after[name] != before[name]} == {"blackbox", "node"}


def test_another_password_is_taken_over_and_not_told(host):
    once(host)
    # No package of these two brings the folder.
    host.check_output("rm --recursive /etc/prometheus")
    before = processes(host)
    exporters = [{"name": name, "password": f"{PASSWORD} of old"} for name in WITH_SECRETS]

    run = play(host, "prometheus_exporter", "--diff", "-v", prometheus_exporter_list=exporters)

    assert run.returncode == 0, run.stdout
    assert "pass words" not in run.stdout + run.stderr
    after = processes(host)
    assert {name for name in PORTS if after[name] != before[name]} == set(WITH_SECRETS)
    # It is a wrong one: they say so, and run on.
    assert {name: metrics(host, name)[sample] for name, sample in {"mysqld": "mysql_up", "redis": "redis_up"}.items()} == {
        "mysqld": "0",
        "redis": "0",
    }


def test_an_occupied_port_is_named(host):
    once(host)
    host.check_output("systemd-run --collect --unit=squatter python3 -m http.server --bind 127.0.0.1 9200")
    assert eventually(lambda: listening_addresses(host, 9200) == {"127.0.0.1"})

    run = apply_role(host, "prometheus_exporter", prometheus_exporter_list=[{"name": "node", "port": 9200}])

    assert run.returncode != 0
    assert "prometheus-node-exporter does not answer at http://127.0.0.1:9200/metrics." in said(run)
    assert "address already in use" in said(run)
