# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask Laravel's own migrator inside the release: a script boots the application and answers in JSON, so that no printed text is read."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import PARSED_ENVIRONMENT, PRIVATE_UMASK, Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError

SCRIPT = r"""<?php

namespace Bitflow\Lms;

use Closure;
use Illuminate\Contracts\Console\Kernel;
use Illuminate\Database\Connection;
use Illuminate\Database\Connectors\ConnectorInterface;
use Illuminate\Database\Events\MigrationEnded;
use Illuminate\Database\Events\MigrationStarted;
use Illuminate\Database\Events\QueryExecuted;
use Illuminate\Database\QueryException;
use PDO;
use ReflectionClass;
use RuntimeException;
use Throwable;

final class Runner
{
    /** "lms", and the first of its locks. */
    const LOCK = [7105907, 1];

    const DRIVERS = ['pgsql', 'mysql', 'mariadb', 'sqlite'];

    private $request;
    private $stdout;
    private $answered = false;
    private $app;
    private $migrator;
    private $paths;

    /** The migration that runs, the statements that it may execute (null: any), and those that it did. */
    private $current;
    private $allowed;
    private $executed = [];

    public function __construct(array $request)
    {
        $this->request = $request;
        $this->stdout = fopen('php://stdout', 'w');
    }

    public function main(): void
    {
        register_shutdown_function(function () {
            $last = error_get_last();
            $reason = $last === null ? 'something ended PHP with exit' : strtok($last['message'], "\n");
            $this->answer(['error' => ['message' => $reason, 'text' => $reason], 'place' => $this->place()]);
        });
        try {
            $this->boot();
            $this->migrator->usingConnection($this->request['database'], function () {
                $this->answer($this->request['action'] === 'run' ? $this->run() : $this->plan());
            });
        } catch (Throwable $error) {
            $this->answer(['error' => $this->explain($error), 'place' => $this->place()]);
        }
    }

    private function tell(array $event): void
    {
        $text = json_encode($event, JSON_INVALID_UTF8_SUBSTITUTE | JSON_UNESCAPED_SLASHES | JSON_THROW_ON_ERROR);
        fwrite($this->stdout, "\n" . $this->request['marker'] . $text . "\n");
        fflush($this->stdout);
    }

    private function answer(array $answer): void
    {
        if (! $this->answered) {
            $this->answered = true;
            $this->tell(['event' => 'answer'] + $answer);
        }
    }

    private function boot(): void
    {
        // What looks at the arguments, such as a service provider, sees what it sees under artisan.
        $_SERVER['argv'] = $GLOBALS['argv'] = ['artisan', 'migrate'];
        $_SERVER['argc'] = $GLOBALS['argc'] = 2;
        require getcwd() . '/vendor/autoload.php';
        $this->app = require getcwd() . '/bootstrap/app.php';
        $this->app->make(Kernel::class)->bootstrap();
        $this->limitConnections();
        $this->migrator = $this->app->make('migrator');
        $this->paths = array_map(function ($path) {
            return $path[0] === '/' ? $path : $this->app->basePath() . '/' . $path;
        }, $this->request['paths']) ?: array_merge($this->migrator->paths(), [$this->app->databasePath() . '/migrations']);
    }

    /** Every session that is opened from here on has its limits first: whoever opens it, and however often. */
    private function limitConnections(): void
    {
        // In PostgreSQL's start-up message: a pooler that shares its sessions refuses it, where SET would reach the application's.
        $options = '';
        foreach ($this->postgresSettings() as $name => $value) {
            $options .= " -c $name=$value";
        }
        putenv('PGOPTIONS=' . getenv('PGOPTIONS') . $options);
        foreach (self::DRIVERS as $driver) {
            try {
                $connector = $this->app->make('db.factory')->createConnector(['driver' => $driver]);
            } catch (Throwable $error) {
                continue;
            }
            $limit = function (PDO $pdo) use ($driver) {
                $this->limit($driver, $pdo);
            };
            $this->app->bind("db.connector.$driver", function () use ($connector, $limit) {
                return new class($connector, $limit) implements ConnectorInterface {
                    private $connector;
                    private $limit;

                    public function __construct($connector, Closure $limit)
                    {
                        $this->connector = $connector;
                        $this->limit = $limit;
                    }

                    public function connect(array $config)
                    {
                        $pdo = $this->connector->connect($config);
                        ($this->limit)($pdo);
                        return $pdo;
                    }
                };
            });
        }
        foreach (array_keys($this->app->make('db')->getConnections()) as $name) {
            $this->app->make('db')->purge($name);
        }
    }

    private function plans(): bool
    {
        return $this->request['action'] !== 'run';
    }

    /** A plan may not write: what pretending lets through, such as a second connection, fails in a session that only reads. */
    private function postgresSettings(): array
    {
        return array_filter([
            'default_transaction_read_only' => $this->plans() ? 'on' : null,
            'lock_timeout' => $this->request['lock_timeout'] * 1000,
            'statement_timeout' => $this->request['statement_timeout'] * 1000,
        ]);
    }

    private function limit(string $driver, PDO $pdo): void
    {
        $lock = $this->request['lock_timeout'];
        $statement = $this->request['statement_timeout'];
        if ($driver === 'pgsql') {
            $this->checkPostgres($pdo);
        } elseif ($driver === 'sqlite') {
            $pdo->exec('pragma query_only = ' . ($this->plans() ? 'on' : 'off'));
        } else {
            $statements = array_filter([
                $this->plans() ? 'set session transaction read only' : null,
                $lock ? "set session lock_wait_timeout = $lock, session innodb_lock_wait_timeout = $lock" : null,
                $statement && $this->isMariaDb($pdo) ? "set session max_statement_time = $statement" : null,
            ]);
            foreach ($statements as $one) {
                $pdo->exec($one);
            }
        }
    }

    private function checkPostgres(PDO $pdo): void
    {
        foreach ($this->postgresSettings() as $name => $value) {
            if ($pdo->query("select setting from pg_settings where name = '$name'")->fetchColumn() !== (string) $value) {
                throw new RuntimeException("unsupported startup parameter: the session has another $name");
            }
        }
        try {
            // A statement ends soon after the run that waits for it was killed.
            $pdo->exec('set client_connection_check_interval = 2000');
        } catch (Throwable $error) {
            // PostgreSQL before 14, or a system that cannot tell.
        }
    }

    private function isMariaDb(PDO $pdo): bool
    {
        return stripos($pdo->getAttribute(PDO::ATTR_SERVER_VERSION), 'mariadb') !== false;
    }

    private function connection(): Connection
    {
        return $this->migrator->getRepository()->getConnection();
    }

    /** What is known about the database and the migrations of the release. */
    private function state(): array
    {
        $table = $this->migrator->repositoryExists();
        $batches = $table ? $this->migrator->getRepository()->getMigrationBatches() : [];
        $migrations = [];
        foreach ($this->migrator->getMigrationFiles($this->paths) as $name => $file) {
            $batch = $batches[$name] ?? null;
            $migrations[] = [
                'migration' => $name,
                'file' => $file,
                'batch' => $batch === null ? null : (int) $batch,
                'sha256' => $batch === null ? hash_file('sha256', $file) : null,
            ];
        }
        return ['table' => $table, 'migrations' => $migrations];
    }

    private function pending(array $state): array
    {
        return array_values(array_filter($state['migrations'], function ($one) {
            return $one['batch'] === null;
        }));
    }

    /** Where the database is; nothing before the configuration was read. */
    private function place(): array
    {
        if ($this->app === null || ! $this->app->bound('config')) {
            return [];
        }
        $config = $this->app->make('config');
        $name = $this->request['database'] ?: $config->get('database.default');
        $found = ['name' => $name];
        foreach (['driver', 'host', 'port', 'database'] as $key) {
            $value = $config->get("database.connections.$name.$key");
            $found[$key] = is_scalar($value) ? (string) $value : null;
        }
        return $found;
    }

    private function product(Connection $connection): array
    {
        $pdo = $connection->getPdo();
        $names = ['pgsql' => 'PostgreSQL', 'mysql' => 'MySQL', 'mariadb' => 'MariaDB', 'sqlite' => 'SQLite', 'sqlsrv' => 'SQL Server'];
        $driver = $connection->getDriverName();
        $product = in_array($driver, ['mysql', 'mariadb'], true) && $this->isMariaDb($pdo) ? 'MariaDB' : ($names[$driver] ?? $driver);
        return ['driver' => $driver, 'product' => $product, 'version' => (string) $pdo->getAttribute(PDO::ATTR_SERVER_VERSION)];
    }

    /** Whether the database holds no table at all, so that nothing can be using it. */
    private function isEmpty(Connection $connection): bool
    {
        $queries = [
            'pgsql' => 'select count(*) as count from information_schema.tables where table_schema = any(current_schemas(false))',
            'mysql' => 'select count(*) as count from information_schema.tables where table_schema = database()',
            'mariadb' => 'select count(*) as count from information_schema.tables where table_schema = database()',
            'sqlite' => "select count(*) as count from sqlite_master where type = 'table'",
        ];
        $query = $queries[$connection->getDriverName()] ?? null;
        return $query !== null && (int) $connection->selectOne($query, [], false)->count === 0;
    }

    private function plan(): array
    {
        $connection = $this->connection();
        $state = $this->state();
        $empty = $this->isEmpty($connection);
        $pending = $this->pending($state);
        return $this->facts($connection) + [
            'state' => $state,
            'empty' => $empty,
            'locked_by' => $this->holder($connection),
            'plan' => array_map(function ($one) use ($connection) {
                return $this->request['sql'] ? $this->pretend($one, $connection) : $this->entry($one, $connection);
            }, $pending),
        ];
    }

    private function facts(Connection $connection): array
    {
        return ['laravel' => $this->app->version(), 'place' => $this->place(), 'product' => $this->product($connection)];
    }

    private function entry(array $one, Connection $connection): array
    {
        return [
            'migration' => $one['migration'],
            'sha256' => $one['sha256'],
            'driver' => $connection->getDriverName(),
            'same_database' => true,
            'within_transaction' => true,
            'declined' => false,
            'statements' => [],
            'reads' => [],
            'problem' => null,
        ];
    }

    /** Run up() on a connection that executes nothing, and note what it would have executed. */
    private function pretend(array $one, Connection $main): array
    {
        $entry = $this->entry($one, $main);
        $statements = [];
        $reads = [];
        $on = true;
        $this->app->make('events')->listen(QueryExecuted::class, function ($query) use (&$on, &$statements, &$reads) {
            if ($on && $query->connection->pretending()) {
                $statements[$query->sql] = ($statements[$query->sql] ?? 0) + 1;
            } elseif ($on) {
                $reads[$query->sql] = true;
            }
        });
        $connection = null;
        try {
            $migration = $this->instance($one['file']);
            $connection = $this->migrator->resolveConnection($migration->getConnection());
            $entry['driver'] = $connection->getDriverName();
            $entry['same_database'] = $connection === $main;
            $entry['within_transaction'] = $this->rollsBack($migration, $connection);
            $entry['declined'] = method_exists($migration, 'shouldRun') && ! $migration->shouldRun();
            if (! $entry['declined']) {
                $this->ofMigrator('getQueries', $migration, 'up');
            }
        } catch (Throwable $error) {
            $entry['problem'] = $this->explain($error)['message'];
        } finally {
            $on = false;
            if ($connection !== null) {
                $this->settle($connection);
            }
        }
        foreach ($statements as $sql => $times) {
            $entry['statements'][] = ['sql' => (string) $sql, 'times' => $times];
        }
        $entry['reads'] = array_map('strval', array_keys($reads));
        return $entry;
    }

    private function rollsBack($migration, Connection $connection): bool
    {
        return $this->ofMigrator('getSchemaGrammar', $connection)->supportsSchemaTransactions() && $migration->withinTransaction;
    }

    /** A migration that threw leaves its connection pretending, or in a transaction. */
    private function settle(Connection $connection): void
    {
        Closure::bind(function () {
            $this->pretending = false;
        }, $connection, Connection::class)();
        while ($connection->transactionLevel() > 0) {
            $connection->rollBack();
        }
    }

    private function instance(string $file)
    {
        if (method_exists($this->migrator, 'resolvePath')) {
            return $this->ofMigrator('resolvePath', $file);
        }
        $this->migrator->requireFiles([$file]);
        return $this->migrator->resolve($this->migrator->getMigrationName($file));
    }

    private function ofMigrator(string $method, ...$arguments)
    {
        return Closure::bind(function () use ($method, $arguments) {
            return $this->{$method}(...$arguments);
        }, $this->migrator, get_class($this->migrator))();
    }

    private function run(): array
    {
        $connection = $this->connection();
        $facts = $this->facts($connection);
        if (! $this->lock($connection)) {
            return $facts + ['locked_by' => $this->holder($connection) ?: ['pid' => null]];
        }
        // A new session would not have the lock.
        $connection->setReconnector(function () {
            throw new RuntimeException('The session that holds the lock on the migrations was lost');
        });
        $before = $this->state();
        $this->tell(['event' => 'locked', 'before' => $before] + $facts);
        $judged = array_column($this->request['judged'], 'sha256', 'migration');
        if (array_column($this->pending($before), 'sha256', 'migration') !== $judged) {
            return $facts + ['before' => $before, 'other_plan' => true];
        }

        $result = ['before' => $before, 'status' => null, 'error' => null, 'failed' => null];
        $this->watch();
        $kernel = $this->app->make(Kernel::class);
        try {
            $result['status'] = $kernel->call('migrate', array_filter([
                '--force' => true,
                '--step' => $this->request['step'],
                '--database' => $this->request['database'],
                '--path' => $this->request['paths'] ? $this->paths : null,
                '--realpath' => (bool) $this->request['paths'],
            ]));
            $result['output'] = $kernel->output();
        } catch (Throwable $error) {
            $result['error'] = $this->explain($error);
            $result['failed'] = $this->current;
        }
        $this->current = null;
        // What is not committed when PHP ends is lost, so it is not counted as done.
        $this->settle($connection);
        $result['after'] = $this->state();
        $this->unlock($connection);
        return $facts + $result;
    }

    /** Follow the migrations, and let each execute only what was judged. */
    private function watch(): void
    {
        $judged = array_column($this->request['judged'], 'statements', 'migration');
        $guarded = [];
        $events = $this->app->make('events');
        $events->listen(MigrationStarted::class, function ($event) use (&$guarded, $judged) {
            $this->current = basename((new ReflectionClass($event->migration))->getFileName(), '.php');
            $this->allowed = $judged[$this->current] ?? null;
            $this->executed = [];
            $own = $this->migrator->resolveConnection($event->migration->getConnection());
            $this->tell(['event' => 'started', 'migration' => $this->current, 'rolls_back' => $this->rollsBack($event->migration, $own)]);
            foreach ($this->app->make('db')->getConnections() as $name => $connection) {
                if (($guarded[$name] ?? null) !== $connection && method_exists($connection, 'beforeExecuting')) {
                    $guarded[$name] = $connection;
                    $connection->beforeExecuting(function ($sql) {
                        $this->guard($sql);
                    });
                }
            }
        });
        // Connections that a migration opens itself are not known before.
        $events->listen(QueryExecuted::class, function ($query) {
            $this->note($query->sql);
            $this->guard($query->sql);
        });
        $events->listen(MigrationEnded::class, function () {
            $this->current = null;
        });
        $events->listen('Illuminate\Database\Events\MigrationSkipped', function ($event) {
            $this->tell(['event' => 'declined', 'migration' => $event->migrationName]);
        });
    }

    private function guard(string $sql): void
    {
        if ($this->current !== null && $this->allowed !== null && ! in_array(hash('sha256', $sql), $this->allowed, true)) {
            throw new RuntimeException(
                'It executes a statement that its plan did not have: ' . strtok($sql, "\n") . '. Approve it by name, if it may'
            );
        }
    }

    /** Each statement is told when it has run, so that a run that is killed has told it, too. */
    private function note(string $sql): void
    {
        if ($this->current === null) {
            return;
        }
        $this->executed[$sql] = ($this->executed[$sql] ?? 0) + 1;
        if ($this->executed[$sql] === 1 && count($this->executed) <= 200) {
            $this->tell(['event' => 'executed', 'migration' => $this->current, 'sql' => substr($sql, 0, 2000)]);
        }
    }

    /** Take the lock of this session, without waiting. It ends with the session, so nothing is left of a killed run. */
    private function lock(Connection $connection): bool
    {
        switch ($connection->getDriverName()) {
            case 'pgsql':
                $connection->getPdo()->exec("set application_name = '" . preg_replace('/[^\w .:-]/', '', $this->request['name']) . "'");
                return (bool) $connection->selectOne('select pg_try_advisory_lock(?, ?) as taken', self::LOCK, false)->taken;
            case 'mysql':
            case 'mariadb':
                return (int) $connection->selectOne('select get_lock(?, 0) as taken', [$this->lockName($connection)], false)->taken === 1;
        }
        return true;
    }

    private function unlock(Connection $connection): void
    {
        switch ($connection->getDriverName()) {
            case 'pgsql':
                $connection->selectOne('select pg_advisory_unlock(?, ?)', self::LOCK, false);
                break;
            case 'mysql':
            case 'mariadb':
                $connection->selectOne('select release_lock(?)', [$this->lockName($connection)], false);
        }
    }

    /** MySQL's locks belong to the whole server. */
    private function lockName(Connection $connection): string
    {
        return 'bitflow.lms.' . sha1($connection->getDatabaseName());
    }

    private function holder(Connection $connection): ?array
    {
        switch ($connection->getDriverName()) {
            case 'pgsql':
                $holder = $connection->selectOne(
                    'select a.pid, a.usename as "user", host(a.client_addr) as host, a.application_name as name,'
                    . " to_char(a.backend_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as since"
                    . ' from pg_locks l join pg_stat_activity a on a.pid = l.pid'
                    . " where l.locktype = 'advisory' and l.granted and l.classid = ? and l.objid = ? and l.objsubid = 2"
                    . ' and l.database = (select oid from pg_database where datname = current_database())',
                    self::LOCK,
                    false
                );
                break;
            case 'mysql':
            case 'mariadb':
                $holder = $connection->selectOne(
                    'select l.pid, p.user, p.host, null as name, null as since from (select is_used_lock(?) as pid) l'
                    . ' left join information_schema.processlist p on p.id = l.pid where l.pid is not null',
                    [$this->lockName($connection)],
                    false
                );
                break;
            default:
                $holder = null;
        }
        return $holder ? array_change_key_case((array) $holder, CASE_LOWER) : null;
    }

    /** Only the first line: the next ones show values of the row. */
    private function explain(Throwable $error): array
    {
        $cause = $error instanceof QueryException && $error->getPrevious() ? $error->getPrevious() : $error;
        $message = trim(strtok($cause->getMessage(), "\n") ?: get_class($cause));
        return [
            'message' => $message,
            'text' => $error->getMessage(),
            'sql' => $error instanceof QueryException ? $error->getSql() : null,
            'file' => $error->getFile() === __FILE__ ? null : $error->getFile(),
            'line' => $error->getLine(),
        ];
    }
}

(new Runner(json_decode(base64_decode('@REQUEST@'), true)))->main();
"""


