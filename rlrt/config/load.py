"""A composed config to ``Settings``: every key known, every type right, every combination possible."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlrt.config.checks import check
from rlrt.config.options import key_of_other_options
from rlrt.config.schema import SECTIONS, Settings, Top
from rlrt.engines import engine as engines
from rlrt.engines.engine import Engine
from rlrt.errors import UserError, first_line, nearest, shown
from rlrt.keys import check_ranges, with_defaults
from rlrt.records.secrets import remember
from rlrt.tasks import base as tasks
from rlrt.tasks.base import Task
from rlrt.tasks.benchmark import Benchmark

INTERFACES = {"data": (Task, tasks.REQUIRED), "engine": (Engine, engines.REQUIRED)}
"""The interface of a section's class, and what the class must define itself."""
SLOTS = ("advantage", "credit", "policy_loss")


def locate(path: str, where: str) -> Any:
    """The class behind a dotted import path.

    Raises:
        UserError: if there is no such module or class, or it is not a dataclass.
    """
    module_name, _, name = str(path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # importing runs a user's module, which may raise anything
        raise UserError(
            f"{where}: expected the import path of a class, got {shown(path)} ({first_line(error)})."
        ) from None
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{where}: expected a dataclass whose fields are its config keys, got {shown(path)}.")
    return cls


def fields_of(cls: type) -> list[str]:
    """The config keys that a class declares."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


def refuse_unknown(values: Mapping[str, Any], known: list[str], path: str, option: str = "") -> None:
    """Refuse keys that nobody declares, with the full path and the nearest name.

    Args:
        values, known: the keys that came, and those there are.
        path: the section.
        option: what was chosen in a section whose keys depend on a choice.

    Raises:
        UserError: for the first such key.
    """
    for name in values:
        if name not in known:
            prefix = f"{path}." if path else ""
            if others := key_of_other_options(path, name, option):
                raise UserError(f"{prefix}{name}: {others}")
            raise UserError(
                f"{prefix}{name}: there is no such key.{nearest(f'{prefix}{name}', [prefix + k for k in known])}"
            )


def typed(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass from plain values, with OmegaConf's conversions and every value in its range.

    Raises:
        UserError: for a missing key, a wrong type or a value out of range; with the full path.
    """
    from omegaconf.errors import OmegaConfBaseException

    fields = fields_of(cls)
    for name in fields:
        if name not in values or values[name] == "???":
            raise UserError(f"{path + '.' if path else ''}{name}: this key has no value; set it on the command line.")
    hints = _hints(cls)
    converted = {}
    for name in fields:
        full = f"{path}.{name}" if path else name
        if _fits(values[name], hints[name]):  # nothing to convert: most keys of most configs
            converted[name] = values[name]
            continue
        try:
            if isinstance(values[name], str) and "${" in values[name]:  # a text; only Hydra's own composition resolves
                raise OmegaConfBaseException("an interpolation")
            converted[name] = _converted(values[name], hints[name])
        except (OmegaConfBaseException, OverflowError):
            kind = _kind(hints[name])
            came = f"{shown(values[name])} ({type(values[name]).__name__})"
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


def _converted(value: Any, hint: Any) -> Any:
    """A value as OmegaConf converts it to a type; a union with a list, which OmegaConf does not know, part by part.

    Raises:
        OmegaConfBaseException: for a value that does not fit.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException, ValidationError

    parts = _parts(hint)
    if len(parts) > 1 and list[str] in parts:
        for part in parts:
            with contextlib.suppress(OmegaConfBaseException):
                return _converted(value, part)
        raise ValidationError(f"{value!r} is none of {parts}")
    one = dataclasses.make_dataclass("One", [("value", hint)])
    plain: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(one), {"value": value}))
    return plain["value"]


def _fits(value: Any, hint: Any) -> bool:
    """True if a value is of a plain type that a hint names, or a list of such values."""
    import typing

    for part in _parts(hint):
        if part in (int, float, bool, str, type(None)) and type(value) is part:
            return True
        if typing.get_origin(part) is list and type(value) is list:
            (inner,) = typing.get_args(part)
            if all(_fits(v, inner) for v in value):
                return True
    return False


def _parts(hint: Any) -> Sequence[Any]:
    """A union's members, or the hint itself."""
    import types
    import typing

    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _kind(hint: Any) -> str:
    if any(getattr(part, "__origin__", None) is dict for part in _parts(hint)):
        return "a mapping {NAME: VALUE} or null"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        list[str]: "a list of texts",
    }
    lists = {part: _list_kind(part) for part in _parts(hint) if getattr(part, "__origin__", None) is list}
    return " or ".join((lists | words).get(part, str(part)) for part in _parts(hint))


