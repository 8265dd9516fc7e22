"""What to do about a fold attempt that failed: a decision, from the failure and from what was tried already.

| cause         | decision                                                                     |
|---------------|------------------------------------------------------------------------------|
| worker-died   | retry, from the last finished epoch                                          |
| node-died     | retry on a node that lives, from the last finished epoch                     |
| host-memory   | retry elsewhere, from the last finished epoch                                |
| tpu-busy      | retry: the next attempt clears a lock file whose owner is gone               |
| device-memory | give up: the same batch would not fit the next time                          |
| config, data  | give up: nothing changes by trying again                                     |
| code          | give up: an exception in a model or dataset is deterministic                 |

Retries are capped by `--max-retries` for each fold and counted here: Ray would retry some of these without end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from setibl_ray.contract import Cause, Failed

Action = Literal["retry", "retry-elsewhere", "give-up"]

ACTIONS: dict[Cause, Action] = {
    "worker-died": "retry",
    "node-died": "retry",
    "host-memory": "retry-elsewhere",
    "tpu-busy": "retry",
    "device-memory": "give-up",
    "config": "give-up",
    "data": "give-up",
    "code": "give-up",
}


@dataclass(frozen=True)
class Decision:
    action: Action
    reason: str


def decide(failure: Failed, earlier: Sequence[Failed], max_retries: int) -> Decision:
    """What to do about `failure`, the fold having failed `earlier` in this run."""
    action = ACTIONS[failure.cause]
    if action == "give-up":
        return Decision(action, f"{failure.cause}: trying again would fail in the same way")
    if len(earlier) >= max_retries:
        return Decision("give-up", f"{failure.cause}, and all {max_retries} retries are used")
    return Decision(action, f"{failure.cause}: retry {len(earlier) + 1} of {max_retries}")
