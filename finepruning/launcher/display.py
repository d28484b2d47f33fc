"""How a sweep stands: a live table on a terminal, a line a job elsewhere."""

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finepruning.launcher.plan import Job, Outcome

log = logging.getLogger(__name__)
LAST_DONE, LAST_FAILED = 5, 10  # rows, so that a sweep of hundreds fits a screen


class Display:
    """Show a sweep while it runs.

    Args:
        total: Runs of the sweep.
        earlier: Of these, how many were done before.
        console: Where to; what is no terminal gets log lines.
    """

    def __init__(self, total: int, earlier: int, console: Console) -> None:
        self.total, self.earlier = total, earlier
        self.start = time.perf_counter()
        self.running: dict[Job, float] = {}
        self.outcomes: list[Outcome] = []
        self.live = (
            Live(console=console, get_renderable=self._board, refresh_per_second=1)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def started(self, job: Job) -> None:
        """Show a job as running."""
        self.running[job] = time.perf_counter()

    def ended(self, outcome: Outcome) -> None:
        """Show how a job ended."""
        self.running.pop(outcome.job, None)
        self.outcomes.append(outcome)
        if not self.live:
            log.info("[%d/%d] %s", self.earlier + len(self.outcomes), self.total, line(outcome))

    def _board(self) -> RenderableType:
        now = time.perf_counter()
        running = {job: now - start for job, start in list(self.running.items())}
        return board(self.total, self.earlier, running, list(self.outcomes), now - self.start)


def line(outcome: Outcome) -> str:
    """Return how a job ended, in one line."""
    clean, attack = (f"{100 * score:.1f} %" if score is not None else "" for score in outcome.scores)
    parts = [
        f"{'failed' if outcome.error else 'done'} {outcome.job.overrides}",
        f"{outcome.seconds:.0f} s",
        f"clean {clean}" if clean else "",
        f"attack {attack}" if attack else "",
    ]
    return ", ".join(part for part in parts if part)


def board(
    total: int, earlier: int, running: Mapping[Job, float], outcomes: Sequence[Outcome], elapsed: float
) -> RenderableType:
    """Return the table: counts, the running jobs, the last ones done, and the failed ones.

    Args:
        total: Runs of the sweep.
        earlier: Of these, how many were done before.
        running: Seconds that each running job has taken.
        outcomes: How the others ended, in order.
        elapsed: Seconds since the start.
    """
    done = [outcome for outcome in outcomes if not outcome.error]
    failed = [outcome for outcome in outcomes if outcome.error]
    waiting = total - earlier - len(outcomes) - len(running)
    counts = (
        f"{earlier + len(done)} of {total} runs done, {len(running)} running, {waiting} waiting, "
        f"{len(failed)} failed, {_clock(elapsed)}"
    )
    table = Table()
    for column in ("", "run", "time", "clean accuracy", "attack success"):
        table.add_column(column, justify="left" if column in ("", "run") else "right")
    for job, seconds in running.items():
        table.add_row("running", Text(job.overrides), _clock(seconds))
    for outcome in done[-LAST_DONE:]:
        scores = (f"{100 * score:.1f}" if score is not None else "-" for score in outcome.scores)
        table.add_row("done", Text(outcome.job.overrides), _clock(outcome.seconds), *scores)
    for outcome in failed[-LAST_FAILED:]:
        reason = Text(f"{outcome.job.overrides}\n{str(outcome.error).splitlines()[0]}")
        table.add_row(Text("failed", style="red"), reason, _clock(outcome.seconds))
    return Group(Text(counts), table)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
