"""How far a long step has come: a bar with the time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import NoReturn, Protocol

from tqdm import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Progress(Protocol):
    """What a long step tells while it runs; one step at a time."""

    def start(self, total: int, description: str) -> None:
        """A step of `total` units begins; the step before it ends."""
        ...

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def finish(self) -> None:
        """The last step has ended, well or not."""
        ...


class TerminalProgress:
    """A bar with the time left."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def start(self, total: int, description: str) -> None:
        """Open the bar of a new step."""
        self.finish()
        self._bar = tqdm(total=total, desc=description, file=sys.stderr, leave=False, dynamic_ncols=True)

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(n)

    def note(self, text: str) -> None:
        """Log `text`; the app keeps log lines and bar apart."""
        log.info(text)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LogProgress:
    """A line when a step ends, and every `SECONDS_BETWEEN_LINES` with the time left while it lasts."""

    def __init__(self) -> None:
        self._description = ""
        self._total = self._done = 0
        self._began = self._spoke = 0.0

    def start(self, total: int, description: str) -> None:
        """Begin to measure a new step."""
        self.finish()
        self._description, self._total, self._done = description, total, 0
        self._began = self._spoke = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count, and speak if it is time."""
        self._done += n
        now = time.monotonic()
        if self._done < self._total and now - self._spoke >= SECONDS_BETWEEN_LINES:
            left = (now - self._began) * (self._total - self._done) / max(self._done, 1)
            log.info("%s: %d of %d, about %.0f s left", self._description, self._done, self._total, left)
            self._spoke = now

    def note(self, text: str) -> None:
        """Log `text`."""
        log.info(text)

    def finish(self) -> None:
        """Say how long the step took."""
        if self._description:
            log.info("%s: %.1f s", self._description, time.monotonic() - self._began)
            self._description = ""


def make_progress(*, alone: bool) -> Progress:
    """A bar if standard error is a terminal and no other job writes to it (`alone`), else log lines."""
    return TerminalProgress() if alone and sys.stderr.isatty() else LogProgress()
