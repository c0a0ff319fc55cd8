"""Whether two processes of this machine find each other, as those of a run on several devices do."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from sdfast.doctor.finding import Finding, broken, ok
from sdfast.doctor.sandbox import Sandbox

CHECK = "two processes"
_NETWORK = "see that GLOO_SOCKET_IFNAME, if it is set, names an interface of `ip addr`, and that no firewall is between"


def check_meeting(seconds: float) -> Iterator[Finding]:
    """Two processes add up their numbers over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [Sandbox("meets", str(port), str(rank), "2") for rank in range(2)]
    outcomes = [each.outcome(seconds) for each in both]
    for outcome in outcomes:
        if outcome.ended is not None:
            where = "as they meet" if "met" not in outcome.last else "as they add up"
            yield broken(CHECK, f"one {outcome.ended} ({where})", f"{_NETWORK}.")
            return
    if not all(outcome.last.get("right") for outcome in outcomes):
        yield broken(CHECK, "they meet, and their sum over gloo is wrong", "install torch again.")
        return
    yield ok(CHECK, "they meet over gloo, and add up right")
