# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a Laravel release: each is looked at, then taken, and says what it changed. In check mode none is taken."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.bitflow.lms.plugins.module_utils._artisan import Artisan, as_user
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_cache import commands_for, lint_caches, prove
from ansible_collections.bitflow.lms.plugins.module_utils._artisan_commands import plan_step, run_steps
from ansible_collections.bitflow.lms.plugins.module_utils._dotenv import Dotenv, compare, value_texts
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._expectation import Expectation
from ansible_collections.bitflow.lms.plugins.module_utils._files import Owner
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_instances import RUNNING, STOPPED, Drain, Instances
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_probe import Probe as FpmProbe
from ansible_collections.bitflow.lms.plugins.module_utils._fpm_probe import run_probe as ask_fpm
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import Probe as HttpProbe
from ansible_collections.bitflow.lms.plugins.module_utils._http_probe import run_probe
from ansible_collections.bitflow.lms.plugins.module_utils._opcache import Opcache, group_number, php_files, temporary_script
from ansible_collections.bitflow.lms.plugins.module_utils._release import Releases, build_from
from ansible_collections.bitflow.lms.plugins.module_utils._release_change import prune
from ansible_collections.bitflow.lms.plugins.module_utils._release_plan import Request, Tree, decide, summary

RunCommand = Callable[..., "tuple[int, str, str]"]

ENVIRONMENT_MODE = 0o640
# Where every instance sees its release, and where the script for OPcache lies.
LIVE = Path("live/release")
OPCACHE_DIRECTORY = Path("/run/lms-opcache")
COMPILED_VIEWS = "storage/framework/views"

