"""How long a browser takes to open the token view of one response of 20,000 tokens, beside an empty page.

``python -m benchmarks.page`` lets Debian's Chromium start, open each page and take its picture, in turns; figures are in
docs/LOG.md. Needs chromium (``make chromium``).
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from rlrt.reporting.token_view import page
from tests.reporting.test_token_view import long_row

TOKENS, TURNS = 20_000, 6


def seconds(folder: Path, name: str) -> float:
    """Wall-clock seconds from the browser's start until it has taken a page's picture."""
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1600"]
    words += [
        f"--user-data-dir={folder / 'profile'}",
        f"--screenshot={folder / 'picture.png'}",
        (folder / name).as_uri(),
    ]
    begin = time.monotonic()
    subprocess.run(words, capture_output=True, check=True)
    return time.monotonic() - begin


def main() -> None:
    """Print the seconds of both pages, and what the long one costs more."""
    if shutil.which("chromium") is None:
        raise SystemExit("benchmarks.page: expected Debian's chromium, found none; make chromium installs it.")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        begin = time.monotonic()
        text = page([long_row(TOKENS)], "a long one")
        written = time.monotonic() - begin
        (folder / "long.html").write_text(text)
        (folder / "empty.html").write_text("<!doctype html><title>empty</title><p>empty")
        seconds(folder, "empty.html")  # the profile is made
        turns = [(seconds(folder, "empty.html"), seconds(folder, "long.html")) for _ in range(TURNS)]
    empty, long = (statistics.median(column) for column in zip(*turns, strict=True))
    print(f"{TOKENS} tokens: {len(text) / 1e6:.1f} MB, written in {written:.2f} s")
    print(f"start and picture, median of {TURNS} in turns: empty page {empty:.2f} s, long page {long:.2f} s")
    print(f"the page itself: {long - empty:.2f} s")


if __name__ == "__main__":
    main()
