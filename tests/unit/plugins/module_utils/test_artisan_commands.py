# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A list of artisan commands is judged by what it leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_commands import Step, plan_steps, run_steps
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError

GOOD = (0, "\n   INFO  Done.  \n\n", "")
OPTIONS: dict[str, Any] = {
    "command": None,
    "arguments": [],
    "commands": None,
    "read_only": None,
    "changed_when_output": None,
    "version_min": None,
    "version_max": None,
    "hidden_failures_accepted": False,
}

LISTING = json.dumps({"commands": [{"name": name, "definition": {"options": {}}} for name in ("known", "config:cache", "config:clear")]})

Answer = Callable[[], "tuple[int, str, str]"]


class Laravel:
    """A run_command that plays artisan in a directory: each command has an answer, and may write files."""

    def __init__(self, directory: Path, version: str = "10.48.29") -> None:
        self.directory = directory
        self.ran: list[str] = []
        self.commands: dict[str, Answer] = {"list": lambda: (0, LISTING, "")}
        source = directory / "vendor/laravel/framework/src/Illuminate/Foundation/Application.php"
        source.parent.mkdir(parents=True)
        source.write_text(f"    const VERSION = '{version}';\n")
        for name in ("artisan", "vendor/autoload.php"):
            (directory / name).touch()
        for name in ("bootstrap/cache", "storage/framework/views", "storage/app/public", "resources/views", "public"):
            (directory / name).mkdir(parents=True)

    def __call__(self, argv: list[str], **_options: Any) -> tuple[int, str, str]:
        if "-l" in argv:
            self.ran.append("php -l")
            return self.lint(argv[argv.index("-l") + 1 :])
        if "-r" in argv:
            mark, *commands = argv[argv.index("--") + 1 :]
            return self.together(mark, commands)
        return self.answer(argv[7])

    def answer(self, command: str) -> tuple[int, str, str]:
        self.ran.append(command)
        return self.commands.get(command, lambda: GOOD)()

    def together(self, mark: str, commands: list[str]) -> tuple[int, str, str]:
        """Play the program that runs several commands in one process; one that has the status -1 ends the process well, at once."""
        self.ran.append(f"{len(commands)} in one process")
        printed, complained = "", ""
        for command in commands:
            status, stdout, stderr = self.answer(command)
            printed += f"\n{mark}begin\n{stdout}" + (f"\n{mark}end {status}\n" if status in (0, 1) else "")
            complained += f"\n{mark}begin\n{stderr}" + (f"\n{mark}end {status}\n" if status in (0, 1) else "")
            if status:
                return (max(status, 0), printed, complained)
        return (0, printed, complained)

    def lint(self, names: list[str]) -> tuple[int, str, str]:
        broken = [name for name in names if "broken" in Path(name).read_text()]
        good = [f"No syntax errors detected in {name}" for name in names if name not in broken]
        return (255 if broken else 0, "\n".join(good), "\n".join(f"Parse error: bad in {name} on line 3" for name in broken))

    def writes(self, name: str, content: str, output: str = GOOD[1]) -> Answer:
        def answer() -> tuple[int, str, str]:
            path = self.directory / name
            path.unlink(missing_ok=True)
            path.write_text(content)
            os.utime(path, ns=(len(self.ran), len(self.ran)))
            return (0, output, "")

        return answer

    def run(self, *commands: str, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        steps = plan_steps({**OPTIONS, **options, "commands": [{"command": command} for command in commands]})
        return run_steps(Artisan(self, str(self.directory)), steps, check_mode)


@pytest.fixture
def laravel(tmp_path: Path) -> Laravel:
    return Laravel(tmp_path)


def entry(command: str, changed: bool, **fields: Any) -> dict[str, Any]:
    ran = {"argv": ["php", "artisan", "--no-interaction", "--no-ansi", command], "rc": 0, "stdout": GOOD[1], "stderr": ""}
    return {"command": command, "changed": changed, "skipped": False, "reason": "", **ran, **fields}


NOT_RUN = {"argv": [], "rc": None, "stdout": "", "stderr": ""}
CACHES = [
    ("config:cache", "bootstrap/cache/config.php"),
    ("event:cache", "bootstrap/cache/events.php"),
    ("route:cache", "bootstrap/cache/routes-v7.php"),
]


@pytest.mark.parametrize(("command", "name"), CACHES)
def test_cache_is_a_change_only_when_its_content_differs(laravel: Laravel, command: str, name: str) -> None:
    laravel.commands[command] = laravel.writes(name, "<?php return 1;")

    first = laravel.run(command)
    second = laravel.run(command)

    assert first["results"] == [entry(command, True)]
    assert first["diff"] == {"before": {name: "absent"}, "after": second["diff"]["before"]}
    assert (first["changed"], second["changed"]) == (True, False)
    assert second["diff"]["before"] == second["diff"]["after"]


@pytest.fixture
def usual(laravel: Laravel) -> Laravel:
    """A Laravel that starts as usual, with commands that build their caches."""
    (laravel.directory / "bootstrap/app.php").touch()
    for command, name in CACHES:
        laravel.commands[command] = laravel.writes(name, "<?php return 1;")
    return laravel


def test_caches_are_built_in_one_start_of_laravel_and_each_is_judged(usual: Laravel) -> None:
    usual.commands["route:cache"] = lambda: GOOD

    with pytest.raises(LmsError, match=r"route:cache ended with status 0, but bootstrap/cache/routes-v7\.php is not there") as caught:
        usual.run("storage:link2", "config:cache", "event:cache", "route:cache")

    assert usual.ran == ["storage:link2", "3 in one process", "config:cache", "event:cache", "route:cache"]
    assert caught.value.details["results"][1:3] == [entry("config:cache", True), entry("event:cache", True)]


def test_the_command_that_failed_among_several_is_named(usual: Laravel) -> None:
    usual.commands["event:cache"] = lambda: (1, "", "\n  RuntimeException \n\n  No such listener  \n")

    with pytest.raises(LmsError, match=r"artisan event:cache ended with status 1") as caught:
        usual.run("config:cache", "event:cache", "route:cache")

    assert usual.ran == ["3 in one process", "config:cache", "event:cache"]
    assert [(result["command"], result["rc"]) for result in caught.value.details["results"]] == [("config:cache", 0), ("event:cache", 1)]


def test_a_command_that_kills_the_process_is_named(usual: Laravel) -> None:
    usual.commands["event:cache"] = lambda: (255, "PHP Fatal error:  Out of memory", "")

    with pytest.raises(LmsError, match=r"artisan event:cache ended with status 255"):
        usual.run("config:cache", "event:cache", "route:cache")


def test_commands_after_one_that_ends_the_process_well_run_by_themselves(usual: Laravel) -> None:
    write = usual.commands["config:cache"]
    usual.commands["config:cache"] = lambda: (-1, *write()[1:])

    usual.run("config:cache", "event:cache", "route:cache")

    assert usual.ran == ["3 in one process", "config:cache", "event:cache", "route:cache"]


def test_an_application_that_cannot_start_is_the_failure_of_the_first_command(usual: Laravel) -> None:
    usual.together = lambda mark, commands: (255, "", "PHP Parse error: bootstrap/app.php")  # type: ignore[method-assign]

    with pytest.raises(LmsError, match=r"artisan config:cache ended with status 255"):
        usual.run("config:cache", "event:cache")


def test_a_release_without_the_usual_start_runs_each_command_by_itself(laravel: Laravel) -> None:
    for command, name in CACHES[:2]:
        laravel.commands[command] = laravel.writes(name, "<?php return 1;")

    laravel.run("config:cache", "event:cache")

    assert laravel.ran == ["config:cache", "event:cache"]


@pytest.mark.parametrize(("command", "name"), CACHES)
def test_cache_that_was_not_written_is_a_failure_in_spite_of_status_0(laravel: Laravel, command: str, name: str) -> None:
    with pytest.raises(LmsError, match=rf"artisan {command} ended with status 0, but {name} is not there"):
        laravel.run(command)


def test_cache_that_was_left_as_it_was_is_a_failure(laravel: Laravel) -> None:
    (laravel.directory / "bootstrap/cache/config.php").write_text("<?php return 'old';")

    with pytest.raises(LmsError, match=r"but left bootstrap/cache/config.php as it was"):
        laravel.run("config:cache")


def test_random_names_of_routes_are_no_change(laravel: Laravel) -> None:
    name = "bootstrap/cache/routes-v7.php"
    laravel.commands["route:cache"] = laravel.writes(name, "'generated::zaHHQZf3z0WJrxXD' => 1")
    laravel.run("route:cache")

    laravel.commands["route:cache"] = laravel.writes(name, "'generated::A6pJkFmyn1pMmyem' => 1")
    same = laravel.run("route:cache")
    laravel.commands["route:cache"] = laravel.writes(name, "'generated::A6pJkFmyn1pMmyem' => 2")
    other = laravel.run("route:cache")

    assert (same["changed"], other["changed"]) == (False, True)


def test_cache_elsewhere_is_found_by_its_variable(laravel: Laravel) -> None:
    laravel.commands["config:cache"] = laravel.writes("other.php", "<?php")
    artisan = Artisan(laravel, str(laravel.directory), environment={"APP_CONFIG_CACHE": str(laravel.directory / "other.php")})

    result = run_steps(artisan, [Step("config:cache")], False)

    assert result["diff"]["before"] == {"other.php": "absent"}


@pytest.mark.parametrize(
    ("command", "name"), [("config:clear", "config.php"), ("event:clear", "events.php"), ("route:clear", "routes-v7.php")]
)
def test_cache_that_is_still_there_after_clearing_is_a_failure(laravel: Laravel, command: str, name: str) -> None:
    (laravel.directory / "bootstrap/cache" / name).touch()

    with pytest.raises(LmsError, match=rf"artisan {command} ended with status 0, but bootstrap/cache/{name} is still there"):
        laravel.run(command)


def test_clearing_what_is_not_there_is_no_change(laravel: Laravel) -> None:
    assert laravel.run("config:clear")["changed"] is False


def test_broken_template_stops_the_deploy(laravel: Laravel) -> None:
    template = laravel.directory / "resources/views/card.blade.php"
    template.touch()
    source = f"<?php broken ?><?php /**PATH {template} ENDPATH**/ ?>"
    laravel.commands["view:cache"] = laravel.writes("storage/framework/views/1.php", source)

    with pytest.raises(LmsError) as caught:
        laravel.run("view:cache", "config:cache")

    assert caught.value.message == (
        "The Blade template resources/views/card.blade.php compiles to broken PHP: Parse error: bad on line 3 of the compiled view. "
        "Repair the template."
    )
    assert caught.value.details["broken_views"] == ["resources/views/card.blade.php: Parse error: bad on line 3"]
    assert caught.value.details["results"] == [entry("view:cache", True, reason=caught.value.message)]
    assert laravel.ran == ["view:cache", "php -l"]


def test_good_templates_are_compiled(laravel: Laravel) -> None:
    laravel.commands["view:cache"] = laravel.writes("storage/framework/views/1.php", "<?php echo 1;")

    first = laravel.run("view:cache")
    second = laravel.run("view:cache")

    assert (first["changed"], second["changed"]) == (True, False)
    assert first["diff"]["after"]["storage/framework/views"].startswith("1 views, sha256:")


def test_templates_that_were_compiled_nowhere_are_a_failure(laravel: Laravel) -> None:
    (laravel.directory / "resources/views/card.blade.php").touch()

    with pytest.raises(LmsError, match=r"wrote no view into storage/framework/views.*VIEW_COMPILED_PATH"):
        laravel.run("view:cache")


def link_storage(laravel: Laravel, target: str, output: str) -> Answer:
    def answer() -> tuple[int, str, str]:
        path = laravel.directory / "public/storage"
        if not path.is_symlink():
            path.symlink_to(target)
        return (0, output, "")

    return answer


MADE = "   INFO  The [public/storage] link has been connected to [storage/app/public].\n"
FOUND = "   ERROR  The [public/storage] link already exists.\n"


def test_storage_link_is_a_change_once(laravel: Laravel) -> None:
    laravel.commands["storage:link"] = link_storage(laravel, "../storage/app/public", MADE)
    first = laravel.run("storage:link")
    laravel.commands["storage:link"] = link_storage(laravel, "", FOUND)
    second = laravel.run("storage:link")

    assert first["diff"] == {"before": {"public/storage": "absent"}, "after": {"public/storage": "../storage/app/public"}}
    assert (first["changed"], second["changed"], second["warnings"]) == (True, False, first["warnings"])


@pytest.mark.parametrize(
    ("target", "output", "complaint"),
    [
        ("../nowhere", FOUND, "points to ../nowhere, which is not a directory"),
        ("../resources", MADE, "but artisan says storage/app/public"),
        ("../storage/app/public", "The links have been created.\n", "but named no link"),
    ],
)
def test_storage_link_that_leads_elsewhere_is_a_failure(laravel: Laravel, target: str, output: str, complaint: str) -> None:
    laravel.commands["storage:link"] = link_storage(laravel, target, output)

    with pytest.raises(LmsError) as caught:
        laravel.run("storage:link")

    assert complaint in caught.value.message


def test_directory_in_place_of_the_storage_link_is_a_failure(laravel: Laravel) -> None:
    (laravel.directory / "public/storage").mkdir()
    laravel.commands["storage:link"] = lambda: (0, FOUND, "")

    with pytest.raises(LmsError, match=r"public/storage is a directory or file, but must be a link"):
        laravel.run("storage:link")


def test_first_failure_ends_the_run_and_carries_what_was_done(laravel: Laravel) -> None:
    laravel.commands["second"] = lambda: (1, "\n   ERROR  No.  \n", "")

    with pytest.raises(LmsError) as caught:
        laravel.run("first", "second", "third")

    message = "artisan second ended with status 1: No."
    assert caught.value.message == message
    assert laravel.ran == ["first", "second"]
    assert caught.value.details["changed"] is True
    assert caught.value.details["results"] == [
        entry("first", True),
        entry("second", False, rc=1, stdout="\n   ERROR  No.  \n", reason=message),
    ]


def test_error_that_is_printed_with_status_0_is_a_warning(laravel: Laravel) -> None:
    laravel.commands["down"] = lambda: (0, "\n   ERROR  Application is already down.  \n", "")

    assert "artisan down ended with status 0, but printed an error: Application is already down." in laravel.run("down")["warnings"]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, True),
        ({"read_only": True}, False),
        ({"changed_when_output": "Done"}, True),
        ({"changed_when_output": "^Created"}, False),
    ],
)
def test_other_commands_change_something_unless_told_otherwise(laravel: Laravel, options: dict[str, Any], changed: bool) -> None:
    assert laravel.run("queue:restart", **options)["changed"] is changed