_EXAMPLE_KEY = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a step changed, or in check mode would change."""

    changed: bool = False
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


NOTHING = Outcome()


def keys_of_example(text: str) -> set[str]:
    """Return the keys that a .env.example names; what is commented out does not count."""
    return set(_EXAMPLE_KEY.findall(text))


def missing_keys(example: set[str], environment: Mapping[str, Any], optional: Sequence[str]) -> list[str]:
    """Return the keys that the example names and the environment lacks, without those that it may lack."""
    lacking = example - {str(key) for key in environment}
    return sorted(key for key in lacking if not any(fnmatch.fnmatchcase(key, pattern) for pattern in optional))


class Deployment:
    """One release on this host, on its way from an artifact to the live one, or back."""

    def __init__(
        self,
        params: Mapping[str, Any],
        run_command: RunCommand,
        releases: Releases,
        instances: Instances,
        check_mode: bool,
        ask_web: Callable[[HttpProbe], Any] = run_probe,
        opcache_directory: Path = OPCACHE_DIRECTORY,
    ) -> None:
        self.params = params
        self.releases = releases
        self.instances = instances
        self.check_mode = check_mode
        self.ask_web = ask_web
        self.opcache_directory = opcache_directory
        self.release: str = params["release"] or ""
        self.directory = releases.directory / self.release
        self.tree = releases.read()
        # Whether this release's files changed, so that everything made from them has to be made anew.
        self.fresh = False
        self.warnings: list[str] = []
        self.drained: list[Drain] = []
        self.pruned: list[str] = []
        self.environment_keys: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
        self.artisan = Artisan(
            run_command,
            str(self.directory),
            params["php"],
            timeout=params["timeout"],
            prefix=as_user(params["owner"], params["group"]),
        )

    @property
    def live(self) -> bool:
        """Say whether the release is the live one."""
        return self.tree.current == self.release

    @property
    def there(self) -> bool:
        """Say whether the release's files are there; in check mode they need not be."""
        return self.directory.is_dir()

    # The steps

    def unpack(self) -> Outcome:
        """Unpack the artifact beside the live release."""
        # Refuses a path that is too long before anything is there.
        self.instances.socket(self.release)
        known = self.tree.find(self.release)
        if known is not None and known.state == "failed":
            raise LmsError(f"Release {self.release} is marked failed ({known.reason or 'no reason was given'}). Deploy under a new id.")
        outcome = self._bring("present")
        # Without the proof of its health an earlier run was cut off, nobody knows where.
        self.fresh = known is None or not known.verified_at
        return outcome

    def write_environment(self) -> Outcome:
        """Write .env, and hold its keys against those that the application names."""
        texts = value_texts(self.params["environment"], self.params["environment_required"], f"Release {self.release}")
        self._refuse_missing_keys(texts)
        dotenv = Dotenv(self.directory / ".env")
        owner, group = self.params["owner"], self.params["group"]
        found = dotenv.read()
        served = Dotenv(self.releases.directory / self.tree.current / ".env").read() if self.tree.current else None
        before = (found if found is not None else served) or {}
        difference = compare(before, texts)
        self.environment_keys = {"added": [*difference.added], "removed": [*difference.removed], "changed": [*difference.changed]}
        changed = found != texts or not dotenv.has(ENVIRONMENT_MODE, owner, group)
        if changed and self.live:
            raise LmsError(f"Release {self.release} is live and its environment never changes. Deploy the same version under a new id.")
        if changed and not self.check_mode:
            dotenv.write(texts, ENVIRONMENT_MODE, Owner.of(owner, group))
        self.fresh = self.fresh or changed
        after = {key: "*** (changed)" if key in difference.changed else "***" for key in texts}
        return Outcome(changed, {"environment": dict.fromkeys(sorted(before), "***")}, {"environment": after})

    def build_caches(self) -> Outcome:
        """Build Laravel's caches by single commands, and let PHP read all that came out."""
        caches = self.params["caches"]
        if self.there and not self.fresh:
            prove(self.artisan, caches, lint=False)
            return NOTHING
        steps = [*commands_for(caches, "present"), *(plan_step(entry, {}) for entry in self.params["commands"])]
        result = run_steps(self.artisan, steps, self.check_mode)
        if not self.check_mode:
            lint_caches(self.artisan, with_views=False)
        self.warnings += [] if not self.there else result["warnings"]
        return Outcome(result["changed"], {"caches": result["diff"]["before"]}, {"caches": result["diff"]["after"]})

    def start_candidate(self) -> Outcome:
        """Start the release's own PHP-FPM beside the live one, afresh when its files changed under it."""
        if self.fresh and not self.live and not self.check_mode and self.instances.state(self.release) != STOPPED:
            self.drained.append(self.instances.stop(self.release, self.params["drain_timeout"]))
        return self._start(at_boot=self.live)

    def ask_candidate(self) -> Outcome:
        """Ask the release for its health through its own socket, before anybody sees it."""
        if not self.check_mode:
            self._ask(self.params["attempts"], self.params["consecutive"])
        return NOTHING

    def warm_opcache(self) -> Outcome:
        """Compile the application's files, so that the first visitor need not wait for it."""
        if self.check_mode or not self.fresh:
            return NOTHING
        seen_at = self.releases.root / LIVE
        there = [name for name in self.params["warm_paths"] if (self.directory / name).exists()]
        files = [str(seen_at / file.relative_to(self.directory)) for file in php_files(str(self.directory / name) for name in there)]
        # Laravel's configuration cache names the compiled views by their place on the disk.
        views = [str(file) for file in php_files([str(self.directory / COMPILED_VIEWS)])] if "view" in self.params["caches"] else []
        group = group_number(self.params["shared_group"] or self.params["group"] or "0")
        with temporary_script(self.opcache_directory, group, time.time()) as script:
            opcache = Opcache(self.instances.socket(self.release), script, make_call=self.instances.make_call)
            answer = opcache.warm([*files, *views], check=False)
        if answer["unavailable"] is not None:
            self.warnings.append(f"OPcache cannot be used, so every request compiles its files: {answer['unavailable']}.")
        elif answer["not_cached"]:
            self.warnings.append(
                f"{len(answer['not_cached'])} files were not taken into OPcache, the first of them {answer['not_cached'][0]}."
            )
        return NOTHING

    def note_verified(self) -> Outcome:
        """Note that the release has proven itself."""
        return self._bring("verified")

    def start_instance(self) -> Outcome:
        """Make sure that the release's PHP-FPM runs, will run after a reboot, and answers."""
        # Refuses what may not go live before anything is started.
        self._decide("active")
        outcome = self._start(at_boot=True)
        if not self.check_mode:
            self._ask(self.params["attempts"], 1)
        return outcome

    def switch(self) -> Outcome:
        """Rename the link: code, assets and socket change together."""
        return self._bring("active")

    def ask_web_server(self) -> Outcome:
        """Ask this host's web server for the release's health."""
        # In check mode the live release answers still.
        if not self.check_mode and self.params["web_address"]:
            probe = HttpProbe(
                url=f"http://{self.params['health_host']}{self.params['health_uri']}",
                connect_to=self.params["web_address"],
                expectation=Expectation(tuple(self.params["expect_status"])),
                attempts=self.params["attempts"],
                consecutive=self.params["consecutive"],
                interval=self.params["interval"],
            )
            self.ask_web(probe)
        return NOTHING

    def stop_others(self) -> Outcome:
        """Stop the PHP-FPM of every release but the live one, each when it has answered its last requests."""
        if self.tree.current is None:
            return NOTHING
        others = [release for release, state in self.instances.known().items() if release != self.tree.current and not state.idle]
        return self._stop(others)

    def remove_old(self) -> Outcome:
        """Remove old releases, where the task says how many stay."""
        if self.params["keep"] is None:
            return NOTHING
        done = prune(self.releases, self.params["keep"], lambda: build_from(self.params), self.check_mode)
        self.tree, self.pruned = self.releases.read(), done["pruned"]
        return Outcome(done["changed"], {"releases": done["diff"]["before"]}, {"releases": done["diff"]["after"]})

    def mark_failed(self) -> Outcome:
        """Mark the release, so that nothing goes back to it."""
        return self._bring("failed")

    def stop_instance(self) -> Outcome:
        """Stop the release's PHP-FPM when it has answered its last requests."""
        return self._stop([] if self.instances.state(self.release).idle else [self.release])

    # What a failure leads to

    def give_up(self, reason: str) -> None:
        """Mark the candidate and stop its instance. The live release is never touched."""
        if self.check_mode or self.live or self.tree.state_of(self.release) in ("absent", "failed"):
            return
        self._bring("failed", reason=reason)
        self.stop_instance()

    # What the steps share

    def _request(self, state: str, reason: str) -> Request:
        """Return what is asked of the releases."""
        wanted = {**self.params, "state": state, "reason": reason or self.params["reason"]}
        return Request(**{key: wanted[key] for key in Request.__dataclass_fields__ if wanted.get(key) is not None})

    def _decide(self, state: str) -> None:
        """Refuse what the releases do not allow."""
        decide(self.tree, self._request(state, ""), self.releases.now(), foresee=self.check_mode)

    def _bring(self, state: str, reason: str = "") -> Outcome:
        """Bring the record of the release into a state."""
        request = self._request(state, reason)
        before = self.tree
        plan = decide(before, request, self.releases.now(), foresee=self.check_mode)
        self.tree = plan.after
        if plan.steps and not self.check_mode:
            build = build_from(self.params)
            with self.releases.locked(build.owner):
                # Somebody else may have been at work until now.
                before = self.releases.read()
                plan = decide(before, request, self.releases.now())
                self.tree = self.releases.carry_out(plan, build)
        return Outcome(bool(plan.steps), {"releases": summary(before, self.release)}, {"releases": summary(self.tree, self.release)})

    def _refuse_missing_keys(self, texts: Mapping[str, str]) -> None:
        """Refuse an environment that lacks keys which the application names in its example."""
        name = self.params["environment_example"]
        path = self.directory / name
        if not name or not path.is_file():
            return
        missing = missing_keys(
            keys_of_example(path.read_text(encoding="utf-8", errors="replace")), texts, self.params["environment_optional"]
        )
        if missing:
            raise LmsError(
                f"The environment lacks {', '.join(missing)}, which {name} of the application names. "
                "Set them in environment, or name those that may be missing in environment_optional.",
                missing=missing,
            )

    def _start(self, at_boot: bool) -> Outcome:
        """Start the release's instance unless it runs as it should."""
        before = self.instances.state(self.release)
        wanted = replace(RUNNING, enabled=at_boot or before.enabled)
        changed = before != wanted
        if changed and not self.check_mode:
            self.instances.start(self.release, at_boot)
        unit = self.instances.unit(self.release)
        return Outcome(changed, {"instances": {unit: str(before)}}, {"instances": {unit: str(wanted)}})

    def _ask(self, attempts: int, consecutive: int) -> None:
        """Ask the release for its health through its own socket."""
        root = self.releases.root / LIVE / "public"
        probe = FpmProbe(
            socket=self.instances.socket(self.release),
            script=str(root / "index.php"),
            document_root=str(root),
            uri=self.params["health_uri"],
            server_name=self.params["health_host"],
            https=True,
            expectation=Expectation(tuple(self.params["expect_status"])),
            attempts=attempts,
            consecutive=consecutive,
            interval=self.params["interval"],
        )
        ask_fpm(probe, self.instances.make_call)

    def _stop(self, releases: Sequence[str]) -> Outcome:
        """Stop instances, each when it is at rest."""
        before = {self.instances.unit(release): str(self.instances.state(release)) for release in releases}
        for release in releases if not self.check_mode else ():
            drained = self.instances.stop(release, self.params["drain_timeout"])
            self.drained.append(drained)
            if not drained.complete:
                self.warnings.append(
                    f"The instance of release {release} was not at rest after {self.params['drain_timeout']} seconds: "
                    "what still ran in it was told to end."
                )
        return Outcome(bool(releases), {"instances": before}, {"instances": dict.fromkeys(before, str(STOPPED))})


