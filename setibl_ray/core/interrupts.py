"""Turns Ctrl-C, SIGTERM and a closing terminal into one exception; a second signal ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """Until `as_keyboard_interrupt`, SIGINT and SIGTERM end the process with exit code 130 and without a traceback.

    For a command that is still importing what it needs: there is nothing to keep or to clear up.
    """
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, lambda *_: os._exit(130))


@contextmanager
def as_keyboard_interrupt() -> Iterator[None]:
    """Within the block the first of these signals raises KeyboardInterrupt and the second ends the process at once.

    SIGHUP stays ignored if it was before (nohup); otherwise output after it is discarded, as its terminal is gone.
    Ending at once loses nothing: files in the run folder are complete, the kernel releases the lock, and Ray's
    processes on this machine end with their driver.
    """
    # Python only handles signals in the main thread.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = False
    terminals = [number for number in (1, 2) if os.isatty(number)]  # asked now: later it may be gone

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            os.write(
                sys.__stderr__.fileno() if sys.__stderr__ else 2, b"interrupted again: leaving at once\n"
            )
            os._exit(130)
        heard = True
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (number == signal.SIGHUP and ignored)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