def test_known_read_only_command_need_not_be_marked(laravel: Laravel) -> None:
    assert laravel.run("about")["changed"] is False


def test_entry_overrides_the_options_beside_it() -> None:
    steps = plan_steps(
        {**OPTIONS, "read_only": True, "version_min": "9", "commands": [{"command": "a"}, {"command": "b", "read_only": False}]}
    )

    assert steps == [Step("a", read_only=True, version_min="9"), Step("b", read_only=False, version_min="9")]


def test_version_gate_skips_with_the_reason(laravel: Laravel) -> None:
    result = laravel.run("schedule:pause", version_min="13")

    reason = "Laravel 10.48.29 is older than version_min 13."
    assert result["results"] == [entry("schedule:pause", False, **NOT_RUN) | {"skipped": True, "reason": reason}]
    assert (result["changed"], laravel.ran) == (False, [])


def test_check_mode_runs_only_what_reads(laravel: Laravel) -> None:
    result = laravel.run("about", "known", "config:clear", check_mode=True)

    would_run = {**NOT_RUN, "reason": "Check mode: would run."}
    assert laravel.ran == ["list", "about"]
    assert result["results"] == [
        entry("about", False),
        entry("known", True, **would_run),
        entry("config:clear", False, **would_run),
    ]
    assert result["changed"] is True


