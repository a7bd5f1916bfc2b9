"""Settings that differ between two labels of a sweep although nobody asked for it: the difference may be theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlrt.records.printable import one_line
from rlrt.reporting.jobs import Job, labels_of

COMMON = ("train", "data", "model", "engine", "eval")
"""Sections that every method shares; a method's own keys and its teacher are what is compared."""
SHARED_KEYS = ("method.scale_by_std",)
"""Keys of methods that mean the same in all of them."""
SHOWN = 6
"""Keys of one comparison that are named."""


def confounds(jobs: Sequence[Job], baseline: str) -> list[str]:
    """Return a sentence for every label that differs from the baseline in more than what was typed for the two.

    An option of a config group may bring values of other sections (``method=sd`` a learning rate, ``conf/tuned`` any). What
    was typed as ``key=value`` is the comparison itself and is not named.
    """
    first = {label: next(job for job in jobs if job.label == label) for label in labels_of(jobs)}
    sentences = []
    for label, job in first.items():
        found = list(differing(job, first[baseline])) if label != baseline else []
        if found:
            more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            sentences.append(
                f"{label} and {baseline} differ in more than what was typed: {'; '.join(found[:SHOWN])}{more}. Type the same "
                "value for both to compare the methods alone."
            )
    return sentences


def differing(job: Job, other: Job) -> Iterator[str]:
    """Yield "key value and value" of every common key that has two values and was typed for neither run."""
    typed = {o.partition("=")[0].lstrip("+~") for o in (*job.overrides, *other.overrides)}
    for key in [key for key in job.keys if key in other.keys and is_common(key) and key not in typed]:
        if job.keys[key] != other.keys[key]:
            yield f"{one_line(key, 80)} {shown(job.keys, key)} and {shown(other.keys, key)}"


def is_common(key: str) -> bool:
    """True for a key that every method shares."""
    return key in SHARED_KEYS or key.partition(".")[0] in COMMON


def shown(keys: Mapping[str, Any], key: str) -> str:
    """Return a value as YAML writes it, on one line."""
    value = keys[key]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else one_line(value, 80)
