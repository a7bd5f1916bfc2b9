"""A composed config to ``Settings``: every key known, every type right, every combination possible."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlrt.config.checks import check
from rlrt.config.schema import SECTIONS, Settings, Top
from rlrt.errors import UserError, nearest
from rlrt.keys import check_ranges
from rlrt.tasks.benchmark import Benchmark

PARTS = {"data": ("prepare", "grade", "canonical"), "engine": ("load", "sample", "release", "close", "exact")}
"""What the class of a section must offer."""
SLOTS = ("advantage", "credit", "policy_loss")


def locate(path: str, where: str) -> Any:
    """The class behind a dotted import path.

    Raises:
        UserError: if there is no such module or class, or it is not a dataclass.
    """
    module_name, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing runs a user's module, which may raise anything
        raise UserError(f"{where}: expected the import path of a class, got {path!r} ({error}).") from None
    if not dataclasses.is_dataclass(found):
        raise UserError(f"{where}: expected a dataclass whose fields are its config keys, got {path!r}.")
    return found


def fields_of(cls: type) -> list[str]:
    """The config keys that a class declares."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def refuse_unknown(values: Mapping[str, Any], known: list[str], path: str) -> None:
    """Refuse keys that nobody declares, with the full path and the nearest name.

    Raises:
        UserError: for the first such key.
    """
    for name in values:
        if name not in known:
            prefix = f"{path}." if path else ""
            raise UserError(
                f"{prefix}{name}: there is no such key.{nearest(f'{prefix}{name}', [prefix + k for k in known])}"
            )


def typed(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass from plain values, with OmegaConf's conversions and every value in its range.

    Raises:
        UserError: for a missing key, a wrong type or a value out of range; with the full path.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fields = fields_of(cls)
    for name in fields:
        if name not in values or values[name] == "???":
            raise UserError(f"{path + '.' if path else ''}{name}: this key has no value; set it on the command line.")
    hints = _hints(cls)
    converted = {}
    for name in fields:
        full = f"{path}.{name}" if path else name
        if type(values[name]) in _plain_types(hints[name]):  # nothing to convert: most keys of most configs
            converted[name] = values[name]
            continue
        try:
            one = dataclasses.make_dataclass(cls.__name__, [(name, hints[name])])
            plain: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(one), {name: values[name]}))
            converted[name] = plain[name]
        except OmegaConfBaseException:
            kind = _kind(hints[name])
            came = f"{values[name]!r} ({type(values[name]).__name__})"
            raise UserError(f"{full}: expected {kind}, got {came}.") from None
    check_ranges_of(cls, converted, path)
    return cls(**converted)


def check_ranges_of(cls: type, values: dict[str, Any], path: str) -> None:
    """Check ranges before the class's own ``__post_init__`` runs, which may rely on them."""
    bare = dataclasses.make_dataclass(
        "Values", [(f.name, Any, dataclasses.field(metadata=f.metadata)) for f in dataclasses.fields(cls) if f.init]
    )
    check_ranges(bare(**values), path)


def _hints(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls)


def _plain_types(hint: Any) -> Sequence[Any]:
    """The types of a hint that is made of plain ones."""
    parts = _parts(hint)
    return parts if all(part in (int, float, bool, str, type(None)) for part in parts) else ()


