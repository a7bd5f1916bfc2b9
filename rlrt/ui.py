"""``python -m rlrt.ui``: MLflow's pages on the store of the runs here, on 127.0.0.1 only, with the experiment in front."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.refused import guarded
from rlrt.distributed.ports import probed
from rlrt.errors import UserError, first_line
from rlrt.records.mlflow import absolute, check_uri
from rlrt.records.secrets import masked, without_password

HOST = "127.0.0.1"
"""Nobody but this machine is served."""
PATIENCE_S = 120.0
"""Seconds that the server may take to come up."""


def store(uri: str | None) -> tuple[str, str]:
    """(tracking URI, experiment) to show: what was typed, or what the config names.

    Raises:
        UserError: for a URI of no known kind, a SQLite file that is not there yet, or a config without MLflow.
    """
    tracking: Any = composed([]).tracking
    place = uri or tracking.uri
    if place is None:
        raise UserError("tracking.uri: the config names no MLflow; give one as --uri sqlite:///FILE.")
    check_uri(place)
    file = Path(absolute(place).removeprefix("sqlite:///"))
    if place.startswith("sqlite:") and not file.is_file():
        raise UserError(f"--uri: expected a store of runs in {file}, found none; run something first, or give --uri.")
    return absolute(place), str(tracking.experiment)


def page_of(uri: str, experiment: str) -> str:
    """The path of the experiment's page, in the view that shows runs and charts (MLflow opens on another one).

    Raises:
        UserError: for a store that does not answer.
    """
    from mlflow import MlflowClient

    try:
        found = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    except Exception as error:  # MLflow's and the http library's own types
        reason = masked(first_line(error), uri)
        raise UserError(f"--uri: {without_password(uri)} does not answer ({reason}).") from None
    return f"/#/experiments/{found.experiment_id}/runs?workflowType=machine_learning" if found else "/"


def free_port(wanted: int) -> int:
    """The port asked for (0: any that is free).

    Raises:
        UserError: if something listens there already, or it is no port.
    """
    if not 0 <= wanted <= 65535:
        raise UserError(f"--port: expected a number from 0 to 65535, got {wanted}.")
    try:
        return probed(HOST, wanted)
    except OSError:
        raise UserError(f"--port: {wanted} is in use on {HOST}; give another one, or 0 for any.") from None


def serve(uri: str, port: int) -> subprocess.Popen[bytes]:
    """MLflow's server, in a process group of its own; one worker is enough for one person."""
    words = ["server", "--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", uri]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, start_new_session=True)


def wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the server answers.

    Raises:
        UserError: if it ends or takes too long.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise UserError(f"mlflow server ended with code {process.returncode}; what it said stands above.")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise UserError(f"mlflow server did not answer within {PATIENCE_S:.0f} s.")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m rlrt.ui", description=__doc__)
    parser.add_argument("--uri", help="store of runs (default: the config's tracking.uri)")
    parser.add_argument("--experiment", help="experiment in front (default: the config's)")
    parser.add_argument("--port", type=int, default=5000, help="0: any that is free")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(guarded(lambda: show(given.uri, given.experiment, given.port)))
    except KeyboardInterrupt:
        print()


def show(given_uri: str | None, given_experiment: str | None, wanted_port: int) -> None:
    """Serve a store's pages until the server ends, or say where they are already.

    Raises:
        UserError: for a store that cannot be read, or a port in use.
    """
    process = None
    try:
        uri, experiment = store(given_uri)
        path = page_of(uri, given_experiment or experiment)
        if uri.startswith(("http://", "https://")):
            print(f"that store has its own pages: {without_password(uri)}{path}")
            return
        port = free_port(wanted_port)
        process = serve(uri, port)
        wait_until_up(process, port)
        print(f"http://{HOST}:{port}{path}\nCtrl-C ends it", flush=True)
        process.wait()
    finally:
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


if __name__ == "__main__":
    main()