Step = Callable[[Deployment], Outcome]

# What a state consists of, in its order. The names are what a report and an error show.
STEPS: dict[str, tuple[tuple[str, Step], ...]] = {
    "prepared": (
        ("unpack the artifact", Deployment.unpack),
        ("write the environment", Deployment.write_environment),
        ("build the caches", Deployment.build_caches),
        ("start the candidate", Deployment.start_candidate),
        ("ask the candidate for its health", Deployment.ask_candidate),
        ("fill OPcache", Deployment.warm_opcache),
        ("note that it is verified", Deployment.note_verified),
    ),
    "active": (
        ("start the instance", Deployment.start_instance),
        ("switch the link", Deployment.switch),
        ("ask the web server for its health", Deployment.ask_web_server),
    ),
    "settled": (
        ("stop the other instances", Deployment.stop_others),
        ("remove old releases", Deployment.remove_old),
    ),
    "failed": (
        ("mark the release", Deployment.mark_failed),
        ("stop its instance", Deployment.stop_instance),
    ),
}


@dataclass
class Report:
    """What the steps came to so far."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, seconds: float, outcome: Outcome) -> None:
        """Note a step; of a thing that several steps change, the first state and the last one are shown."""
        self.steps.append({"name": name, "seconds": round(seconds, 2), "changed": outcome.changed})
        for thing, state in outcome.before.items():
            self.before[thing] = {**state, **self.before.get(thing, {})}
        for thing, state in outcome.after.items():
            self.after[thing] = {**self.after.get(thing, {}), **state}


def run(deployment: Deployment, state: str, clock: Callable[[], float] = time.monotonic) -> dict[str, Any]:
    """Take the steps of a state and return the module's result. The first failure ends them; a candidate is then given up."""
    report = Report()
    for name, step in STEPS[state]:
        started = clock()
        try:
            outcome = step(deployment)
        except (LmsError, OSError) as error:
            report.add(name, clock() - started, NOTHING)
            raise failure(deployment, state, name, error, report) from error
        report.add(name, clock() - started, outcome)
    return result(deployment, report)


