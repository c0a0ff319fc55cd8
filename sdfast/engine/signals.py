"""Stop at a step boundary on SIGINT or SIGTERM; a second signal ends the process at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from sdfast.log import log

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set by the handler, read by the loop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None


@contextlib.contextmanager
def stop_on_signal(patient: bool = False) -> Iterator[StopRequest]:
    """Catch the first signal inside the block; outside the main thread (a notebook's worker) nothing is caught.

    Args:
        patient: also catch those that follow: a launcher sends its own after that of the terminal, and ends what does
            not stop in its time.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal_number is None:
            request.signal_number = number
            once_more = "" if patient else " (once more to stop at once)"
            log.warning("%s: saving after this step%s", signal.Signals(number).name, once_more)
        if not patient:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
