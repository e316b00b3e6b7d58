# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release consists of and to whom it belongs. The argument specification is release_files_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment release_files."""

    DOCUMENTATION = r"""
options:
  artifact_sha256:
    description:
      - The SHA-256 of the artifact.
    type: str
  fingerprint:
    description:
      - A sum over everything that makes this release what it is, for example over the artifact and the environment.
        M(bitflow.lms.release_info) returns it, so that a deploy can tell that nothing changed.
    type: str
  metadata:
    description:
      - What else is known about the release. C(commit) is also written to the file C(REVISION) in the release.
    type: dict
  owner:
    description:
      - The user who owns the release's files. M(bitflow.lms.laravel_release) runs artisan as this user.
    type: str
  group:
    description:
      - The group of the release's files. The user who runs the application belongs to it.
    type: str
  shared_directories:
    description:
      - Directories that all releases share, relative to the release. Each is created in C(shared/) and linked into the release.
      - Never C(storage/framework/views) of Laravel, which artisan empties.
    type: list
    elements: str
    default: []
  shared_owner:
    description:
      - The owner of the shared directories.
    type: str
  shared_group:
    description:
      - The group of the shared and of the writable directories.
    type: str
  shared_mode:
    description:
      - The mode of the shared directories.
    type: str
    default: "2770"
  writable_directories:
    description:
      - Directories of the release in which the shared group may write. They are created where missing and get the mode C(2770).
    type: list
    elements: str
    default: []
"""