def _list_kind(hint: Any) -> str:
    inner = hint.__args__[0]
    if getattr(inner, "__origin__", None) is dict and inner.__args__[1] is str:
        return 'a list of mappings with texts [{NAME: "TEXT"}], numbers in quotes too'
    return "a list [A,B]"


def refuse_no_section(name: str, values: Any) -> None:
    """Refuse a value where a section of keys belongs.

    Raises:
        UserError: naming the section.
    """
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected a section of keys ({name}.KEY=VALUE), got {shown(values)}.")


def section(name: str, values: Any) -> Any:
    """One of the sections that are the same for every run, from plain values.

    Raises:
        UserError: for a key that is unknown or missing, or a value that is wrong.
    """
    refuse_no_section(name, values)
    refuse_unknown(values, fields_of(SECTIONS[name]), name)
    return typed(SECTIONS[name], values, name)


def component(values: Mapping[str, Any], path: str, option: str | None = None) -> Any:
    """An instance of the class that a section names in ``_target_``, from the section's other keys.

    A class may name, as ``SECTIONS``, a key whose entries are sections of its own kind: their instances take their place.
    """
    refuse_no_section(path, values)
    rest = {k: v for k, v in values.items() if k != "_target_"}
    if "_target_" not in values:
        raise UserError(f"{path}._target_: this section must name its class.")
    cls = locate(values["_target_"], f"{path}._target_")
    interface, required = INTERFACES[path.split(".")[0]]
    lacking = [name for name in required if getattr(cls, name, None) in (None, getattr(interface, name, None))]
    if lacking:
        raise UserError(f"{path}._target_: {values['_target_']} cannot be used here: it has no {lacking[0]}.")
    cls = with_defaults(cls, interface)
    refuse_unknown(rest, fields_of(cls), path, option or cls.__name__)
    inner = getattr(cls, "SECTIONS", None)
    if inner is None:
        return typed(cls, rest, path)
    refuse_no_section(f"{path}.{inner}", rest.get(inner))
    made = typed(cls, rest | {inner: dict.fromkeys(rest[inner])}, path)
    setattr(made, inner, {name: component(one, f"{path}.{inner}.{name}") for name, one in rest[inner].items()})
    return made


def benchmark(name: str, values: Any) -> Benchmark:
    """One suite of ``eval.suites``."""
    path = f"eval.suites.{name}"
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a section of keys ({path}.path=...), got {shown(values)}.")
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
        raise UserError(f"method.name: expected text, got {shown(values['name'])}.")
    auxiliary = values["auxiliary"]
    if not isinstance(auxiliary, list):
        raise UserError(f"method.auxiliary: expected a list of class paths, got {shown(auxiliary)}.")
    wanted = [(slot, values[slot]) for slot in SLOTS if values[slot] is not None]
    wanted += [("auxiliary", path) for path in auxiliary]
    if values["advantage"] is None or values["credit"] is None:
        raise UserError("method.advantage and method.credit: expected class paths, got null.")
    classes = [(slot, locate(path, f"method.{slot}")) for slot, path in wanted]
    for slot, cls in classes:
        if not issubclass(cls, kinds[slot]):
            raise UserError(f"method.{slot}: expected a kind of {kinds[slot].__name__}, got {cls.__name__}.")
    for slot, cls in classes:
        for name in cls.train_keys:
            if not hasattr(train, name) or name not in fields_of(cls):
                raise UserError(f"method.{slot}: {cls.__name__} takes {name!r} from train, which has no such key.")
    own = [k for _, cls in classes for k in fields_of(cls) if k not in cls.train_keys]
    refuse_unknown(values, [*structural, *own], "method", values["name"])
    if values["policy_loss"] is None and not auxiliary:
        raise UserError(
            "method.policy_loss: a method without auxiliary losses needs one, got null: nothing would be learned."
        )
    filled: dict[str, Any] = {"auxiliary": []}
    for slot, cls in classes:
        given = {k: getattr(train, k) if k in cls.train_keys else values.get(k, "???") for k in fields_of(cls)}
        instance = typed(cls, given, "method")
        if slot == "auxiliary":
            filled["auxiliary"].append(instance)
        else:
            filled[slot] = instance
    check_contexts(filled["credit"], filled["auxiliary"])
    return Method(
        name=values["name"],
        advantage=filled["advantage"],
        credit=filled["credit"],
        policy_loss=filled.get("policy_loss"),
        auxiliary=filled["auxiliary"],
    )


