"""Waiting for what other processes do, in tests: as short as it takes, and not for ever."""

import time

DEADLINE_S = 120


def wait_for(condition, deadline_s=DEADLINE_S):
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
