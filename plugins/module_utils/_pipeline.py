# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs joined by pipes, of which each one's end counts.

A shell tells how the last program of a pipe ended, or with pipefail that some program failed; that a dump was killed while the
compressor ended well is lost all too easily. Here every program has to end with 0, and what each wrote on standard error is kept.
The programs die with the process that started them (PR_SET_PDEATHSIG, prctl(2)): nothing goes on dumping when a run was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError

PIECE = 1024 * 1024
# How much of what a program says on standard error is kept: its end (bytes).
STDERR_KEPT = 8192
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class StageError(CommandError):
    """A program of a pipe that failed."""


@dataclass(frozen=True)
class Stage:
    """A program in a pipe."""

    argv: Sequence[str]
    # Added to PATH, HOME and LC_ALL=C.UTF-8; never a secret: other processes of the user can read it.
    environment: Mapping[str, str] = field(default_factory=dict)
    # Descriptors that it inherits, such as those of memory files with secrets.
    descriptors: Sequence[int] = ()
    # User as whom it runs. Empty: the module's own.
    user: str = ""

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        return os.path.basename(self.argv[0])  # noqa: PTH119


def run_pipeline(
    stages: Sequence[Stage],
    *,
    source: Iterable[bytes] | None = None,
    sink: Callable[[bytes], None] | None = None,
    taps: Mapping[int, Callable[[bytes], None]] | None = None,
    nice: int = 0,
    timeout: float | None = None,
    whole: bool = False,
) -> None:
    """Run programs from source to sink, and return when all of them ended well.

    The first one reads source, or nothing; sink is called with what the last one writes, in pieces. taps are called with what goes
    from stage i to i + 1. Raises StageError for a program that failed, and whatever source, sink or a tap raises; nothing runs on then.

    With whole, what a program that ended well left of its input is read all the same where it comes from source or through a tap: that
    it had enough is then no failure of those before it.
    """
    running = _Running(stages, taps or {}, nice, whole)
    try:
        running.start(source)
        if timeout is not None:
            running.watch(timeout)
        running.drain(sink)
        running.join()
    except BaseException:
        running.kill()
        raise
    finally:
        running.close()


