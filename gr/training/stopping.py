"""What tells a run to stop: SIGTERM and SIGINT (Ctrl-C)."""

import os
import signal
import threading
from types import FrameType


class TrainingInterrupted(SystemExit):
    """A run was told to stop and has saved its state; uncaught, it prints its message and exits with status 1."""


class StopSignals:
    """Notes the first SIGTERM or SIGINT in `received`; a second one has its usual effect.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self._before[number])
        # Not with print, which is not re-entrant.
        os.write(2, f"\n{self.received}: stopping after this step\n".encode())
