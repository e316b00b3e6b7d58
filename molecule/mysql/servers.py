"""How the tests talk to a server of either flavour."""

from __future__ import annotations

from typing import Any

from checks import apply_role, converge

PORT = 3307
PASSWORD = 'it\'s a "test" \\'
# Of the hosts that replicate at first, the one that they replicate.
SOURCES = {"lms-mysql-trixie": "lms-mysql-bookworm", "lms-mysql-sid-replica": "lms-mysql-sid"}


class Server:
    """A server on a host, in the words of its flavour."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.name = host.backend.get_hostname()
        self.mariadb = "sid" not in self.name
        self.replicates = self.name in SOURCES
        self.service = "mariadb" if self.mariadb else "mysql"
        self.client = "mariadb" if self.mariadb else "mysql"
        self.configuration = "/etc/mysql/mariadb.conf.d/zz-lms.cnf" if self.mariadb else "/etc/mysql/mysql.conf.d/zz-lms.cnf"
        self.without_tls = "--skip-ssl" if self.mariadb else "--ssl-mode=DISABLED"

    def root(self, query: str, options: str = "--skip-column-names") -> str:
        """Return what root on the host is answered over the socket."""
        return str(self.host.check_output(f"{self.client} --batch {options} --execute=%s mysql", query))

    def variable(self, name: str) -> str:
        """Return a global variable of the running server."""
        return self.root(f"SHOW GLOBAL VARIABLES WHERE Variable_name = '{name}'").partition("\t")[2]

    def tcp(self, query: str, user: str = "lms", password: str = PASSWORD, database: str = "lms", options: str = "") -> Any:
        """Run a query over TCP, the password not among the arguments of the client."""
        command = (
            f"MYSQL_PWD=%s {self.client} --host=127.0.0.1 --port={PORT} --user=%s --batch --skip-column-names {options} --execute=%s %s"
        )
        return self.host.run(command, password, user, query, database)

    def log(self) -> str:
        """Return all that the server was told, as it logged it."""
        return str(self.host.check_output("cat %s", f"/var/lib/mysql/{self.variable('general_log_file').rpartition('/')[2]}"))

    def apply(self, tasks: str, **variables: Any) -> Any:
        """Apply some tasks of the role with other variables. Only what follows from the facts of the host is not known."""
        cache = int(self.variable("innodb_buffer_pool_size")) // 1024**2
        return apply_role(self.host, "mysql", tasks=tasks, __mysql_cache_megabytes=cache, **variables)

    def converge(self, **variables: Any) -> Any:
        """Apply the role with other variables, to a server that replicates nobody."""
        return converge(self.host, mysql_replica_of={}, **variables)

    def started(self) -> str:
        """Return when the server was started."""
        return str(self.host.check_output(f"systemctl show --property=ExecMainStartTimestampMonotonic --value {self.service}"))