def failure(deployment: Deployment, state: str, step: str, error: LmsError | OSError, report: Report) -> LmsError:
    """Return the error that names the step and its reason, after the candidate was given up."""
    said = error.message if isinstance(error, LmsError) else f"{error}."
    message = f"Could not {step}: {said}"
    details = dict(error.details) if isinstance(error, LmsError) else {}
    if state == "prepared":
        try:
            deployment.give_up(message)
        except (LmsError, OSError) as second:
            message += f" Besides, the candidate could not be given up: {second}"
    return LmsError(message, **{**details, **result(deployment, report), "failed_step": step})


def result(deployment: Deployment, report: Report) -> dict[str, Any]:
    """Return the module's result."""
    tree: Tree = deployment.tree
    release = deployment.release
    return {
        "changed": any(step["changed"] for step in report.steps),
        "root": str(deployment.releases.root),
        "release": release or None,
        "release_path": str(deployment.directory) if release else None,
        "state": tree.state_of(release) if release else None,
        "current": tree.current,
        "previous": tree.previous,
        "steps": report.steps,
        "drained": [drain.as_result() for drain in deployment.drained],
        "pruned": deployment.pruned,
        "environment_keys": deployment.environment_keys,
        "diff": {"before": report.before, "after": report.after},
        "warnings": deployment.warnings,
    }
