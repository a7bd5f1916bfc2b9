"""What Hydra must know of rlrt: where the config lies, the studies on its search path, names of folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlrt.identity import identity, readable

PACKAGE = Path(__file__).parent


def _shipped(name: str) -> Path:
    """``conf`` or ``sweeps``: inside an installed wheel, or beside the package in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONFIG = _shipped("conf")
SWEEPS = _shipped("sweeps")


def register() -> None:
    """Add ``sweeps/`` to Hydra's search path and the resolver ``rlrt.run_name``; harmless when repeated."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin
    from omegaconf import OmegaConf

    class SweepsOnSearchPath(SearchPathPlugin):
        """``+sweep=NAME`` finds ``sweeps/sweep/NAME.yaml``."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            """Append the folder of studies."""
            search_path.append(provider="rlrt", path=f"file://{SWEEPS}")

    if not OmegaConf.has_resolver("rlrt.run_name"):
        OmegaConf.register_new_resolver("rlrt.run_name", run_name)
        Plugins.instance().register(SweepsOnSearchPath)


def run_name(*, _root_: Any) -> str:
    """A run's folder: what was typed, readable, and its identity."""
    from omegaconf import OmegaConf

    overrides = [str(o) for o in OmegaConf.select(_root_, "hydra.overrides.task", default=[])]
    keys = [k for k in _root_ if k != "hydra"]
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(_root_, keys), resolve=True)
        short = identity(plain)
    except Exception:  # a config that cannot be read fails with its own sentence once the run begins
        short = "invalid"
    choices = OmegaConf.select(_root_, "hydra.runtime.choices", default={})
    fallback = f"method={choices.get('method')}"
    return f"{readable(overrides, fallback)}-{short}"


@contextmanager
def composer(config_dirs: Sequence[str] = ()) -> Iterator[Callable[[Sequence[str]], Any]]:
    """A function from overrides to the config that Hydra composes, ``hydra`` section included; nothing is run.

    Args:
        config_dirs: more folders to look for config groups in.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    GlobalHydra.instance().clear()
    more = [f"hydra.searchpath=[{','.join(f'file://{Path(d).resolve()}' for d in config_dirs)}]"] if config_dirs else []
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        yield lambda overrides: compose("config", overrides=[*more, *overrides], return_hydra_config=True)


def composed(overrides: Sequence[str]) -> Any:
    """The config of one run, without the ``hydra`` section."""
    from omegaconf import OmegaConf

    with composer() as compose:
        whole = compose(overrides)
    return OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"])


GROUPS = sorted(p.name for p in CONFIG.iterdir() if p.is_dir() and p.name not in ("hydra", "tuned"))
"""Config groups that users choose from."""


def composed_keys(arguments: Sequence[str]) -> list[str]:
    """All dotted keys of the config that the given group choices compose to."""
    config = composed([a for a in arguments if a.split("=")[0] in GROUPS and "," not in a])

    return dotted(config, "")


def hydra_keys(arguments: Sequence[str]) -> list[str]:
    """The keys of ``hydra.launcher`` and ``hydra.sweeper`` under the chosen launcher and sweeper."""
    from hydra.errors import HydraException

    chosen = [a for a in arguments if a.startswith(("hydra/launcher=", "hydra/sweeper="))]
    with composer() as compose:
        try:
            hydra = compose(chosen).hydra
        except HydraException:
            hydra = compose([]).hydra
    return [*dotted(hydra.launcher, "hydra.launcher."), *dotted(hydra.sweeper, "hydra.sweeper.")]


def dotted(node: Any, prefix: str) -> list[str]:
    """All keys below a node of a config, in full."""
    found = []
    for name in node:
        full = f"{prefix}{name}"
        value = node._get_node(name)
        found += dotted(value, full + ".") if hasattr(value, "keys") and len(value) else [full]
    return found