def _parts(hint: Any) -> Sequence[Any]:
    """A union's members, or the hint itself."""
    import types
    import typing

    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _kind(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(words.get(part, str(part)) for part in _parts(hint))


def component(values: Mapping[str, Any], path: str) -> Any:
    """An instance of the class that a section names in ``_target_``, from the section's other keys."""
    rest = {k: v for k, v in values.items() if k != "_target_"}
    if "_target_" not in values:
        raise UserError(f"{path}._target_: this section must name its class.")
    cls = locate(values["_target_"], f"{path}._target_")
    lacking = [name for name in PARTS[path] if not hasattr(cls, name)]
    if lacking:
        raise UserError(f"{path}._target_: {values['_target_']} cannot be used here: it has no {lacking[0]}.")
    refuse_unknown(rest, fields_of(cls), path)
    return typed(cls, rest, path)


def benchmark(name: str, values: Any) -> Benchmark:
    """One suite of ``eval.suites``."""
    path = f"eval.suites.{name}"
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a section of keys ({path}.path=...), got {values!r}.")
    refuse_unknown(values, fields_of(Benchmark), path)
    made: Benchmark = typed(Benchmark, values, path)
    made.name = name
    return made


def method(values: Mapping[str, Any], train: Any) -> Any:
    """The method: each slot's class takes the keys it declares from the flat section (clip bounds from ``train``)."""
    from rlrt.methods.method import Advantage, Auxiliary, Credit, Method, PolicyLoss

    kinds = {"advantage": Advantage, "credit": Credit, "policy_loss": PolicyLoss, "auxiliary": Auxiliary}
    structural = ["name", *SLOTS, "auxiliary"]
    for name in structural:
        if name not in values:
            raise UserError(f"method.{name}: this key has no value; see conf/method/grpo.yaml.")
    if not isinstance(values["name"], str) or not values["name"]:
        raise UserError(f"method.name: expected text, got {values['name']!r}.")
    auxiliary = values["auxiliary"]
    if not isinstance(auxiliary, list):
        raise UserError(f"method.auxiliary: expected a list of class paths, got {auxiliary!r}.")
    wanted = [(slot, values[slot]) for slot in SLOTS if values[slot] is not None]
    wanted += [("auxiliary", path) for path in auxiliary]
    if values["advantage"] is None or values["credit"] is None:
        raise UserError("method.advantage and method.credit: expected class paths, got null.")
    classes = [(slot, locate(path, f"method.{slot}")) for slot, path in wanted]
    for slot, cls in classes:
        if not issubclass(cls, kinds[slot]):
            raise UserError(f"method.{slot}: expected a kind of {kinds[slot].__name__}, got {cls.__name__}.")
    own = [k for _, cls in classes for k in fields_of(cls) if not hasattr(train, k)]
    refuse_unknown(values, [*structural, *own], "method")
    if values["policy_loss"] is None and not auxiliary:
        raise UserError(
            "method.policy_loss: a method without auxiliary losses needs one, got null: nothing would be learned."
        )
    filled: dict[str, Any] = {"auxiliary": []}
    for slot, cls in classes:
        given = {k: getattr(train, k) if hasattr(train, k) else values.get(k, "???") for k in fields_of(cls)}
        instance = typed(cls, given, "method")
        if slot == "auxiliary":
            filled["auxiliary"].append(instance)
        else:
            filled[slot] = instance
    return Method(
        name=values["name"],
        advantage=filled["advantage"],
        credit=filled["credit"],
        policy_loss=filled.get("policy_loss"),
        auxiliary=filled["auxiliary"],
    )


def load(config: Any, names: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Settings:
    """``Settings`` from a composed config.

    Args:
        config: a DictConfig, or plain nested values; the ``hydra`` section is ignored.
        names: the choice made in every config group, for the manifest.
        overrides: what was typed, for the manifest.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {str(error).splitlines()[0]}") from None
    plain.pop("hydra", None)
    components = ["method", "data", "engine"]
    top = fields_of(Top)
    refuse_unknown(plain, [*top, *SECTIONS, *components], "")
    for name in [*SECTIONS, *components]:
        if not isinstance(plain.get(name), dict):
            raise UserError(f"{name}: expected a section of keys ({name}.KEY=VALUE), got {plain.get(name)!r}.")
    values = dataclasses.asdict(typed(Top, {k: plain.get(k, "???") for k in top}, ""))
    for name, cls in SECTIONS.items():
        refuse_unknown(plain[name], fields_of(cls), name)
        values[name] = typed(cls, plain[name], name)
    values["eval"].suites = {name: benchmark(name, entry) for name, entry in values["eval"].suites.items()}
    values["engine"] = component(plain["engine"], "engine")
    values["data"] = component(plain["data"], "data")
    values["method"] = method(plain["method"], values["train"])
    settings = Settings(**values, names=dict(names or {}), plain=plain, overrides=list(overrides))
    check(settings)
    return settings
