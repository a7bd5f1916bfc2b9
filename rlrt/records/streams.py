"""What a process says, with secrets masked: its standard streams, and its log file."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any, TextIO, cast

from rlrt.records.secrets import masked, remember

LONGEST = 65_536
"""Characters of an unfinished line that are held back until its end, so that no secret is cut in two."""


class MaskedStream:
    """A text stream that masks secrets line by line; all that it does not do itself, the stream below it does.

    A line is written when it ends, or when somebody flushes. So ``print``, tracebacks, warnings, errors of threads and
    everything that a library prints pass through one function.
    """

    def __init__(self, stream: TextIO) -> None:
        self.below = stream
        self._rest, self._lock = "", threading.RLock()

    def write(self, text: str) -> int:
        """Write a text; its last line waits for its end."""
        with self._lock:
            self._rest += text
            end = max(self._rest.rfind("\n"), self._rest.rfind("\r")) + 1
            if len(self._rest) > LONGEST:
                end = len(self._rest)
            if end:
                ended, self._rest = self._rest[:end], self._rest[end:]
                self.below.write(masked(ended))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write also a line that has not ended."""
        with self._lock:
            rest, self._rest = self._rest, ""
            if rest:
                self.below.write(masked(rest))
            self.below.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def mask_streams() -> None:
    """Mask secrets in all that this process prints from now on; the secrets on its command line become known.

    Every command begins with this, and so does the process of a job.
    """
    remember(sys.argv[1:])
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, MaskedStream):
            setattr(sys, name, cast(TextIO, MaskedStream(stream)))


class LogFile(logging.FileHandler):
    """A log file whose loss stops nothing and says nothing: the run's own next file tells the user what hinders it.

    The file is opened with the first record.
    """

    def __init__(self, filename: str, mode: str = "a", encoding: str | None = "utf-8") -> None:
        super().__init__(filename, mode, encoding, delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            super().emit(record)
        except OSError:  # from opening the file
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass over a full disk and a folder that was taken away; print everything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, also where a full disk does not take its last bytes."""
        with contextlib.suppress(OSError):
            super().close()