def check_contexts(credit: Any, auxiliary: Sequence[Any]) -> None:
    """Refuse a credit that asks for a teacher context which nobody can show, or that would change a dense term's context.

    Raises:
        UserError: naming the context and those there are.
    """
    from rlrt.methods.contexts import Default, context_of

    name = type(credit).__name__
    try:
        asked = credit.contexts()
    except ValueError as error:  # a context refuses its own parameters
        raise UserError(f"method.credit: the teacher contexts of {name}: {first_line(error)}.") from None
    if isinstance(asked, str) or not asked:
        raise UserError(f"method.credit: {name}.contexts() gives a list of contexts, got {asked!r}.")
    for value in asked:
        refuse_context(value, f"method.credit: {name}")
    for term in auxiliary:
        for value in term.contexts_beside():
            refuse_context(value, f"method.auxiliary: {type(term).__name__}")
    dense = [type(term).__name__ for term in auxiliary if term.needs_teacher]
    if dense and context_of(asked[0]) != Default():
        raise UserError(
            f"method.auxiliary: the teacher of the dense term {dense[0]} would be shown {asked[0]!r}, the first context of "
            f"{name}, and not teacher.context; use a credit whose first context is 'default'."
        )


def refuse_context(value: Any, who: str) -> None:
    """Refuse a teacher context that nobody can show.

    Args:
        who: the slot and the class that asks for it.

    Raises:
        UserError: naming the context and those there are.
    """
    from rlrt.methods.contexts import KINDS, context_of

    try:
        known = context_of(value) is not None
        reason = f"expected a rlrt.methods.contexts.Context, or one of {', '.join(KINDS)}, with :K for the K-th sibling from 0"
    except ValueError as error:
        known, reason = False, first_line(error)
    if not known:
        raise UserError(f"{who} asks for the teacher context {value!r}; {reason}.")


def unresolved(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Return the sentence for an interpolation that has no value, naming its key.

    Args:
        overrides: what was typed, to show the value as it was typed.
    """
    key = str(getattr(error, "full_key", None) or "config")
    typed = {o.split("=", 1)[0].lstrip("+~"): o.partition("=")[2] for o in overrides}
    name = next((n for n in (key, key.split("[")[0]) if n in typed), key)
    value = f" {shown(typed[name])}" if name in typed else ""
    remedy = "name a key that is there, or write \\${ for a text"
    return f"{name}: the value{value} cannot be resolved ({first_line(error)}); {remedy}."


def load(config: Any, names: Mapping[str, str] | None = None, overrides: Sequence[str] = ()) -> Settings:
    """``Settings`` from a composed config.

    Args:
        config: a DictConfig, whose interpolations are resolved, or plain nested values, whose texts are texts; the ``hydra``
            section is ignored.
        names: the choice made in every config group, for the manifest.
        overrides: what was typed, for the manifest.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain: Any
    try:
        plain = copy.deepcopy(config) if isinstance(config, dict) else OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(unresolved(error, overrides)) from None
    plain.pop("hydra", None)
    remember(plain)
    components = ["method", "data", "engine"]
    top = fields_of(Top)
    refuse_unknown(plain, [*top, *SECTIONS, *components], "")
    for name in [*SECTIONS, *components]:
        refuse_no_section(name, plain.get(name))
    values = dataclasses.asdict(typed(Top, {k: plain.get(k, "???") for k in top}, ""))
    values |= {name: section(name, plain[name]) for name in SECTIONS}
    suites = {name: benchmark(name, entry) for name, entry in values["eval"].suites.items()}
    values["eval"] = dataclasses.replace(values["eval"], suites=suites)
    values |= {name: component(plain[name], name, (names or {}).get(name)) for name in ("engine", "data")}
    values["method"] = method(plain["method"], values["train"])
    settings = Settings(**values, names=dict(names or {}), plain=plain, overrides=list(overrides))
    check(settings)
    return settings
