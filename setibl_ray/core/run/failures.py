"""What to do about a failed attempt at a fold: a decision, based on the failure and on earlier attempts.

| cause         | decision                                                                     |
|---------------|------------------------------------------------------------------------------|
| worker-died   | retry, from the last finished step                                           |
| node-died     | retry on another node, from the last finished step                           |
| host-memory   | retry elsewhere, from the last finished step                                 |
| tpu-busy      | retry: the next attempt removes a lock file of a dead process                |
| time-limit    | retry elsewhere, from the last finished step: a hung read or device          |
| storage       | retry elsewhere: the storage or the node's connection to it may be back      |
| device-memory | give up: the same batch would not fit the next time                          |
| config, data  | give up: nothing changes by trying again                                     |
| code          | give up: an exception in a model or dataset is deterministic                 |
| no-node       | give up: the nodes that could run the fold are gone and no others appeared   |

`--max-retries` caps the retries of a fold that finishes no step in between, so a fold that is preempted every hour
finishes, and one that dies at once is not retried forever. They are counted here, as Ray would retry some without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from setibl_ray.core.jobs import Cause, Failed

Action = Literal["retry", "retry-elsewhere", "give-up"]

ACTIONS: dict[Cause, Action] = {
    "worker-died": "retry",
    "node-died": "retry",
    "host-memory": "retry-elsewhere",
    "tpu-busy": "retry",
    "time-limit": "retry-elsewhere",
    "storage": "retry-elsewhere",
    "device-memory": "give-up",
    "config": "give-up",
    "data": "give-up",
    "code": "give-up",
    "no-node": "give-up",
}


@dataclass(frozen=True)
class Decision:
    action: Action
    reason: str


def decide(failure: Failed, earlier: Sequence[Failed], max_retries: int) -> Decision:
    """What to do about `failure`, given the `earlier` failures of the fold since it last finished a step."""
    action = ACTIONS[failure.cause]
    if action == "give-up":
        return Decision(action, f"{failure.cause}: trying again would fail in the same way")
    if len(earlier) >= max_retries:
        return Decision(
            "give-up", f"{failure.cause}, and all {max_retries} retries since the last step are used"
        )
    return Decision(action, f"{failure.cause}: retry {len(earlier) + 1} of {max_retries}")