@dataclass(frozen=True)
class Answer:
    """What the script said until it ended, by itself or not."""

    argv: list[str]
    rc: int
    stdout: str
    stderr: str
    final: dict[str, Any] = field(default_factory=dict)
    locked: dict[str, Any] | None = None
    # The migrations that were started, and whether the database rolls each back when it breaks.
    started: dict[str, bool] = field(default_factory=dict)
    declined: tuple[str, ...] = ()
    executed: tuple[tuple[str, str], ...] = ()

    @property
    def error(self) -> dict[str, Any] | None:
        """Return the error that the application raised."""
        return self.final.get("error")

    def statements_of(self, migration: str | None) -> list[str]:
        """Return the statements that a migration executed, each once, in their order."""
        return [sql for name, sql in self.executed if name == migration]

    def as_details(self) -> dict[str, Any]:
        """Return the fields of an error: what was run, and what migrations printed."""
        return {"argv": self.argv, "rc": self.rc, "stdout": self.stdout[-4000:], "stderr": self.stderr[-4000:]}


def parse_answer(argv: list[str], rc: int, stdout: str, stderr: str, marker: str) -> Answer:
    """Return what the script said; lines without the marker were printed by the application."""
    events: list[dict[str, Any]] = []
    printed: list[str] = []
    for line in stdout.splitlines():
        if line.startswith(marker):
            events.append(json.loads(line[len(marker) :]))
        else:
            printed.append(line)

    def told(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    return Answer(
        argv,
        rc,
        "\n".join(printed).strip(),
        stderr,
        final=next(iter(told("answer")), {}),
        locked=next(iter(told("locked")), None),
        started={event["migration"]: event["rolls_back"] for event in told("started")},
        declined=tuple(event["migration"] for event in told("declined")),
        executed=tuple((event["migration"], event["sql"]) for event in told("executed")),
    )


class MigrationRunner:
    """The script, run by the release's PHP. It reaches PHP by standard input: nothing is left on the disk, nothing is in the arguments."""

    def __init__(self, artisan: Artisan, make_marker: Callable[[], str] = lambda: secrets.token_hex(16)) -> None:
        self.artisan = artisan
        self.make_marker = make_marker

    def ask(self, action: str, **fields: Any) -> Answer:
        """Run one action and return what the script said."""
        marker = self.make_marker()
        request = base64.b64encode(json.dumps({"action": action, "marker": marker, **fields}).encode()).decode()
        argv = [self.artisan.php, "-d", "display_errors=stderr", "-d", "log_errors=0"]
        rc, stdout, stderr = self.artisan.run_command(
            ["timeout", "--kill-after=10", str(self.artisan.timeout), *argv],
            data=SCRIPT.replace("@REQUEST@", request),
            cwd=str(self.artisan.directory),
            environ_update={**self.artisan.environment, **PARSED_ENVIRONMENT},
            expand_user_and_vars=False,
            umask=PRIVATE_UMASK,
        )
        answer = parse_answer(argv, rc, stdout, stderr, marker)
        if rc in (126, 127) and "failed to run command" in stderr:
            raise CommandError(
                f"php cannot be run as {self.artisan.php}. Set php to the name or path of PHP's command line.", **answer.as_details()
            )
        return answer
