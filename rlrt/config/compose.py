"""Composition of configs with Hydra: the search path, tuned values of derived methods, and folder names."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlrt.config.options import content, inherited, option_file
from rlrt.config.overrides import grammar, mapping_opened, parsed, refuse_no_option
from rlrt.errors import UserError
from rlrt.keys import leaves
from rlrt.paths import CONFIG, SWEEPS
from rlrt.records.files import resolved
from rlrt.records.identity import identity
from rlrt.records.names import readable


def register() -> None:
    """Add ``sweeps/`` to Hydra's search path, and the resolvers ``rlrt.run_name`` and ``rlrt.choose:SWITCH,YES,NO``.

    Calling it again has no effect.
    """
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin
    from omegaconf import OmegaConf

    class SweepsOnSearchPath(SearchPathPlugin):
        """Search path plugin by which ``+sweep=NAME`` reads ``sweeps/sweep/NAME.yaml``."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            """Append the folder of studies."""
            search_path.append(provider="rlrt", path=f"file://{SWEEPS}")

    if not OmegaConf.has_resolver("rlrt.run_name"):
        OmegaConf.register_new_resolver("rlrt.run_name", run_name)
        OmegaConf.register_new_resolver("rlrt.choose", lambda switch, yes, no: yes if switch else no)
        Plugins.instance().register(SweepsOnSearchPath)


def run_name(*, _root_: Any) -> str:
    """Return the name of a run's folder: the typed overrides in readable form, and the run's identity."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    typed: Any = OmegaConf.select(_root_, "hydra.overrides.task", default=[])
    try:
        overrides = [str(o) for o in typed]
    except OmegaConfBaseException:  # an interpolation that leads nowhere: the run refuses it by its key
        unresolved: Any = OmegaConf.to_container(typed, resolve=False)
        overrides = [str(o) for o in unresolved]
    keys = [k for k in _root_ if k != "hydra"]
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(_root_, keys), resolve=True)
        short = identity(plain)
    except Exception:  # an invalid config fails with its own sentence once the run begins
        short = "invalid"
    choices = OmegaConf.select(_root_, "hydra.runtime.choices", default={})
    fallback = f"method={choices.get('method')}"
    return f"{readable(overrides, fallback)}-{short}"


@contextmanager
def composer(config_dirs: Sequence[str] = ()) -> Iterator[Callable[[Sequence[str]], Any]]:
    """Yield a function from overrides to the config that Hydra composes, ``hydra`` section included; nothing is run.

    Hydra reads the files once per combination of group choices; values are then set by Hydra's own function. So a sweep of a
    thousand jobs over a few choices composes in seconds (docs/LOG.md).

    Args:
        config_dirs: additional folders with config groups.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    GlobalHydra.instance().clear()
    search_path = (
        [f"hydra.searchpath=[{','.join(f'file://{resolved(Path(d))}' for d in config_dirs)}]"] if config_dirs else []
    )
    folders = [CONFIG, *map(Path, config_dirs)]
    composed_choices: dict[tuple[str, ...], tuple[Any, list[str]]] = {}

    def composed_of(overrides: Sequence[str]) -> Any:
        loader: Any = GlobalHydra.instance().config_loader()
        added_groups = {
            p.name for folder in folders[1:] for p in folder.iterdir() if p.is_dir()
        }  # Hydra does not list them yet
        groups = set(loader.list_groups("")) | added_groups | {"hydra"}
        values = [o for o in overrides if is_value(o, groups)]
        choices = tuple(o for o in overrides if o not in values)
        for choice in parsed(choices):
            refuse_no_option(choice)
        if choices not in composed_choices:
            group_overrides = [*search_path, *study_sweeper(choices), *map(mapping_opened, choices)]
            whole = compose("config", overrides=group_overrides, return_hydra_config=True)
            inherits = tuned_by_ancestor(whole.hydra.runtime.choices, overrides, folders)
            if [o for o in inherits if o.startswith(TUNED)]:
                whole = compose("config", overrides=[*group_overrides, *inherits], return_hydra_config=True)
                inherits = []
            composed_choices[choices] = whole, inherits
        whole, inherits = composed_choices[choices]
        config = copy.deepcopy(whole)
        loader._apply_overrides_to_config(parsed([*inherits, *map(mapping_opened, values)]), config)
        return config

    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        yield composed_of


TUNED = "tuned@_global_"
"""The config group of values that are tuned for a pair of model and method."""


def tuned_by_ancestor(choices: Mapping[str, Any], typed: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return the overrides that give a derived method the tuned values of its ancestor, and announce them on standard error.

    The result is one choice of the ancestor's file in ``tuned``, which Hydra composes in the same position as for the ancestor,
    or single values, if the derived method sets some of them itself. It is empty if a tuned choice was typed.

    Args:
        choices: the chosen option of every config group.
        typed: the typed overrides.
        folders: the folders with config groups.
    """
    if any(o.lstrip("+~").startswith("tuned") for o in typed):
        return []
    model, method = str(choices.get("model")), str(choices.get("method"))
    ancestor, values, whole = inherited(model, method, folders)
    if not values:
        return []
    assignments = [f"{name}={grammar(value)}" for name, value in values.items()]
    if (model, method) not in _announced:
        _announced.add((model, method))
        print(
            f"method={method} has no tuned values of its own for model={model} and takes those of {ancestor}: "
            f"{' '.join(assignments)} (a file tuned/{model}_{method}.yaml would take precedence)",
            file=sys.stderr,
        )
    return [f"{TUNED}={model}_{ancestor}"] if whole else assignments


