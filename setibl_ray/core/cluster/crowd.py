"""Jobs that wait for resources in use by others: Ray lets them wait without a message, however long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ray._private import state

from setibl_ray.core.cluster.placement import Node, Request, cluster_nodes
from setibl_ray.core.errors import RunStoppedError

# Ray counts a job's resources as in use before its process has started, which takes this long on a busy node.
PATIENCE_S = 20.0


def free_nodes() -> list[Node]:
    """The live nodes, with only those of their resources that are free now."""
    free = state.available_resources_per_node()
    return [replace(node, resources=free.get(node.node_id, {})) for node in cluster_nodes()]


class Crowd:
    """Says once that this run waits for resources in use by others, and gives up after a limit if there is one.

    Args:
      request: what a job takes from a node that can hold it.
      say: takes the line.
      give_up_s: how long to wait; None for as long as it takes.
      look: the nodes with what is free on them.
      clock: seconds.
    """

    def __init__(
        self,
        request: Request,
        say: Callable[[str], None],
        give_up_s: float | None = None,
        *,
        look: Callable[[], Sequence[Node]] = free_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._say = say
        self._give_up_s = give_up_s
        self._look = look
        self._clock = clock
        self._since: float | None = None
        self._has_said = False

    def state(self, n_waiting: int, n_running: int) -> str:
        """What to show while jobs wait for others; "" if they do not wait for others. Called every few seconds.

        Args:
          n_waiting: jobs that have been submitted and have no place yet.
          n_running: jobs of this run that have one.

        Raises:
          RunStoppedError: others have held everything for longer than `give_up_s`.
        """
        if not n_waiting or n_running or any(self._request.slots(node) for node in self._look()):
            self._since = None
            return ""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since < PATIENCE_S:
            return ""
        wanted = " and ".join(
            f"{count} {name}{'s' * (count > 1)}"
            for name, count in (
                ("CPU", self._request.cpus),
                ("GPU", self._request.gpus),
                ("TPU chip", self._request.tpu_chips),
            )
            if count
        )
        if self._give_up_s is not None and now - self._since >= self._give_up_s:
            raise RunStoppedError(
                f"waited {self._give_up_s:g} s for {wanted} on one node, in use by others. Try again when they are "
                "done, or ask for fewer with --cpus-per-fold."
            )
        text = f"waiting for {wanted} in use by others"
        if not self._has_said:
            self._has_said = True
            self._say(f"{text} (Ctrl-C gives up; what is finished is kept)")
        return text
