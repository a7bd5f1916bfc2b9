"""``python -m rlrt.fetch model=... data=... eval=...``: models and data at their pinned revisions into the hub's local cache.

For clusters whose compute nodes have no network: run it on a login node, with ``HF_HOME`` on a disk that the nodes share.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.refused import guarded
from rlrt.config.schema import Settings
from rlrt.errors import amount
from rlrt.execution.data import prepare_suites, prepare_task
from rlrt.execution.parts import parts_of
from rlrt.model.files import check_folder, check_hub, not_on_hub_error
from rlrt.paths import local_folder
from rlrt.records.files import size_of
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import Bar

FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Patterns of a model's files: weights, configs, tokenizer; nothing that is code or a pickle."""

LOOK_S = 1.0
"""Seconds between two looks at how much is there."""


def fetch_model(path: str, revision: str | None) -> Path:
    """The folder of a model: where it lies, or its snapshot in the hub's cache, downloaded if necessary.

    Raises:
        UserError: for a model that cannot be had, or whose files lead elsewhere.
    """
    local = local_folder(path)
    if local is not None:
        check_folder(local)
        return local
    from huggingface_hub import snapshot_download

    commit = check_hub(path, revision)
    try:
        with told(path, f"models--{path.replace('/', '--')}", bytes_on_hub(path, commit)):
            folder = Path(snapshot_download(path, revision=commit, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's and the http library's own types
        raise not_on_hub_error(path, str(error).split("\n")[0]) from error
    check_folder(folder)
    return folder


def bytes_on_hub(path: str, commit: str) -> int | None:
    """Return the bytes of a model's files that are downloaded; None where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(path, revision=commit, files_metadata=True).siblings or []
    except Exception:  # the download itself will say what is wrong
        return None
    return sum(file.size or 0 for file in files if any(fnmatch(file.rfilename, pattern) for pattern in FILES))


@contextmanager
def told(name: str, repositories: str, total: int | None) -> Iterator[None]:
    """Say every few seconds how much of a download is there, while the block runs; a terminal shows the hub's own bars instead.

    Args:
        name: of what is downloaded.
        repositories: pattern of their folders in the hub's cache.
        total: bytes; None: that is not known.
    """
    from huggingface_hub import constants

    def there() -> int:
        return sum(map(size_of, Path(constants.HF_HUB_CACHE).glob(f"{repositories}/blobs/*")))

    def look() -> None:
        with Bar(name, total, unit="" if total else "more", form=amount) as bar:
            while not ended.wait(LOOK_S):
                if (now := there()) > before:
                    bar.reach(now if total else now - before)

    before, ended = there(), threading.Event()
    thread = threading.Thread(target=look, daemon=True, name="rlrt-download")
    if not sys.stdout.isatty():
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def fetch(settings: Settings) -> list[str]:
    """Fetch everything that a run reads; returns a line for each part.

    Raises:
        UserError: for a part that cannot be had.
    """
    lines = [f"model: {fetch_model(settings.model.path, settings.model.revision)}"]
    parts = parts_of(settings)
    try:
        with told("data", "datasets--*", None):
            prepare_task(parts.task)
            prepare_suites(parts.suites)
        said = parts.task.report()
        counts = f"{len(parts.task.train)} training and {len(parts.task.heldout)} held-out problems"
        lines.append(f"data: {counts}" + (f"; dropped {said}" if said else ""))
        lines += [f"suite {name}: {len(suite.heldout)} problems" for name, suite in parts.suites.items()]
    finally:
        parts.close()
    return lines


def main() -> None:
    """Download what a run reads, for machines without a network."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.fetch", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", help="as for rlrt.run, for example model=qwen3_1.7b data=dapo_math_17k eval=paper"
    )
    parser.add_argument("--config-dir", "-cd", action="append", default=[], help="a further folder of config groups")
    options = parser.parse_intermixed_args()

    def act() -> None:
        for line in fetch(load(composed(options.overrides, options.config_dir), overrides=options.overrides)):
            print(line, flush=True)

    sys.exit(guarded(act, options.overrides))


if __name__ == "__main__":
    main()
