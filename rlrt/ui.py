"""``python -m rlrt.ui``: serve MLflow's pages for the local store of runs, on 127.0.0.1 only, opened at a sweep."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.refused import guarded
from rlrt.distributed.ports import probed
from rlrt.errors import UserError, first_line
from rlrt.records.files import mapping, read_json
from rlrt.records.folder import is_key
from rlrt.records.mlflow_uri import absolute, check_uri, sqlite_file
from rlrt.records.mlflow_views import OURS, PREFIX, newest, page
from rlrt.records.secrets import masked, without_password
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import say
from rlrt.sweep.parent import NOTE
from rlrt.sweep.state import sweep_folder

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


def page_of(uri: str, experiment: str, sweep: Path | None = None) -> tuple[str, tuple[str, str] | None]:
    """Return the path of the experiment's page of runs (not MLflow's default page), and path and name of a sweep's view.

    Args:
        uri: of the store.
        experiment: its name.
        sweep: folder of the sweep; None: the sweep that began last, and no view where there is none.

    Raises:
        UserError: if the store does not answer, or has no view of the sweep.
    """
    from mlflow import MlflowClient

    try:
        stored = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    except Exception as error:  # MLflow and the http library raise many types
        reason = masked(first_line(error), uri)
        raise UserError(f"--uri: {without_password(uri)} does not answer ({reason}).") from None
    tags = stored.tags if stored else {}
    view = newest(tags) if sweep is None else view_of(sweep, tags)
    if sweep is not None and view is None:
        raise UserError(
            f"SWEEP: {without_password(uri)} has no view of {sweep} in the experiment {experiment}; expected a sweep with "
            "metrics there (python -m rlrt.sync sends what is missing), else give its store as --uri and its --experiment."
        )
    if stored is None:
        return "/", None
    every = f"/#/experiments/{stored.experiment_id}/runs?workflowType=machine_learning"
    return every, (page(stored.experiment_id, view[0]), view[1]) if view else None


def view_of(sweep: Path, tags: Mapping[str, str]) -> tuple[str, str] | None:
    """Return (id, name) of a sweep's view, by the key in its folder; None if an experiment's tags have none."""
    key = read_json(sweep / NOTE).get("key")
    there = is_key(key) and f"{PREFIX}{OURS}{key}" in tags
    return (f"{OURS}{key}", sweep.name) if there else None


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
    parser.add_argument("sweep", nargs="?", type=Path, help="open this sweep's view (default: the newest sweep's)")
    parser.add_argument("--uri", help="store of runs (default: the config's tracking.uri)")
    parser.add_argument("--experiment", help="experiment to open (default: the config's)")
    parser.add_argument("--port", type=int, default=5000, help="0: any that is free")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(guarded(lambda: show(options.sweep, options.uri, options.experiment, options.port)))
    except KeyboardInterrupt:
        print()


def show(sweep: Path | None, given_uri: str | None, given_experiment: str | None, wanted_port: int) -> None:
    """Serve a store's pages until the server ends; for an http store, print the addresses of its own pages.

    Raises:
        UserError: for a store that cannot be read, a sweep that it has no view of, or a port in use.
    """
    process = None
    try:
        folder = sweep_folder(sweep) if sweep is not None else None
        uri, experiment = store(given_uri)
        tracking = mapping(read_json(folder / NOTE).get("tracking")) if folder is not None else {}
        experiment = given_experiment or str(tracking.get("experiment") or experiment)
        every, view = page_of(uri, experiment, folder)
        if uri.startswith(("http://", "https://")):
            say("that store has its own pages:")
            links(without_password(uri).rstrip("/"), every, view)
            return
        port = free_port(wanted_port)
        process = serve(uri, port)
        wait_until_up(process, port)
        links(f"http://{HOST}:{port}", every, view)
        say("Ctrl-C ends it")
        process.wait()
    finally:
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def links(server: str, every: str, view: tuple[str, str] | None) -> None:
    """Print the address of a sweep's view, where there is one, and that of all runs."""
    if view is not None:
        say(
            f"{server}{view[0]}\n    the sweep {view[1]}: runs by method and coefficient, curves, last values\n\nevery run:"
        )
    say(f"{server}{every}")


if __name__ == "__main__":
    main()
