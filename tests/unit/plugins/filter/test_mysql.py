"""The filters of the role mysql: what lands in a file, what a running server lacks of it, and who may come in."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.bitflow.lms.plugins.filter.mysql import mysql_accounts, mysql_due, mysql_options

# Captured from MariaDB 10.11 with a configuration that sets some of these.
HELP = """mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)
Starts the MariaDB database server.

  -b, --basedir=name  Path to installation directory.
  --max-connections=# The number of simultaneous clients allowed

Variables (--variable-name=value)
and boolean options {FALSE|TRUE}                             Value (after reading options)
------------------------------------------------------------ -------------
bind-address                                                 127.0.0.1,192.0.2.3
gtid-pos-auto-engines                                        EMPTY
init-connect                                                 SET @it = 'a \\"test\\"'
innodb-buffer-pool-size                                      314572800
log-bin                                                      binlog
long-query-time                                              0.5
max-connections                                              90
port                                                         3306
report-host                                                  (No default value)
secure-file-priv                                             /var/lib/mysql-files
slow-query-log                                               TRUE
transaction-isolation                                        READ-COMMITTED
sql-mode                                                     STRICT_TRANS_TABLES,NO_ZERO_DATE

To see what variables a running server is using, type
'SELECT * FROM INFORMATION_SCHEMA.GLOBAL_VARIABLES' instead of 'mysqld --verbose --help' or 'mariadbd --verbose --help'.
""".replace("EMPTY", "")
RUNNING = {
    "bind_address": "127.0.0.1,192.0.2.3",
    "gtid_pos_auto_engines": "",
    "init_connect": "SET @it = 'a \\\"test\\\"'",
    "innodb_buffer_pool_size": "314572800",
    "log_bin": "ON",
    "long_query_time": "0.500000",
    "max_connections": "90",
    "port": "3306",
    "report_host": "",
    "secure_file_priv": "/var/lib/mysql-files/",
    "slow_query_log": "ON",
    "sql_mode": "NO_ZERO_DATE,STRICT_TRANS_TABLES",
    "tx_isolation": "READ-COMMITTED",
}


def due(names, read=(), **changed):
    """Return what is due for a server that runs with what the help says, but for the changed settings."""
    running = [{"Variable_name": name, "Value": value} for name, value in {**RUNNING, **changed}.items()]
    return mysql_due(HELP, names, running, list(read))


def test_nothing_is_due_where_the_server_writes_the_same_in_other_words():
    assert due(RUNNING) == []


@pytest.mark.parametrize(
    ("name", "running", "statement"),
    [
        ("max_connections", "151", "SET GLOBAL `max_connections` = 90"),
        ("long_query_time", "10.000000", "SET GLOBAL `long_query_time` = 0.5"),
        ("slow_query_log", "OFF", "SET GLOBAL `slow_query_log` = 'ON'"),
        ("sql_mode", "STRICT_TRANS_TABLES", "SET GLOBAL `sql_mode` = 'STRICT_TRANS_TABLES,NO_ZERO_DATE'"),
        ("report_host", "db", "SET GLOBAL `report_host` = DEFAULT"),
        ("init_connect", "", "SET GLOBAL `init_connect` = 'SET @it = ''a \\\\\"test\\\\\"'''"),
        ("log_bin", "OFF", "SET GLOBAL `log_bin` = 'binlog'"),
        ("tx_isolation", "REPEATABLE-READ", "SET GLOBAL `tx_isolation` = 'READ-COMMITTED'"),
    ],
)
def test_a_setting_that_differs_comes_with_the_statement_that_sets_it(name, running, statement):
    assert due([name], **{name: running}) == [{"name": name, "running": running, "statement": statement}]


def test_only_the_named_settings_are_compared_by_either_spelling():
    assert [setting["name"] for setting in due(["max-connections"], max_connections="1", port="1")] == ["max_connections"]


def test_an_option_is_compared_with_the_variable_that_it_sets():
    assert due(["transaction-isolation"]) == []
    assert due(["transaction-isolation"], tx_isolation="SERIALIZABLE")[0]["statement"] == "SET GLOBAL `tx_isolation` = 'READ-COMMITTED'"


def test_an_option_that_the_server_cannot_be_asked_for_is_named_without_a_statement():
    assert due(["plugin_load_add"]) == [{"name": "plugin_load_add", "running": "", "statement": ""}]


def test_a_setting_that_is_gone_from_the_file_returns_to_its_default():
    assert due(["port"], read=["port", "max_connections"]) == []
    assert due(["port"], read=["port", "max_connections"], max_connections="80") == [
        {"name": "max_connections", "running": "80", "statement": "SET GLOBAL `max_connections` = DEFAULT"}
    ]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (True, "x = ON"),
        (False, "x = OFF"),
        (90, "x = 90"),
        (0.5, "x = 0.5"),
        ("64M", 'x = "64M"'),
        (["A", "B"], 'x = "A,B"'),
        ("", 'x = ""'),
        ('a # "b" \\ c', 'x = "a # \\"b\\" \\\\ c"'),
        ("1\nskip-grant-tables", 'x = "1\\nskip-grant-tables"'),
    ],
)
def test_a_value_stands_in_one_line_and_is_read_as_it_was_given(value, line):
    assert mysql_options({"x": value}) == [line]


def test_settings_are_sorted_and_one_spelling_wins():
    assert mysql_options({"wait-timeout": 1, "back_log": 2}) == ["back_log = 2", "wait_timeout = 1"]


@pytest.mark.parametrize("name", ["x]\nskip-grant-tables", "", "Max", "a b", "[mysqld]"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(AnsibleFilterError, match="in mysql_settings is not the name of a setting"):
        mysql_options({name: 1})


LMS = {
    "name": "lms",
    "hosts": ["localhost", "DB.example.com"],
    "password": "secret",
    "grants": [{"database": "lms", "privileges": ["ALL"]}, {"database": "reports", "table": "daily", "privileges": ["SELECT", "INSERT"]}],
}


def test_a_user_is_an_account_for_each_of_its_hosts():
    first, second = mysql_accounts([LMS], "mariadb", "db1")

    assert first == {
        "account": "lms@localhost",
        "name": "lms",
        "host": "localhost",
        "plugin": "mysql_native_password",
        "plugin_hash_string": "*14E65567ABDB5135D0CFD9A70B3032C179A49EE7",
        "privileges": {"*.*": "USAGE", "lms.*": "ALL", "reports.daily": "SELECT,INSERT"},
        "tls_requires": None,
    }
    assert second["account"] == "lms@db.example.com"


def test_mysql_hashes_the_password_with_a_salt_that_differs_by_account_and_not_by_run():
    accounts = mysql_accounts([LMS], "mysql", "db1")
    elsewhere = mysql_accounts([LMS], "mysql", "db2")

    assert accounts == mysql_accounts([LMS], "mysql", "db1")
    assert [(account["plugin"], account["plugin_auth_string"]) for account in accounts] == [("caching_sha2_password", "secret")] * 2
    assert {len(account["salt"]) for account in accounts} == {20}
    assert len({account["salt"] for account in accounts + elsewhere}) == 4


@pytest.mark.parametrize(("flavour", "plugin"), [("mariadb", "unix_socket"), ("mysql", "auth_socket")])
def test_a_user_without_a_password_comes_in_over_the_socket(flavour, plugin):
    accounts = mysql_accounts([{"name": "prometheus", "hosts": ["localhost"], "tls_required": True}], flavour, "db1")

    assert accounts == [
        {
            "account": "prometheus@localhost",
            "name": "prometheus",
            "host": "localhost",
            "plugin": plugin,
            "privileges": {"*.*": "USAGE"},
            "tls_requires": {"SSL": None},
        }
    ]


@pytest.mark.parametrize("database", ["lms`.*:ALL/*", "a/b", "a:b", ""])
def test_a_grant_on_what_is_no_name_is_refused(database):
    user = {"name": "lms", "hosts": ["localhost"], "grants": [{"database": database, "privileges": ["ALL"]}]}

    with pytest.raises(AnsibleFilterError, match="mysql_users grants lms something on"):
        mysql_accounts([user], "mariadb", "db1")
