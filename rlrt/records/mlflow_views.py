"""Prepared views of MLflow's pages: tags of an experiment that its page of runs opens on. MLflow is not imported here."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlrt.records.jsonlines import is_number
from rlrt.records.printable import one_line

PREFIX = "mlflow.sharedViewState."
"""Begin of the names of tags that MLflow's page of runs takes for views; the view's id follows."""
OURS = "rlrt-"
"""Begin of the ids of views that sweeps write; the sweep's key follows."""
MOST = 40
"""Views of an experiment with which MLflow's page refuses another one."""
PLAIN = 5_000
"""Characters of a tag up to which the state stays plain: what servers before MLflow 3 accept in a tag."""
LONGEST = 20_000
"""Characters that MLflow accepts in an experiment's tag."""
LONGEST_NAME = 200
"""Characters of a view's name."""
REFUSED = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
"""MLflow's codes for a tag that a store does not take; with any other code the store itself fails."""


@dataclass(frozen=True)
class Stored:
    """What the tag of a view says.

    Attributes:
        name: under which MLflow's page lists it.
        created: milliseconds since 1970; 0 where it does not say.
        state: as text, plain or compressed; "" for none.
        digest: of the state as a sweep wrote it; "" in views of others, and in one that somebody saved anew in MLflow's page.
    """

    name: str
    created: float
    state: str
    digest: str

    @property
    def touched(self) -> bool:
        """True if the state is not what a sweep wrote."""
        return self.digest != digest_of(self.state)


def digest_of(state: str) -> str:
    """Return the digest by which a state is known again."""
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read(value: str) -> Stored | None:
    """Return what a tag says; None if it is no view of today's form, which MLflow's page neither lists nor counts."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not is_number(found.get("createdAt")):
        return None
    state, digest = (text if isinstance(text := found.get(key), str) else "" for key in ("state", "rlrt"))
    return Stored(one_line(found["name"], LONGEST_NAME), float(found["createdAt"]), state, digest)


def written(name: str, state: str, created: float, now: float) -> str:
    """Return the tag of a view.

    Args:
        name: under which MLflow's page lists it.
        state: as ``compact`` gives it.
        created, now: milliseconds since 1970.
    """
    value = {"name": name, "createdAt": int(created), "updatedAt": int(now), "state": state}
    return json.dumps(value | {"rlrt": digest_of(state)}, separators=(",", ":"))


def compact(state: Mapping[str, Any]) -> str:
    """Return a state as text, compressed where the plain one would fill a tag; the same state gives the same text."""
    text = json.dumps(state, separators=(",", ":"))
    if len(json.dumps(text)) + LONGEST_NAME <= PLAIN:
        return text
    return f"deflate;{base64.b64encode(zlib.compress(text.encode(), 9)).decode('ascii')}"


def views_of(tags: Mapping[str, str]) -> dict[str, Stored]:
    """Return the views among an experiment's tags, by the name of the tag."""
    found = {tag: read(value) for tag, value in tags.items() if tag.startswith(PREFIX)}
    return {tag: view for tag, view in found.items() if view is not None}


def newest(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (id, name) of the view of the sweep that began last, by an experiment's tags."""
    ours = {tag: view for tag, view in views_of(tags).items() if tag.startswith(PREFIX + OURS)}
    if not ours:
        return None
    tag = max(ours, key=lambda each: ours[each].created)
    return tag.removeprefix(PREFIX), ours[tag].name


def page(experiment_id: str, view: str) -> str:
    """Return the path of a view's page: its state says neither which of the page's forms is shown nor which menu."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={view}&compareRunsMode=CHART&workflowType=machine_learning"


def write(
    client: Any, experiment_id: str, view: str, name: str, state: Mapping[str, Any], warn: Callable[[str], None]
) -> None:
    """Write a view into an experiment, or bring the one of that id up to date; one that somebody changed in MLflow stays.

    Where the experiment has as many views as MLflow's page takes, the oldest one that a sweep wrote goes.

    Args:
        client: MLflow's.
        experiment_id, view: of the experiment and of the view.
        name: under which MLflow's page lists it.
        state: what the page is to show.
        warn: called with one sentence where the view is left out.
    """
    tags = client.get_experiment(experiment_id).tags
    tag, views, now = PREFIX + view, views_of(tags), time.time() * 1000
    text, before, name = compact(state), views.get(tag), one_line(name, LONGEST_NAME - 3)
    if before is not None and (before.touched or (before.state, before.name) == (text, name)):
        return
    value = written(name, text, before.created if before else now, now)
    if len(value) > LONGEST:
        warn(f"MLflow gets no view of {name}: it would need {len(value)} characters, MLflow takes {LONGEST}.")
        return
    others = [each for each in views if each != tag]
    oldest = sorted(
        (each for each in others if each.startswith(PREFIX + OURS) and not views[each].touched),
        key=lambda each: views[each].created,
    )
    over = max(0, len(others) + 1 - MOST)
    if over > len(oldest):
        warn(f"MLflow gets no view of {name}: its experiment has {len(others)} views of yours, MLflow takes {MOST}.")
        return
    for each in oldest[:over]:
        client.delete_experiment_tag(experiment_id, each)
    client.set_experiment_tag(experiment_id, tag, value)
