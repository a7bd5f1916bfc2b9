"""An evaluation from its folder's beginning to its results, as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from rlrt.errors import UserError
from rlrt.evaluation.checkpoint import Evaluation, Load, measure, summarised
from rlrt.execution.build import load_model
from rlrt.records.files import own_folder, replace_text, write_json
from rlrt.records.folder import Beginning
from rlrt.records.lease import leased
from rlrt.records.secrets import redacted
from rlrt.records.storage import storing
from rlrt.records.stored_config import config_text
from rlrt.reporting.tables import inert


def carried_out(
    evaluation: Evaluation, say: Callable[[str], None], load_one: Load = load_model
) -> dict[str, dict[str, Any]]:
    """Measure what has not been measured, and write the results; returns the figures of every suite.

    Args:
        say: told of every suite when it is done.
        load_one: gives the model.

    Raises:
        UserError: for data or a model that cannot be had; the folder is then as it was.
    """
    beginning = Beginning(evaluation.folder)
    try:
        with storing(evaluation.folder), leased(evaluation.folder):
            results = summarised(measure(evaluation, say, load_one))
            write(evaluation, results)
    except UserError:
        beginning.undo()
        raise
    return results


def write(evaluation: Evaluation, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``results.json``, and ``pass_at_k.csv`` with every k; without a run also ``config.yaml``, without secrets."""
    folder, samples = own_folder(evaluation.folder), evaluation.settings.eval.samples_per_prompt
    plain = evaluation.settings.plain
    setup = {"step": evaluation.step, "samples": samples, "eval": plain["eval"], "engine": plain["engine"]}
    if evaluation.run is None:
        setup["overrides"] = redacted(evaluation.settings.overrides)
        replace_text(folder / "config.yaml", config_text(redacted(plain)))
    write_json(folder / "results.json", setup | {"suites": results})
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["suite", "k", "pass_at_k", "low", "high"])
    out.writerows([inert(name), k, *values] for name, m in results.items() for k, values in m["pass_at"].items())
    replace_text(folder / "pass_at_k.csv", text.getvalue())