_announced: set[tuple[str, str]] = set()
"""Pairs of model and method whose inherited values this process has announced."""


def with_tuned(arguments: Sequence[str]) -> list[str]:
    """Return a single run's command line with the tuned values that its method inherits; sweeps get them from ``composer``."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    dirs = config_dirs_of(arguments)
    folders = [CONFIG, *map(Path, dirs)]
    overrides = [a for a in arguments if "=" in a and not a.startswith("-") and a not in dirs]
    if not dirs and not any(o.startswith("experiment=") for o in overrides):
        choices = {group: choice(group, arguments, folders) for group in ("model", "method")}
    else:
        try:
            with composer(dirs) as compose:
                choices = dict(compose(overrides).hydra.runtime.choices)
        except (HydraException, OmegaConfBaseException, ValueError, OSError, RecursionError):
            return list(arguments)  # the run itself reports the error
    names = {o.split("=", 1)[0].lstrip("+~") for o in overrides}
    inherited_overrides = [o for o in tuned_by_ancestor(choices, arguments, folders) if o.split("=", 1)[0] not in names]
    positions = (i for i, a in enumerate(arguments) if a.startswith(("method=", "experiment=")))
    at = next(positions, len(arguments))  # next to the choice: options and overrides must not mix
    return [*arguments[:at], *inherited_overrides, *arguments[at:]]


def config_dirs_of(arguments: Sequence[str]) -> list[str]:
    """Return the folders of ``--config-dir``, in both of its spellings."""
    flags = ("--config-dir", "-cd")
    separate = [b for a, b in itertools.pairwise(arguments) if a in flags]
    return separate + [a.split("=", 1)[1] for a in arguments if a.startswith(tuple(f"{flag}=" for flag in flags))]


def choice(group: str, arguments: Sequence[str], folders: Sequence[Path]) -> str:
    """Return the option of a group that a command line chooses: directly, by its experiment, or by default."""
    typed = {a.split("=", 1)[0]: a.split("=", 1)[1].strip("'\"") for a in arguments if "=" in a}
    if group in typed:
        return typed[group]
    experiment = option_file("experiment", typed.get("experiment", ""), folders)
    for file, name in ((experiment, f"override /{group}"), (CONFIG / "config.yaml", group)):
        for default in content(file).get("defaults", []) if file is not None else []:
            if isinstance(default, dict) and name in default:
                return str(default[name])
    return ""


def is_value(override: str, groups: Collection[str]) -> bool:
    """True if an override sets, adds or removes a value; False if it chooses from a config group or changes Hydra's section
    (other parts of that section may read it)."""
    name = override.split("=", 1)[0].lstrip("+~")
    return "/" not in name and "@" not in name and name not in groups and not name.startswith("hydra.")


def study_sweeper(overrides: Sequence[str]) -> list[str]:
    """Return ``hydra/sweeper=NAME`` if a study (``+sweep=...``) overrides it in its defaults list and none was typed.

    Hydra itself uses the first override that it reads, and reads conf/config.yaml before the study.
    """
    from omegaconf import OmegaConf

    study = next((o.split("=", 1)[1] for o in overrides if o.startswith("+sweep=")), "")
    file = SWEEPS / "sweep" / f"{study}.yaml"
    if not file.is_file() or any(o.startswith("hydra/sweeper=") for o in overrides):
        return []
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    defaults = content.get("defaults", [])
    named = [d["override /hydra/sweeper"] for d in defaults if isinstance(d, dict) and "override /hydra/sweeper" in d]
    return [f"hydra/sweeper={name}" for name in named]


def plain_of(whole: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a composed config as plain values without the ``hydra`` section, and the option of every config group."""
    from omegaconf import OmegaConf

    keys = [str(k) for k in whole if k != "hydra"]
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(whole, keys), resolve=True)
    return values, {k: str(v) for k, v in whole.hydra.runtime.choices.items() if "/" not in k and v is not None}


def composed(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> Any:
    """Return the config of one run, without the ``hydra`` section; ``config_dirs`` are further folders with config groups."""
    from omegaconf import OmegaConf

    with composer(config_dirs) as compose:
        whole = compose(overrides)
    return OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"])


GROUPS = sorted(p.name for p in CONFIG.iterdir() if p.is_dir() and p.name not in ("hydra", "tuned"))
"""Config groups that users choose from."""


def composed_keys(arguments: Sequence[str]) -> list[str]:
    """Return all dotted keys of the config that the given group choices compose to."""
    config = composed([a for a in arguments if a.split("=")[0] in GROUPS and "," not in a])
    return dotted(config, "")


def hydra_keys(arguments: Sequence[str]) -> list[str]:
    """Return the keys of ``hydra.launcher`` and ``hydra.sweeper`` under the chosen launcher and sweeper."""
    from hydra.errors import HydraException

    group_overrides = [a for a in arguments if a.startswith(("hydra/launcher=", "hydra/sweeper="))]
    with composer() as compose:
        try:
            hydra = compose(group_overrides).hydra
        except (HydraException, UserError):
            hydra = compose([]).hydra
    return [*dotted(hydra.launcher, "hydra.launcher."), *dotted(hydra.sweeper, "hydra.sweeper.")]


def dotted(node: Any, prefix: str) -> list[str]:
    """Return all dotted keys below a node of a config; no interpolation is resolved."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(node, resolve=False)
    return list(leaves(plain, prefix, keep_empty=True))
