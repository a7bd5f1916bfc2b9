"""``python -m rlrt.register RUN NAME``: register a run's checkpoint as a version of a model in MLflow's registry.

The version's source is the checkpoint's folder, which transformers can load; no file is copied.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rlrt.config.refused import guarded
from rlrt.config.rerun import find_run
from rlrt.errors import UserError, first_line
from rlrt.execution.tracking import stored
from rlrt.paths import saved_steps
from rlrt.records.checkpoints import damage
from rlrt.records.files import resolved
from rlrt.records.folder import RunFolder
from rlrt.records.mlflow_uri import absolute
from rlrt.records.printable import one_line
from rlrt.records.secrets import masked, without_password
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import say


def register(run: Path, name: str, step: int | None, uri: str | None) -> str:
    """Register a checkpoint; return the version's number.

    Raises:
        UserError: for a missing or damaged checkpoint, a run that is not in MLflow, or a server that fails.
    """
    saved = saved_steps(run)
    selected_step = max(saved, default=None) if step is None else step
    if selected_step is None or selected_step not in saved:
        raise UserError(
            f"{run}: expected a checkpoint, found {', '.join(map(str, sorted(saved))) or 'none'}; see --step."
        )
    wrong = damage(saved[selected_step])
    if wrong is not None:
        raise UserError(f"{saved[selected_step]} is damaged ({wrong}); choose another with --step.")
    tracking = stored(run, uri).tracking
    run_id = RunFolder(run).manifest().get("mlflow_run_id")
    if tracking.uri is None or run_id is None:
        raise UserError(f"{run} is not in MLflow; python -m rlrt.sync sends it if tracking.uri names a store.")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=absolute(tracking.uri))
    try:
        ensure_model(client, name)
        tags = {"rlrt.step": str(selected_step), "rlrt.identity": str(RunFolder(run).manifest().get("identity"))}
        version = client.create_model_version(name, resolved(saved[selected_step]).as_uri(), run_id, tags=tags)
    except MlflowException as error:
        uri = tracking.uri
        reason = masked(first_line(error), uri)
        raise UserError(f"MLflow at {without_password(uri)} did not accept the checkpoint ({reason}).") from None
    return str(version.version)


def ensure_model(client: Any, name: str) -> None:
    """Create a model in the registry unless it is there; a name may have quotes, which a search would take for its own."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)


def main() -> None:
    """Register the newest checkpoint of a run, or the one of --step."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.register", description=main.__doc__)
    parser.add_argument("run", help="folder or name of a run")
    parser.add_argument("name", help="name of the registered model")
    parser.add_argument("--step", type=int, help="checkpoint of this step; default: the newest")
    parser.add_argument("--uri", help="MLflow's store, instead of the run's")
    arguments = parser.parse_args()

    def act() -> None:
        run = find_run(arguments.run)
        version = register(run, arguments.name, arguments.step, arguments.uri)
        say(one_line(f"{arguments.name}, version {version}: {run}"))

    sys.exit(guarded(act))


if __name__ == "__main__":
    main()
