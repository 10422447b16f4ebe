"""How often a failure is tried again, how long is waited between, and what the user is told of it."""

from __future__ import annotations

import time

from gemma_export.errors import HubUnreachableError
from gemma_export.progress import Progress

__all__ = ["Backoff", "PassingError"]

# seconds before each further attempt; bytes that arrive start the count anew
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
# seconds that a server may ask for on top of that (Retry-After), over all attempts of one question or file
_LONGEST_WAIT = 60.0


class PassingError(Exception):
    """A failure that another attempt may not meet.

    Args:
        reason: what happened, in words.
        connected: False when no connection came about at all.
        wait: seconds that the server asked for.
    """

    def __init__(self, reason: str, *, connected: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.connected = connected
        self.wait = wait


class Backoff:
    """Counts failures in a row and waits between attempts.

    Args:
        host: who fails, for messages.
        progress: told of every further attempt.
        quick: give up early when there is no connection at all, for a cached copy may do.
    """

    def __init__(self, host: str, progress: Progress, *, quick: bool = False) -> None:
        self._host = host
        self._progress = progress
        self._quick = quick
        self._failures = 0
        # bytes that arrive do not renew it: a server could ask for a minute after each
        self._patience = _LONGEST_WAIT

    def reset(self) -> None:
        """Something arrived."""
        self._failures = 0

    def wait(self, failure: PassingError) -> None:
        """Sleeps before the next attempt.

        Raises:
            HubUnreachableError: it was the last one.
        """
        most = 1 if self._quick and not failure.connected else len(WAITS)
        if self._failures >= most:
            times = f" {self._failures + 1} times in a row" if self._failures > 1 else ""
            raise HubUnreachableError(
                f"{self._host} could not be reached or broke off{times}: {failure.reason}",
                hint="Check the connection (HTTPS_PROXY, SSL_CERT_FILE), then run the same command again: it resumes.",
            )
        asked = min(failure.wait, self._patience)
        self._patience -= asked
        seconds = max(WAITS[self._failures], asked)
        self._failures += 1
        self._progress.tell(
            f"waiting for {self._host} (attempt {self._failures + 1} of {most + 1}"
            f"{f' in {seconds:.0f} s' if seconds >= 1 else ''}): {failure.reason}"
        )
        time.sleep(seconds)
