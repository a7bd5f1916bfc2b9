"""A run in MLflow and Trackio, live and afterwards: what is sent of it, read from its settings or from its folder.

From a folder nothing is imported and nothing resolved: its config is text.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrt.config.load import section
from rlrt.config.options import content
from rlrt.config.schema import Settings, Tracking
from rlrt.errors import UserError
from rlrt.execution.monitor import Monitor
from rlrt.keys import leaves
from rlrt.paths import CONFIG, local_folder
from rlrt.records.declared import declared
from rlrt.records.files import mapping, read_json, resolved
from rlrt.records.folder import RunFolder
from rlrt.records.identity import content_hash
from rlrt.records.lease import LEASE
from rlrt.records.mlflow import Input, MlflowTracker, status_of
from rlrt.records.mlflow_uri import absolute, check_uri, is_store, sqlite_file
from rlrt.records.printable import one_line
from rlrt.records.secrets import MASK, redacted, without_password
from rlrt.records.stored_config import stored_config
from rlrt.records.tracker import Several, Tracker
from rlrt.records.trackio import GROUP, TrackioTracker

log = logging.getLogger("rlrt")


CREDENTIALS = tuple(f"MLFLOW_TRACKING_{name}" for name in ("TOKEN", "USERNAME", "PASSWORD", "AWS_SIGV4", "AUTH"))
"""Variables by which MLflow sends credentials to whatever server it speaks to."""


PARENT = "mlflow.parentRunId"
"""MLflow's tag for the run under which its page shows another one."""
TODAYS = CONFIG / "tracking" / "mlflow.yaml"
"""Today's values of the section's keys."""
ARTIFACTS = "outputs/mlartifacts"
"""Where a new SQLite store keeps its files, as in conf/config.yaml."""
FILES = (".mlflow/credentials",)
"""Files in the home folder from which MLflow takes credentials."""
DATABASES = ("PGPASSWORD", "PGPASSFILE", "MYSQL_PWD")
"""Variables from which the clients of databases take passwords."""
DATABASE_FILES = (".pgpass", ".my.cnf", ".mylogin.cnf")
"""The same in the home folder."""


@dataclass(frozen=True)
class Tracked:
    """The facts about a run that MLflow is sent.

    Attributes:
        tracking: the section of that name.
        plain: the whole config as nested plain values.
        names: the option chosen in every config group.
        tags: more tags, for example the parent run of a sweep.
        foreign: True for a run that was read from a folder and is not trusted: what its config names is not opened.
    """

    tracking: Tracking
    plain: Mapping[str, Any]
    names: Mapping[str, str]
    tags: Mapping[str, str]
    foreign: bool = False

    def value(self, section: str, key: str) -> str:
        """A value of the config as text; empty where there is none."""
        values = self.plain.get(section)
        return str(values.get(key, "")) if isinstance(values, Mapping) else ""


def tracked(settings: Settings, tags: Mapping[str, str]) -> Tracked:
    """Of a run's settings."""
    return Tracked(settings.tracking, settings.plain, settings.names, tags)


def stored(path: Path, uri: str | None = None, trust: bool = False) -> Tracked:
    """Of a run's folder, with the password of its tracking URI where that is known, and its tags of a sweep.

    Args:
        path: the run's folder.
        uri: instead of the run's own tracking URI.
        trust: whether the run's server may get the credentials of this environment: somebody else's run names somebody else's.

    Raises:
        UserError: if the folder's config cannot be read any more, its URI lacks a password, or its server is not trusted.
    """
    plain, spec = stored_config(path), read_json(path / "job.json")
    typed = mapping(mapping(spec.get("plain")).get("tracking")).get("uri")  # a sweep's job keeps it with its password
    tracking = stored_tracking(path, plain.get("tracking"), uri, trust, str(typed) if typed else None)
    choices = mapping(read_json(path / "manifest.json").get("choices"))
    names = {name: one_line(choice, 200) for name, choice in choices.items()}
    return Tracked(tracking, plain, names, stored_tags(spec), foreign=not trust)


