"""What a run writes down before it begins: ``manifest.json`` and ``config.yaml``."""

from __future__ import annotations

from rlrt.config.schema import Settings
from rlrt.model.paths import paths_of
from rlrt.paths import PACKAGE
from rlrt.records.files import replace_text
from rlrt.records.folder import RunFolder
from rlrt.records.identity import identity, ingredients
from rlrt.records.manifest import environment, git_state
from rlrt.records.secrets import redacted
from rlrt.records.stored_config import config_text
from rlrt.training.learner import Learner


def write_manifest_and_config(settings: Settings, folder: RunFolder, learner: Learner) -> None:
    """``manifest.json``, which says whose folder this is, and then ``config.yaml``; without secrets."""
    made_of = ingredients(settings.plain)
    del made_of["config"]  # the other file has it
    folder.write_manifest(
        identity=identity(settings.plain),
        ingredients=made_of,
        choices=settings.names,
        overrides=redacted(settings.overrides),
        seed=settings.seed,
        processes=learner.world.size,
        paths=paths_of(learner.policy.model).stored(),
        **({"token_budget": settings.train.budget} if settings.plain["train"]["token_budget"] == "auto" else {}),
        declared=settings.method.declared(),
        **environment(),
        **git_state(PACKAGE),
    )
    replace_text(folder.path / "config.yaml", config_text(redacted(settings.plain)))