def start(stage: Stage, *, nice: int = 0, **streams: Any) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process. To be called from the main thread: the kernel counts a thread's end as its parent's."""
    if shutil.which(stage.argv[0]) is None:
        raise LmsError(
            f"The program {stage.argv[0]} is not installed on this host. The role bitflow.lms.backup installs what backups need."
        )
    parent = os.getpid()

    def prepare() -> None:
        # Changing the user clears it, and happens before.
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
        if nice:
            os.nice(nice)

    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}
    identity: dict[str, Any] = {}
    if stage.user:
        try:
            account = pwd.getpwnam(stage.user)
        except KeyError as error:
            raise LmsError(f"This host has no user {stage.user}, as whom {stage.name} was to run (login_system_user).") from error
        if account.pw_uid != os.geteuid():
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": os.getgrouplist(stage.user, account.pw_gid)}
        environment["HOME"] = account.pw_dir
    return subprocess.Popen(  # pylint: disable=ansible-bad-function
        list(stage.argv),
        env={**environment, **stage.environment},
        pass_fds=tuple(stage.descriptors),
        # A directory that every user may enter.
        cwd="/",
        # A group of its own, so that what it starts can be ended with it.
        start_new_session=True,
        preexec_fn=prepare,
        **identity,
        **streams,
    )


class _Running:
    """The programs of one pipe while they run, and the threads between them."""

    def __init__(self, stages: Sequence[Stage], taps: Mapping[int, Callable[[bytes], None]], nice: int, whole: bool = False) -> None:
        self.stages = stages
        self.taps = taps
        self.nice = nice
        self.whole = whole
        self.processes: list[subprocess.Popen[bytes]] = []
        self.said = [bytearray() for _stage in stages]
        self.threads: list[threading.Thread] = []
        # What a thread met with; the first one counts.
        self.failures: list[BaseException] = []
        self.timed_out: float | None = None
        self.ended = threading.Event()

    def start(self, source: Iterable[bytes] | None) -> None:
        """Start the programs, all from this thread, and then what moves bytes between them."""
        pumps: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        standard_input: Any = subprocess.PIPE if source is not None else subprocess.DEVNULL
        for index, stage in enumerate(self.stages):
            process = start(stage, nice=self.nice, stdin=standard_input, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.processes.append(process)
            if index == 0 and source is not None:
                pumps.append((self._feed, (source, process)))
            elif index and index - 1 in self.taps:
                pumps.append((self._tap, (self.processes[index - 1].stdout, process, self.taps[index - 1])))
            elif index:
                # Only the next program is to hold the reading end: the one before has to notice when it dies.
                self._stdout(index - 1).close()
            standard_input = subprocess.PIPE if index in self.taps else process.stdout
        for index, process in enumerate(self.processes):
            pumps.append((self._listen, (process.stderr, self.said[index])))
        for target, arguments in pumps:
            thread = threading.Thread(target=target, args=arguments, daemon=True)
            thread.start()
            self.threads.append(thread)

    def drain(self, sink: Callable[[bytes], None] | None) -> None:
        """Give what the last program writes to the sink."""
        output = self._stdout(-1)
        while piece := output.read1(PIECE):  # type: ignore[attr-defined]
            if sink is not None:
                sink(piece)

    def join(self) -> None:
        """Wait for every program, and judge each one's end."""
        for process in self.processes:
            process.wait()
        self.ended.set()
        for thread in self.threads:
            thread.join()
        if self.timed_out is not None:
            raise StageError(f"{self.stages[0].name} was not done after {self.timed_out:g} s and was ended.")
        failed = [index for index, process in enumerate(self.processes) if process.returncode]
        # Who only noticed that the next one was gone is not the one who failed first.
        culprits = [index for index in failed if self.processes[index].returncode != -signal.SIGPIPE] or failed
        if culprits and not (self.failures and self._only_followed(culprits)):
            raise self._error(culprits[0])
        if self.failures:
            raise self.failures[0]

    def watch(self, timeout: float) -> None:
        """End the programs when they take too long."""

        def end() -> None:
            if not self.ended.wait(timeout):
                self.timed_out = timeout
                self.kill()

        threading.Thread(target=end, daemon=True).start()

    def kill(self) -> None:
        """End all programs now, and what they started."""
        for process in self.processes:
            # The number of one that was buried may be somebody else's by now.
            if process.returncode is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Bury the programs and close what is open."""
        self.ended.set()
        for process in self.processes:
            process.wait()
        for thread in self.threads:
            thread.join()
        for process in self.processes:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def _only_followed(self, culprits: Sequence[int]) -> bool:
        """Say whether programs were ended by ourselves, because a source or tap had failed."""
        return all(self.processes[index].returncode == -signal.SIGKILL for index in culprits)

    def _error(self, index: int) -> StageError:
        """Say which program failed, how, and what it said."""
        stage, status = self.stages[index], self.processes[index].returncode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = self.said[index].decode("utf-8", errors="replace").strip()
        return StageError(f"{stage.name} {how}{_reason(said)}", program=stage.name, rc=status, stderr=said)

    def _stdout(self, index: int) -> IO[bytes]:
        # It was opened as a pipe.
        return cast("IO[bytes]", self.processes[index].stdout)

    def _feed(self, source: Iterable[bytes], reader: subprocess.Popen[bytes]) -> None:
        # It was opened as a pipe.
        stream = cast("IO[bytes]", reader.stdin)
        pieces = iter(source)
        try:
            if not self._write(pieces, stream) and self.whole and reader.wait() == 0:
                for _piece in pieces:
                    pass
        except BaseException as error:
            self.failures.append(error)
            # Or it would take the end of its input for the end of the data.
            self.kill()
        finally:
            with contextlib.suppress(OSError):
                stream.close()

    def _write(self, pieces: Iterator[bytes], stream: IO[bytes]) -> bool:
        """Give a program its input. Return False when it ended before that did; its own status says whether that is right."""
        try:
            for piece in pieces:
                stream.write(piece)
        except BrokenPipeError:
            return False
        return True

    def _tap(self, output: IO[bytes], reader: subprocess.Popen[bytes], tap: Callable[[bytes], None]) -> None:
        def pieces() -> Iterable[bytes]:
            while piece := output.read1(PIECE):  # type: ignore[attr-defined]
                tap(piece)
                yield piece

        self._feed(pieces(), reader)
        with contextlib.suppress(OSError):
            output.close()

    def _listen(self, stream: IO[bytes], said: bytearray) -> None:
        while piece := stream.read1(PIECE):  # type: ignore[attr-defined]
            said += piece
            del said[:-STDERR_KEPT]


def _reason(said: str) -> str:
    """Return the line in which a program says what went wrong: the first one that calls it an error, or else the last one."""
    lines = said.splitlines()
    telling = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)] or lines[-1:]
    return f": {telling[0]}" if telling else ""
