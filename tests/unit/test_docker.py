"""The quick way into test hosts: whatever it does not know is the engine's, word for word."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

QUICK = Path(__file__).parents[2] / "molecule/shared/bin/docker"


@pytest.mark.parametrize(
    "words",
    [
        ["ps", "--format", "{{.Names}} $x"],
        ["exec", "-it", "no-such-host", "sh"],
        ["exec", "-u", "nobody", "no-such-host", "id"],
        ["exec", "-w", "/", "no-such-host", "sh", "-c", "echo 'a b' \"$1\""],
        # There is no such container that it could enter by itself.
        ["exec", "-i", "-e", "A=b c", "no-such-host", "sh", "-c", "echo 'a b' \"$1\""],
        ["exec", "no-such-host"],
    ],
)
def test_what_it_does_not_know_is_passed_on_as_it_was(tmp_path, words):
    engine = tmp_path / "docker"
    engine.write_text('#!/bin/sh\n[ "$1" != inspect ] || exit 1\nprintf "%s\\n" "$@"\nexit 7\n')
    engine.chmod(0o755)

    asked = subprocess.run(
        [QUICK, *words], env={"PATH": f"{QUICK.parent}:{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )

    assert (asked.stdout.splitlines(), asked.returncode) == (words, 7)
