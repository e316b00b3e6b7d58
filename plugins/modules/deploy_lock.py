#!/usr/bin/python
# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: deploy_lock
short_description: Keep two deployments of one host apart
version_added: "1.0.0"
author:
  - Bitflow LMS contributors (@bitflow-lms)
description:
  - Takes, renews or gives up the lease of what is deployed below O(path). One owner holds it at a time, for a limited time.
  - Looking, deciding and writing are one act, so of any number of contenders exactly one wins.
  - A lease outlives a controller that was killed, and expires by the clock of this host. As long as the host is not restarted, setting the
    clock changes nothing. No other clock counts.
  - An expired lease is taken over only if nobody is at work for its owner. The modules that are told about the lease (option C(lease), see
    M(bitflow.lms.release)) hold a lock of the kernel while they act, which ends with their process. They refuse to act for an owner who
    has lost the lease.
  - If the run that holds the lease was started on the same control host and is dead, for example killed, the lease is taken from it at
    once, as soon as nobody is at work for it. Nobody has to wait or to unlock anything.
  - A lease file that cannot be understood is an error, never a free lease.
options:
  path:
    description:
      - The directory that holds what is deployed. The lease is C(.deploy/lease.json) in it.
    type: path
    required: true
  state:
    description:
      - V(held) takes the lease, or renews it if O(owner) holds it, which is no change. It fails if somebody else holds it.
      - V(released) gives the lease up. A lease that somebody else holds is left alone, which is no failure.
      - V(status) only looks.
    type: str
    choices: [held, released, status]
    default: held
  owner:
    description:
      - Who takes or gives up the lease. Each deployment needs a name of its own, the same on all hosts.
      - Required unless O(state=status).
    type: str
  ttl:
    description:
      - Seconds until the lease expires, unless it is renewed; a week at most.
      - Choose more than the longest pause between two steps on this host.
    type: int
    default: 1800
  wait:
    description:
      - Seconds to wait for a lease that somebody else holds, or, with O(state=released), for a process that is still at work.
    type: float
    default: 0
  steal:
    description:
      - From whom the lease may be taken. V(never) from nobody. V(expired) from an owner whose time is over. V(force) also from one whose
        time is not over, and in place of a lease that cannot be understood.
      - None of them takes it while a process is at work for its owner. The message names the process; end it first.
    type: str
    choices: [never, expired, force]
    default: expired
  details:
    description:
      - What the others are told about the holder.
    type: dict
    default: {}
    suboptions:
      what:
        description:
          - What is done, such as C(the deployment of v1.4.0).
        type: str
      release:
        description:
          - The id of the release.
        type: str
      controller:
        description:
          - The name of the control host. Found out when it is left out.
        type: str
      user:
        description:
          - Who started it there. Found out when it is left out.
        type: str
      process:
        description:
          - What tells this run of Ansible from all others. Found out when it is left out.
        type: str
  dead_owner:
    description:
      - An owner who is known to be dead, and from whom the lease may be taken before its time is over. Normally set by the control host.
    type: str
  act_as:
    description:
      - The user, beside root, whose tasks act under the lease, such as the one that runs artisan. The lease's directory becomes theirs.
      - Left out, a new directory belongs to the owner of O(path).
    type: str
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details:
      - Whoever would block is reported in RV(blocked) and by a warning, and is no failure, so that a plan can be made during a deployment.
  diff_mode:
    support: full
  platform:
    platforms: linux
seealso:
  - module: bitflow.lms.release
"""

EXAMPLES = r"""
- name: Let nobody else deploy
  bitflow.lms.deploy_lock:
    path: /srv/lms
    owner: 20261123210000-abc1234-5f0c2a91
    act_as: lms-deploy
    details:
      what: the deployment of v1.4.0
      release: 20261123210000-abc1234

- name: Unpack the release, if the lease is still ours
  bitflow.lms.release:
    path: /srv/lms/backend
    release: 20261123210000-abc1234
    artifact: /srv/lms/artifacts/backend-0123456789abcdef.tar.gz
    artifact_sha256: "{{ artifact.sha256 }}"
    lease:
      path: /srv/lms
      owner: 20261123210000-abc1234-5f0c2a91

- name: Let others deploy
  bitflow.lms.deploy_lock:
    path: /srv/lms
    owner: 20261123210000-abc1234-5f0c2a91
    state: released

- name: Look who deploys
  bitflow.lms.deploy_lock:
    path: /srv/lms
    state: status
  register: lock

- name: Take the lease from a deployment that is dead for sure
  bitflow.lms.deploy_lock:
    path: /srv/lms
    owner: 20261123213000-abc1234-77e0b1d4
    steal: force
"""

RETURN = r"""
lease_file:
  description: The file of the lease.
  returned: always
  type: str
  sample: /srv/lms/.deploy/lease.json
held:
  description: Whether O(owner) holds the lease after the task.
  returned: always
  type: bool
  sample: true
