# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How artisan is started, and what is made of its failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, MissingReleaseError, public_values
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_parsers import SyntaxProblem
from ansible_collections.bitflow.lms.plugins.module_utils._errors import CommandError, LmsError

DATA = Path(__file__).parent / "data" / "artisan"


class Host:
    """A run_command that answers from a list and records what was run."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers = list(answers)
        self.calls: list[list[str]] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, argv: list[str], **options: Any) -> tuple[int, str, str]:
        self.calls.append(argv)
        self.options.append(options)
        return self.answers.pop(0)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "artisan").touch()
    return tmp_path


def test_command_is_limited_quiet_and_never_a_shell_string(release: Path) -> None:
    host = Host((0, "out", "err"))

    result = Artisan(host, str(release), timeout=60).run("queue:work", ["--queue=a b", "$HOME"])

    assert host.calls == [
        ["timeout", "--kill-after=10", "60", "php", "artisan", "--no-interaction", "--no-ansi", "queue:work", "--queue=a b", "$HOME"]
    ]
    assert host.options == [
        {
            "cwd": str(release),
            "environ_update": {"LC_ALL": "C.UTF-8", "COLUMNS": "4000"},
            "expand_user_and_vars": False,
            # The configuration cache holds every secret of .env.
            "umask": 0o027,
        }
    ]
    assert result.as_details() == {
        "command": "queue:work",
        "argv": ["php", "artisan", "--no-interaction", "--no-ansi", "queue:work", "--queue=a b", "$HOME"],
        "rc": 0,
        "stdout": "out",
        "stderr": "err",
    }


def test_environment_reaches_the_process_as_php_reads_it_and_keeps_what_is_parsed(release: Path) -> None:
    host = Host((0, "", ""))
    environment = {"A": True, "B": False, "C": None, "D": 5, "E": "x", "LC_ALL": "de_DE.UTF-8"}

    Artisan(host, str(release), environment=environment).run("about")

    assert host.options[0]["environ_update"] == {
        "A": "true",
        "B": "false",
        "C": "",
        "D": "5",
        "E": "x",
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "4000",
    }
    assert "x" not in host.calls[0]


def test_only_values_of_harmless_variables_are_shown() -> None:
    environment = {"DB_CONNECTION": "mysql", "DB_PASSWORD": "s3cret", "DB_HOST": "s3cret", "APP_KEY": "key"}

    assert public_values(environment) == {"mysql"}


@pytest.mark.parametrize("rc", [124, 137])
def test_command_that_takes_too_long_is_an_error(release: Path, rc: int) -> None:
    with pytest.raises(CommandError, match=r"artisan migrate did not end within 5 seconds and was stopped. Raise timeout"):
        Artisan(Host((rc, "", "")), str(release), timeout=5).run("migrate")


def test_missing_php_is_an_error_that_names_the_option(release: Path) -> None:
    host = Host((127, "", "timeout: failed to run command 'php9.9': No such file or directory"))

    with pytest.raises(CommandError, match=r"php cannot be run as php9.9. Set php to"):
        Artisan(host, str(release), php="php9.9").run("about")


def test_directory_that_is_missing_is_told_apart_from_one_without_artisan(tmp_path: Path) -> None:
    with pytest.raises(MissingReleaseError, match=r"There is no directory"):
        Artisan(Host(), str(tmp_path / "none")).check()
    with pytest.raises(LmsError, match=r"There is no artisan in"):
        Artisan(Host(), str(tmp_path)).check()


def test_timeout_must_be_positive(release: Path) -> None:
    with pytest.raises(LmsError, match=r"timeout is 0; it must be at least 1 second"):
        Artisan(Host(), str(release), timeout=0).check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (255, "", "PHP Fatal error: Failed opening required '/r/vendor/autoload.php'"),
            "has no vendor/autoload.php. Install its Composer",
        ),
        ((1, (DATA / "laravel10/unknown_command.txt").read_text(), ""), "has no command confg:cache. Similar: config."),
        ((1, (DATA / "laravel10/unknown_option.txt").read_text(), ""), "has no option --isolatedx."),
        ((1, "\n   ERROR  Nope.  \n", ""), "artisan confg:cache ended with status 1: Nope."),
        ((3, "", ""), "artisan confg:cache ended with status 3."),
    ],
)
def test_failure_says_why(release: Path, answer: tuple[int, str, str], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        Artisan(Host(answer), str(release)).expect("confg:cache")

    assert message in caught.value.message
    assert caught.value.details["rc"] == answer[0]


@pytest.mark.parametrize("place", ["vendor/laravel/framework/src/Illuminate/Foundation", "vendor/laravel/framework/Foundation"])
def test_version_costs_no_start_of_laravel(release: Path, place: str) -> None:
    (release / place).mkdir(parents=True)
    (release / place / "Application.php").write_text("    const VERSION = '10.48.29';\n")
    host = Host()

    assert Artisan(host, str(release)).require_version() == "10.48.29"
    assert host.calls == []


def test_version_is_asked_for_once_when_the_source_does_not_tell(release: Path) -> None:
    host = Host((0, "Laravel Framework 8.83.26\n", ""))
    artisan = Artisan(host, str(release))

    assert (artisan.version(), artisan.require_version(), artisan.require_version()) == (None, "8.83.26", "8.83.26")
    assert len(host.calls) == 1


def test_lint_of_new_php_takes_all_files_at_once(release: Path) -> None:
    host = Host((255, "No syntax errors detected in /a.php\nErrors parsing /b.php\n", "Parse error: bad in /b.php on line 3\n"))

    problems = Artisan(host, str(release)).lint([Path("/a.php"), Path("/b.php")])

    assert problems == [SyntaxProblem("/b.php", "Parse error: bad on line 3")]
    assert len(host.calls) == 1


def test_lint_of_old_php_goes_on_with_the_files_that_it_left_out(release: Path) -> None:
    host = Host(
        (0, "No syntax errors detected in /a.php\n", ""),
        (255, "Errors parsing /b.php\n", "Parse error: bad in /b.php on line 3\n"),
        (0, "No syntax errors detected in /c.php\n", ""),
    )

    problems = Artisan(host, str(release)).lint([Path("/a.php"), Path("/b.php"), Path("/c.php")])

    assert problems == [SyntaxProblem("/b.php", "Parse error: bad on line 3")]
    assert [call[-1] for call in host.calls] == ["/c.php", "/c.php", "/c.php"]


def test_lint_without_a_verdict_is_an_error(release: Path) -> None:
    with pytest.raises(CommandError, match=r"php -l gave no verdict on /a.php"):
        Artisan(Host((1, "", "Could not open input file")), str(release)).lint([Path("/a.php")])


def test_root_is_warned_when_the_release_belongs_to_another(release: Path) -> None:
    owner = (release / "artisan").stat().st_uid
    artisan = Artisan(Host(), str(release))

    assert artisan.ownership_warning(user_id=1000) is None
    assert (artisan.ownership_warning(user_id=0) is None) == (owner == 0)