def test_check_mode_warns_of_a_command_that_artisan_does_not_list(laravel: Laravel) -> None:
    result = laravel.run("unknown", check_mode=True)

    assert result["results"][0]["reason"] == "Check mode: would run, but artisan list does not name it."
    assert any("does not name the command unknown." in warning for warning in result["warnings"])


def test_check_mode_writes_nothing(laravel: Laravel) -> None:
    laravel.commands["config:cache"] = laravel.writes("bootstrap/cache/config.php", "<?php")

    result = laravel.run("config:cache", check_mode=True)

    assert result["diff"] == {"before": {"bootstrap/cache/config.php": "absent"}, "after": {"bootstrap/cache/config.php": "written anew"}}
    assert not (laravel.directory / "bootstrap/cache/config.php").exists()


def test_check_mode_accepts_a_release_that_is_not_there_yet(laravel: Laravel, tmp_path: Path) -> None:
    result = run_steps(Artisan(laravel, str(tmp_path / "next")), [Step("config:cache"), Step("about", read_only=True)], True)

    reason = f"Check mode: would run once {tmp_path / 'next'} exists."
    assert result["results"] == [
        entry("config:cache", True, **NOT_RUN, reason=reason),
        entry("about", False, **NOT_RUN, reason=reason),
    ]
    assert laravel.ran == []


@pytest.mark.parametrize("command", ["optimize", "optimize:clear", "reload"])
def test_optimize_subcommand_failure_detected(command: str) -> None:
    options = {**OPTIONS, "command": command}

    with pytest.raises(
        LmsError, match=rf"artisan {command} ends with status 0 even when a command inside it failed.*hidden_failures_accepted"
    ):
        plan_steps(options)
    assert plan_steps({**options, "hidden_failures_accepted": True}) == [Step(command)]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"command": "config:cache --quiet"}, "it holds one name. Put what follows the name into arguments."),
        ({"commands": []}, "Neither command nor commands names an artisan command."),
        ({"command": "x", "changed_when_output": "("}, "is not a regular expression"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LmsError) as caught:
        plan_steps({**OPTIONS, **options})

    assert complaint in caught.value.message


def test_one_command_takes_its_arguments() -> None:
    assert plan_steps({**OPTIONS, "command": "storage:link", "arguments": ["--relative"]}) == [Step("storage:link", ("--relative",))]