holder:
  description: Who holds the lease after the task, or null. On failure who keeps it.
  returned: always
  type: dict
  contains:
    owner:
      description: The name of the owner.
      returned: always
      type: str
      sample: 20261123210000-abc1234-5f0c2a91
    what:
      description: What the owner does, empty if unknown.
      returned: always
      type: str
      sample: the deployment of v1.4.0
    release:
      description: The id of the release, empty if unknown.
      returned: always
      type: str
      sample: 20261123210000-abc1234
    controller:
      description: The name of the control host, empty if unknown.
      returned: always
      type: str
      sample: control.example.com
    user:
      description: Who started it there, empty if unknown.
      returned: always
      type: str
      sample: anna
    process:
      description: What tells its run of Ansible from all others, empty if unknown.
      returned: always
      type: str
      sample: 4d6a1c8e-0f0b-4b8e-9d55-0c1a2b3c4d5e pid:[4026531836] 4711 123456
    since:
      description: When the owner took the lease.
      returned: always
      type: str
      sample: "2026-11-23T21:00:04Z"
    renewed_at:
      description: When it was renewed last.
      returned: always
      type: str
      sample: "2026-11-23T21:01:40Z"
    expires_at:
      description: When it expires.
      returned: always
      type: str
      sample: "2026-11-23T21:31:40Z"
    expires_in:
      description: The seconds until then, negative afterwards.
      returned: always
      type: int
      sample: 1800
    expired:
      description: Whether its time is over.
      returned: always
      type: bool
      sample: false
    at_work:
      description: Whether a process acts under the lease. Only root and the owner of the lease's directory can tell.
      returned: always
      type: bool
      sample: false
    processes:
      description: The processes that act, as far as the user may see them.
      returned: always
      type: list
      elements: dict
      sample: [{pid: 4711, name: php}]
taken_from:
  description: The holder from whom the lease was taken over, with the same keys as RV(holder), or null.
  returned: always
  type: dict
  sample: null
blocked:
  description: In check mode why the lease would not be taken, else empty.
  returned: always
  type: str
  sample: ""
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.bitflow.lms.plugins.module_utils._errors import LmsError
from ansible_collections.bitflow.lms.plugins.module_utils._lease import (
    DETAILS,
    LONGEST_TTL,
    Claim,
    Lease,
    Lessor,
    Sight,
    broken_message,
    describe,
    portrait,
    refusal,
)

SHOWN = ("owner", "what", "release", "controller", "user")


def run(lessor: Lessor, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the lease into the state that is asked for, and return the module's result."""
    if params["state"] != "status" and not params["owner"].strip():
        raise LmsError("owner is empty; give each deployment a name of its own.")
    if params["state"] == "held":
        return _hold(lessor, params, check_mode)
    if params["state"] == "released":
        return _give_up(lessor, params, check_mode)
    sight = lessor.look()
    if sight.broken:
        raise LmsError(broken_message(lessor.path, sight.broken))
    return _result(lessor, sight, sight.lease, params["owner"])


def _hold(lessor: Lessor, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Take or renew the lease."""
    if not 1 <= params["ttl"] <= LONGEST_TTL:
        raise LmsError(f"ttl is {params['ttl']}; it must be 1 to {LONGEST_TTL} seconds.")
    claim = Claim(params["owner"], params["ttl"], params["steal"], params["dead_owner"] or "", params["details"])
    if check_mode:
        sight = lessor.look()
        blocked = refusal(sight, claim, lessor.path)
        own = sight.lease is not None and sight.lease.owner == claim.owner
        return _result(lessor, sight, sight.lease if blocked or own else claim.lease(sight.moment), claim.owner, blocked)
    sight, lease = lessor.hold(claim, params["wait"], params["act_as"])
    return _result(lessor, sight, lease, claim.owner)


def _give_up(lessor: Lessor, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Give the lease up."""
    if not check_mode:
        sight, removed = lessor.give_up(params["owner"], params["wait"])
        return _result(lessor, sight, None if removed else sight.lease, params["owner"])
    sight = lessor.look()
    if sight.broken:
        raise LmsError(broken_message(lessor.path, sight.broken))
    own = sight.lease is not None and sight.lease.owner == params["owner"]
    return _result(lessor, sight, None if own else sight.lease, params["owner"])


def _result(lessor: Lessor, sight: Sight, after: Lease | None, owner: str | None, blocked: str = "") -> dict[str, Any]:
    """Return the module's result; that a lease was renewed is no change."""
    before = sight.lease
    taken = before is not None and after is not None and before.owner != after.owner
    warnings = []
    if blocked:
        warnings.append(blocked)
    elif taken and before is not None:
        warnings.append(f"The lease was taken from another owner: {lessor.path} was held by {portrait(before, sight.moment)}.")
    elif sight.broken:
        warnings.append(f"The lease {lessor.file} could not be read and was replaced: {sight.broken}.")
    return {
        "changed": _shown(before) != _shown(after),
        "lease_file": str(lessor.file),
        "held": after is not None and after.owner == owner,
        "holder": describe(Sight(sight.moment, after, busy=sight.busy, workers=sight.workers)),
        "taken_from": describe(sight) if taken else None,
        "blocked": blocked,
        "warnings": warnings,
        "diff": {
            "before_header": str(lessor.file),
            "after_header": str(lessor.file),
            "before": _shown(before),
            "after": _shown(after),
        },
    }


def _shown(lease: Lease | None) -> dict[str, str]:
    """Return what the diff shows of a lease."""
    return {} if lease is None else {key: getattr(lease, key) for key in SHOWN}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["held", "released", "status"], "default": "held"},
            "owner": {"type": "str"},
            "ttl": {"type": "int", "default": 1800},
            "wait": {"type": "float", "default": 0},
            "steal": {"type": "str", "choices": ["never", "expired", "force"], "default": "expired"},
            "details": {
                "type": "dict",
                "default": {},
                "options": {key: {"type": "str"} for key in DETAILS},
            },
            "dead_owner": {"type": "str"},
            "act_as": {"type": "str"},
        },
        required_if=[("state", "held", ["owner"]), ("state", "released", ["owner"])],
        supports_check_mode=True,
    )
    try:
        result = run(Lessor(Path(module.params["path"])), module.params, module.check_mode)
    except LmsError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
