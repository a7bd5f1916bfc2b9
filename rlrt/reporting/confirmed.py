"""A search's best in a report: what fresh seeds made of it, beside the default, and what its search value is."""

from __future__ import annotations

import logging
from pathlib import Path

from rlrt.records.files import is_file, mapping, read_json
from rlrt.records.jsonlines import is_number
from rlrt.records.printable import one_line
from rlrt.reporting.tables import Table, interval

BEST = "best.json"
"""File in a sweep's folder with the best parameters of a search, and their confirmation."""
NOTE = (
    "The search's own values were chosen for being high: they, and every other table and figure of this page, are exploratory. "
    "A confirmation (hydra.sweeper.confirm) runs the best and the default on seeds that no trial had, fixed beforehand: mean ± "
    "half-width of the 95 % interval by Student's t, the difference paired."
)

log = logging.getLogger("rlrt")


def confirmation(sweep: Path) -> Table | None:
    """Return the table of a search's confirmation, or that it has none; None for a sweep that is no search.

    A file that does not say what it should is left out with a warning.
    """
    if not is_file(sweep / BEST):
        return None
    try:
        stored = read_json(sweep / BEST)
        best = mapping(stored["best"][0])
        found = mapping(stored.get("confirmation"))
        what = " ".join(one_line(override) for override in best["overrides"])
        (metric, value), *_ = mapping(best["values"]).items()
        pairs = [(float(a), float(b)) for a, b in found.get("pairs", []) if is_number(a) and is_number(b)]
        cells = ["-"] * 3
        if pairs:
            columns = ([a for a, _ in pairs], [b for _, b in pairs], [a - b for a, b in pairs])
            cells = [interval(column, form) for column, form in zip(columns, (".4f", ".4f", "+.4f"), strict=True)]
        searched = f"{float(value):.4f}"
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        log.warning("%s: expected a search's best, found other values; it is left out", one_line(sweep / BEST))
        return None
    headings = ["best of the search", "metric", "in the search", "fresh seeds", "best", "default", "difference"]
    return Table(headings, [[what, one_line(metric), searched, str(len(pairs)), *cells]])