def stored_tracking(path: Path, values: Any, uri: str | None, trust: bool, typed: str | None = None) -> Tracking:
    """Return a stored ``tracking`` section as far as it may be used.

    Args:
        path: the folder of the run or sweep that stores it.
        values: the section.
        uri, trust: as for ``stored``.
        typed: the stored URI with its password, if that is known.

    Raises:
        UserError: as ``stored``.
    """
    if isinstance(values, Mapping):  # one that was stored before a key was there
        values = {k: v for k, v in content(TODAYS).items() if k != "uri"} | dict(values)
    tracking = section("tracking", values)
    tracking = dataclasses.replace(tracking, uri=uri or typed or tracking.uri)
    if tracking.uri is not None:
        check_uri(tracking.uri)
    if uri is None and not trust:
        refuse_to_send_credentials(path, tracking.uri)
        refuse_new_store(path, tracking.uri)
    if MASK in str(tracking.uri):
        raise UserError(f"tracking.uri: {path} was recorded without the password of its URI; give the URI as --uri.")
    if trust:
        return tracking
    # a folder does not say where files go
    here = tracking.trackio is None or resolved(Path(tracking.trackio)).is_relative_to(resolved(Path.cwd()))
    return dataclasses.replace(tracking, artifacts=ARTIFACTS, trackio=tracking.trackio if here else None)


