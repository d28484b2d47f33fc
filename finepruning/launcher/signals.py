"""Signals and the ends of processes, all in one place."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stop_signals() -> Iterator[Connection]:
    """Give a connection that brings the number of each SIGINT, SIGTERM or SIGHUP, in place of their effect.

    So nothing is interrupted half-way, and whoever waits for jobs waits for signals, too. One that is
    ignored, as with ``nohup``, stays so.
    """
    came, come = multiprocessing.Pipe(duplex=False)
    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: come.send(number)) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        came.close()
        come.close()


def lead_group() -> None:
    """Make this process the leader of a group that ends with its parent, however that ends.

    The group takes in what the process starts, such as the other ranks of a training on several devices. A
    Ctrl-C at the terminal reaches the parent alone, which then decides.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that it is forked from ignores it
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is called in a child

    def follow() -> None:
        parent.join()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


def end_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to a group; to its leader alone if it has not become one yet."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, number)


def end_rest(leader: int) -> None:
    """Kill what a leader that has ended left of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
