"""A host with Laravel and two databases, in the words of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._migrations import Migrations
from ansible_collections.bitflow.lms.plugins.modules import artisan_migrate
from ansible_collections.bitflow.lms.plugins.plugin_utils._migration_risk import carry_out

PROJECT = Path(__file__).parents[2]
# The same path here and on the host, so that the modules can run here and their programs there.
RELEASES = PROJECT / ".cache" / "migrations"
VERSIONS = ("v1", "v2", "v4-bad-migration", "v5-expand", "v6-backfill", "v7-contract")
PACKAGES = "php-cli php-mbstring php-xml php-pgsql php-mysql php-laravel-framework postgresql mariadb-server"

# Debian's Laravel loads itself; the application's classes are found by their names.
AUTOLOAD = """<?php
require_once '/usr/share/php/Illuminate/autoload.php';
spl_autoload_register(function ($class) {
    $file = dirname(__DIR__) . '/app/' . str_replace('\\\\', '/', substr($class, 4)) . '.php';
    if (str_starts_with($class, 'App\\\\') && is_file($file)) {
        require $file;
    }
});
"""
APPLICATION = {"APP_ENV": "production", "APP_KEY": f"base64:{'A' * 43}=", "CACHE_DRIVER": "file", "QUEUE_CONNECTION": "sync"}
DATABASES = {
    "mariadb": {"DB_CONNECTION": "mysql", "DB_PORT": "3306"},
    "postgresql": {"DB_CONNECTION": "pgsql", "DB_PORT": "5432"},
}
ACCESS = {"DB_HOST": "127.0.0.1", "DB_DATABASE": "lms", "DB_USERNAME": "lms", "DB_PASSWORD": "lms"}
CREATE = {
    "mariadb": "drop database if exists lms; create database lms; grant all on lms.* to lms@'%' identified by 'lms'",
    "postgresql": "drop database if exists lms with (force); create database lms owner lms",
}
TABLES = {
    "mariadb": "select table_name from information_schema.tables where table_schema = 'lms' order by 1",
    "postgresql": "select table_name from information_schema.tables where table_schema = 'public' order by 1",
}


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Return what the condition gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {condition}")


class Host:
    """A container in which systemd runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Copies of databases, so that not every test has to migrate.
        self.made: dict[tuple[str, str], str] = {}

    def start(self) -> None:
        """Start it, install Laravel and the databases, and put the versions on it."""
        subprocess.run([PROJECT / "script/bootstrap", "trixie"], check=True)
        image = subprocess.run(
            [PROJECT / "script/bootstrap", "--print-image", "trixie"], check=True, capture_output=True, text=True
        ).stdout.strip()
        RELEASES.mkdir(parents=True, exist_ok=True)
        self.script("up", self.name, image, self.name, "--volume", f"{RELEASES}:{RELEASES}")
        if self.execute("test", "-e", "/usr/share/php/Illuminate/autoload.php", check=False).returncode != 0:
            self.shell("apt-get update -qq")
            self.shell(f"DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends {PACKAGES}")
            self.shell("""runuser -u postgres -- psql -qc "create role lms login password 'lms'" """)
        repository = RELEASES / "repository"
        subprocess.run([PROJECT / "tests/fixtures/lms/make-repository", repository], check=True, capture_output=True)
        for version in VERSIONS:
            self.unpack(repository, version)

    def unpack(self, repository: Path, version: str) -> None:
        """Make the release of a version, as Composer would have."""
        release = RELEASES / version
        release.mkdir(exist_ok=True)
        archive = subprocess.run(["git", f"--git-dir={repository}", "archive", version, "backend"], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "--strip-components=1", "-C", release], input=archive.stdout, check=True)
        (release / "vendor").mkdir(exist_ok=True)
        (release / "vendor/autoload.php").write_text(AUTOLOAD)

    def remove(self) -> None:
        """Remove the host; what it downloaded stays for the next time."""
        self.shell(f"rm -rf {RELEASES}/*")
        self.script("down", self.name)

    def script(self, *arguments: str) -> None:
        """Start or remove hosts."""
        subprocess.run([PROJECT / "molecule/shared/host.sh", *arguments], check=True)

    def execute(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program on the host."""
        return subprocess.run(["docker", "exec", "-i", self.name, *argv], check=check, capture_output=True, text=True, **options)

    def shell(self, command: str) -> str:
        """Run a shell command on the host and return what it printed."""
        return self.execute("sh", "-c", command).stdout

    def run_command(self, argv: Sequence[str], **options: Any) -> tuple[int, str, str]:
        """Run a program for a module, as run_command of AnsibleModule does."""
        process = subprocess.run(self.command(argv, **options), input=options.get("data"), check=False, capture_output=True, text=True)
        return process.returncode, process.stdout, process.stderr

    def command(self, argv: Sequence[str], cwd: str, environ_update: dict[str, str], **_options: Any) -> list[str]:
        """Return the argv that runs a program on the host."""
        environment = [word for name, value in environ_update.items() for word in ("--env", f"{name}={value}")]
        return ["docker", "exec", "-i", "--workdir", cwd, *environment, self.name, *argv]


class Database:
    """One of the host's databases, and the releases that use it."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.environment = {**APPLICATION, **DATABASES[name], **ACCESS}

    def client(self, database: str = "lms") -> list[str]:
        """Return the argv of the administrator's client, which reads SQL from standard input."""
        if self.name == "postgresql":
            return ["runuser", "-u", "postgres", "--", "psql", "-qtA", "-v", "ON_ERROR_STOP=1", database]
        return ["mariadb", "--batch", "--skip-column-names", *([database] if database == "lms" else [])]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.host.execute("systemctl", "start", self.name)
        wait_until(lambda: self.host.execute(*self.client("postgres"), input="select 1", check=False).returncode == 0)

    def stop(self) -> None:
        """Stop the server and wait until it has ended: Debian's postgresql.service stands for its clusters, and does not wait for them."""
        self.host.execute("systemctl", "stop", self.name, *(["postgresql@*"] if self.name == "postgresql" else []))

    def create(self) -> None:
        """Make the database anew, without any table."""
        for statement in CREATE[self.name].split("; "):
            self.sql(statement, "postgres")

    def create_at(self, version: str) -> None:
        """Make the database anew, as it is when a version was migrated."""
        copy = f"lms_{version}"
        known = self.host.made.get((self.name, version))
        if self.name == "postgresql" and known:
            self.sql("drop database lms with (force)", "postgres")
            self.sql(f"create database lms template {copy} owner lms", "postgres")
        elif known:
            self.create()
            self.sql(known)
        else:
            self.create()
            result = self.migrate(version)
            assert not result.get("failed"), result["msg"]
            self.host.made[self.name, version] = self.copy_to(copy)

    def copy_to(self, name: str) -> str:
        """Keep a copy of the database."""
        if self.name == "postgresql":
            self.sql(f"drop database if exists {name}", "postgres")
            self.sql(f"create database {name} template lms", "postgres")
            return name
        return self.host.execute("mariadb-dump", "lms").stdout

    def sql(self, statement: str, database: str = "lms") -> list[str]:
        """Run a statement as the administrator and return its rows."""
        return self.host.execute(*self.client(database), input=statement).stdout.split("\n")[:-1]

    def tables(self) -> list[str]:
        """Return the tables that the database has."""
        return self.sql(TABLES[self.name])

    def artisan(self, version: str, *arguments: str) -> tuple[int, str]:
        """Run Laravel's own command."""
        argv = ["php", "artisan", "--no-interaction", *arguments]
        rc, stdout, stderr = self.host.run_command(argv, cwd=str(RELEASES / version), environ_update=self.environment)
        return rc, stdout + stderr

    def migrate(
        self,
        version: str,
        *,
        state: str = "migrated",
        approved: Sequence[str] = (),
        check_mode: bool = False,
        run_command: Callable[..., tuple[int, str, str]] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Do what the task does, and return its result."""
        artisan = Artisan(run_command or self.host.run_command, str(RELEASES / version), environment=self.environment, timeout=60)
        migrations = Migrations(artisan, name="lms migrations on the test host", **options)

        def ask(wanted: str, judged: Any = None) -> dict[str, Any]:
            try:
                return artisan_migrate.run(migrations, {"state": wanted, "judged": judged, "step": False}, check_mode)
            except LmsError as error:
                return {"failed": True, **error.as_result()}

        plan = ask("planned")
        if plan.get("failed"):
            return plan
        wanted = {"state": state, "approved": list(approved), "backup_confirmed": False}
        return carry_out(plan, wanted, check_mode, lambda judged: ask("migrated", judged))

    def play(self, version: str, *arguments: str, **options: Any) -> str:
        """Run the task itself, as an operator's playbook does, and return what it printed."""
        inventory = {"all": {"hosts": {self.host.name: {"ansible_connection": "community.docker.docker"}}}}
        (RELEASES / "hosts.json").write_text(json.dumps(inventory))
        task = json.dumps({"chdir": str(RELEASES / version), "environment": self.environment, **options})
        argv = ["ansible", "all", "-i", RELEASES / "hosts.json", "-m", "bitflow.lms.artisan_migrate", "-a", task, *arguments]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(PROJECT / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        process = subprocess.run(argv, cwd=PROJECT, env=environment, check=False, capture_output=True, text=True)
        return f"{process.returncode}\n{process.stdout}{process.stderr}"

    def session(self, *statements: str) -> subprocess.Popen[str]:
        """Open a session of somebody else that executes statements and stays for as long as its last one takes."""
        process = subprocess.Popen(["docker", "exec", "-i", self.host.name, *self.client()], stdin=subprocess.PIPE, text=True)
        assert process.stdin
        process.stdin.write(";\n".join(statements) + ";\n")
        process.stdin.flush()
        return process

    def end_sessions(self, containing: str) -> None:
        """End the sessions that execute something."""
        if self.name == "postgresql":
            others = f"query like '%{containing}%' and pid != pg_backend_pid()"
            self.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {others}")  # noqa: S608
            return
        others = f"info like '%{containing}%' and id != connection_id()"
        query = f"select id from information_schema.processlist where {others}"  # noqa: S608
        for session in self.sql(query):
            self.sql(f"kill {session}")


def write_migration(folder: Path, name: str, up: str, properties: str = "") -> None:
    """Write a migration whose up() is given."""
    (folder / f"{name}.php").write_text(
        "<?php\n"
        "use Illuminate\\Database\\Migrations\\Migration;\n"
        "use Illuminate\\Database\\Schema\\Blueprint;\n"
        "use Illuminate\\Support\\Facades\\DB;\n"
        "use Illuminate\\Support\\Facades\\Schema;\n"
        f"return new class extends Migration {{\n{properties}\npublic function up(): void {{\n{up}\n}}\n}};\n"
    )