def stored_tags(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a job by its ``job.json``: rlrt's own, and the run that MLflow is to show it under."""
    tags = {str(k): one_line(v) for k, v in mapping(spec.get("tags")).items()}
    parent = tags.get(PARENT, "")
    own = {k: v for k, v in tags.items() if k.startswith("rlrt.")}
    return own | ({PARENT: parent} if re.fullmatch("[0-9a-f]{32}", parent) else {})


def refuse_new_store(path: Path, uri: str | None) -> None:
    """Refuse to make a SQLite store where a stored config says, unless that is a new file ``*.db`` below the current folder: a
    job on SLURM leaves its store to ``rlrt.sync``.

    Raises:
        UserError: naming the file.
    """
    if not str(uri).startswith("sqlite"):
        return
    file = sqlite_file(str(uri))
    new = str(uri).startswith("sqlite:///") and file.suffix == ".db" and not os.path.lexists(file)
    if not is_store(file) and not (new and resolved(file).is_relative_to(resolved(Path.cwd()))):
        raise UserError(
            f"tracking.uri: {path} names {file}, which is no store of MLflow yet; if it is to become one, "
            "give it as --uri, or add --trust."
        )


def refuse_to_send_credentials(path: Path, uri: str | None) -> None:
    """Refuse to speak to the server of a stored config while MLflow would send it this environment's credentials.

    Raises:
        UserError: naming them and the server.
    """
    scheme = re.split(r"[:+]", str(uri))[0]
    if uri is None or scheme == "sqlite":
        return
    names, files = (CREDENTIALS, FILES) if scheme in ("http", "https") else (DATABASES, DATABASE_FILES)
    held = [name for name in names if os.environ.get(name)]
    held += [str(Path.home() / file) for file in files if (Path.home() / file).is_file()]
    if held:
        raise UserError(
            f"tracking.uri: {path} names the server {without_password(str(uri))}, and MLflow would send {held[0]} of this "
            "machine there; if you know that server, give it as --uri, or add --trust."
        )


def open_tracker(run: Tracked, folder: RunFolder, name: str) -> Tracker | None:
    """Open what shows a run besides its folder: MLflow, Trackio, both at once, or None for neither."""
    tracking = run.tracking
    if tracking.uri is None and tracking.trackio is None:
        return None
    tags, lease = tags_of(run, folder), folder.path / LEASE
    trackers: list[Tracker] = []
    if tracking.uri is not None:
        trackers.append(
            MlflowTracker(
                uri=tracking.uri,
                experiment=tracking.experiment,
                artifacts=tracking.artifacts,
                run_id=text_or_none(folder.manifest().get("mlflow_run_id")),
                key=folder.key(),
                name=name,
                tags=tags,
                params={k: str(v) for k, v in leaves(redacted(dict(run.plain))).items()},
                warn=log.warning,
                lease=lease,
                inputs=inputs_of(run),
                foreign=run.foreign,
            )
        )
    if tracking.trackio is not None:
        config = {k: str(v) for k, v in leaves(redacted(dict(run.plain))).items()} | tags
        if sweep := tags.get("rlrt.sweep"):
            config[GROUP] = sweep
        trackers.append(
            TrackioTracker(tracking.trackio, tracking.experiment, folder.key(), name, config, log.warning, lease)
        )
    return trackers[0] if len(trackers) == 1 else Several(trackers)


def tags_of(run: Tracked, folder: RunFolder) -> dict[str, str]:
    """Return a run's tags: what it is, where it lies, and what its method declares."""
    data_class = run.value("data", "_target_").rpartition(".")[2]
    tags = {
        "rlrt.method": run.value("method", "name"),
        "rlrt.model": run.names.get("model", run.value("model", "path")),
        "rlrt.data": run.names.get("data", data_class),
        "rlrt.seed": str(run.plain.get("seed")),
        "rlrt.identity": str(folder.manifest().get("identity")),
        "rlrt.folder": str(resolved(folder.path)),
        "rlrt.git_commit": str(folder.manifest().get("git_commit", "unknown")),
    }
    if origin := mapping(folder.manifest().get("origin")):
        tags["rlrt.origin"] = f"{origin.get('run')}, step {origin.get('step')}"
    for tag, key in declared(folder.manifest()).tags.items():
        if not tag.startswith("mlflow.") and tag not in tags and (value := run.value("method", key)):
            tags[tag] = value
    return tags | dict(run.tags)


def where_to_look(tracking: Tracking) -> list[str]:
    """Return the commands that show what was tracked."""
    words = []
    if tracking.uri is not None:
        words.append(f"{command_of('mlflow')} ui --backend-store-uri {without_password(absolute(tracking.uri))}")
    if tracking.trackio is not None:
        folder = shlex.quote(str(resolved(Path(tracking.trackio))))
        words.append(f"TRACKIO_DIR={folder} {command_of('trackio')} show --project {shlex.quote(tracking.experiment)}")
    return words


def command_of(name: str) -> str:
    """Return how a command of this environment is typed: with its path where it would not be found by its name."""
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.exists() else str(beside)


def text_or_none(value: Any) -> str | None:
    """Return the value if it is a text, else None."""
    return value if isinstance(value, str) else None


def inputs_of(run: Tracked) -> list[Input]:
    """The model, the data and the benchmarks of a run, for MLflow: by content where they are here, else by revision."""

    def one(name: str, section: Mapping[str, Any], context: str) -> Input:
        source = str(section.get("path", name))
        folder = local_folder(source) if "path" in section and not run.foreign else None
        digest = content_hash(folder) if folder is not None else str(section.get("revision") or "newest")
        return Input(name, digest, source, context)

    data_class = run.value("data", "_target_").rpartition(".")[2]
    inputs = [
        one(run.names.get("model", run.value("model", "path")), mapping(run.plain.get("model")), "model"),
        one(run.names.get("data", data_class), mapping(run.plain.get("data")), "training"),
    ]
    suites = mapping(mapping(run.plain.get("eval")).get("suites"))
    return inputs + [one(name, mapping(suite), "evaluation") for name, suite in suites.items()]


def replay(path: Path, uri: str | None = None, trust: bool = False) -> bool:
    """Bring to MLflow and Trackio what they missed of a run: whatever its folder's record has and they have not.

    Args:
        path: the run's folder.
        uri: instead of the run's own tracking URI.
        trust: see ``stored``.

    Returns:
        whether MLflow now has everything (also where the run was never meant for it).

    Raises:
        UserError: if the folder's config cannot be read any more.
    """
    folder = RunFolder(path)
    run = stored(path, uri, trust)
    tracker = open_tracker(run, folder, path.name)
    if tracker is None:
        return True
    monitor = Monitor(run.tracking, folder, tracker, lambda step, metrics: None, log.warning)
    monitor.catch_up()
    monitor.send_samples()
    monitor.close(status_of(folder.summary().get("state")))
    folder.note(mlflow_complete=monitor.complete)
    return monitor.complete
