"""``python -m rlrt.ui``: serve MLflow's pages for the local store of runs, on 127.0.0.1 only, opened at the experiment."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.refused import guarded
from rlrt.distributed.ports import probed
from rlrt.errors import UserError, first_line
from rlrt.records.mlflow_uri import absolute, check_uri, sqlite_file
from rlrt.records.secrets import masked, without_password
from rlrt.records.streams import mask_streams

HOST = "127.0.0.1"
"""The server accepts connections only from this machine."""
PATIENCE_S = 120.0
"""Seconds that the server may take to start."""


def store(uri: str | None) -> tuple[str, str]:
    """Return (tracking URI, experiment): ``uri`` or the config's tracking URI, and the config's experiment.

    Raises:
        UserError: for a URI of an unknown kind, a SQLite file that does not exist yet, or a config without MLflow.
    """
    tracking: Any = composed([]).tracking
    tracking_uri = uri or tracking.uri
    if tracking_uri is None:
        raise UserError("tracking.uri: the config names no MLflow; give one as --uri sqlite:///FILE.")
    check_uri(tracking_uri)
    file = sqlite_file(tracking_uri)
    if tracking_uri.startswith("sqlite:") and not file.is_file():
        raise UserError(f"--uri: expected a store of runs in {file}, found none; run something first, or give --uri.")
    return absolute(tracking_uri), str(tracking.experiment)


def page_of(uri: str, experiment: str) -> str:
    """Return the path of the experiment's page, in the view with runs and charts (not MLflow's default view).

    Raises:
        UserError: if the store does not answer.
    """
    from mlflow import MlflowClient

    try:
        stored = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    except Exception as error:  # MLflow and the http library raise many types
        reason = masked(first_line(error), uri)
        raise UserError(f"--uri: {without_password(uri)} does not answer ({reason}).") from None
    return f"/#/experiments/{stored.experiment_id}/runs?workflowType=machine_learning" if stored else "/"


def free_port(wanted: int) -> int:
    """Return the wanted port (0: any free port).

    Raises:
        UserError: if the port is in use or not a valid port.
    """
    if not 0 <= wanted <= 65535:
        raise UserError(f"--port: expected a number from 0 to 65535, got {wanted}.")
    try:
        return probed(HOST, wanted)
    except OSError:
        raise UserError(f"--port: {wanted} is in use on {HOST}; give another one, or 0 for any.") from None


def serve(uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server in its own process group; one worker is enough for one user."""
    arguments = ["server", "--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", uri]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen([sys.executable, "-m", "mlflow", *arguments], env=environment, start_new_session=True)


def wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers.

    Raises:
        UserError: if the server ends or takes too long.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise UserError(f"mlflow server ended with code {process.returncode}; see its output above.")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise UserError(f"mlflow server did not answer within {PATIENCE_S:.0f} s.")


def main() -> None:
    """Serve MLflow's pages until Ctrl-C."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.ui", description=__doc__)
    parser.add_argument("--uri", help="store of runs (default: the config's tracking.uri)")
    parser.add_argument("--experiment", help="experiment to open (default: the config's)")
    parser.add_argument("--port", type=int, default=5000, help="0: any that is free")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(guarded(lambda: show(options.uri, options.experiment, options.port)))
    except KeyboardInterrupt:
        print()


def show(given_uri: str | None, given_experiment: str | None, wanted_port: int) -> None:
    """Serve a store's pages until the server ends; for an http store, print the address of its own pages.

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
