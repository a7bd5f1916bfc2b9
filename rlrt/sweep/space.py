"""The space of a search: a distribution for each key, from ``hydra.sweeper.params`` and the command line (which wins)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlrt.config.load import refuse_unknown
from rlrt.errors import UserError, first_line

KINDS: Mapping[str, tuple[list[str], list[str]]] = {
    "float": (["low", "high"], ["log", "step"]),
    "int": (["low", "high"], ["log", "step"]),
    "choice": (["choices"], []),
}
"""Required and optional fields of each type of space."""


def space_of(params: Mapping[str, Any], arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return the overrides that all trials share, and the distribution of every searched key.

    Args:
        params: ``hydra.sweeper.params``.
        arguments: the command line's overrides, without those of Hydra's own section.

    Returns:
        (overrides, key to an ``optuna.distributions`` distribution).

    Raises:
        UserError: for an invalid space, or if no key has a space.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parse = OverridesParser.create().parse_override
    typed = {a.split("=", 1)[0].lstrip("+~") for a in arguments}
    fixed: list[str] = []
    space: dict[str, Any] = {}

    def take(argument: str) -> None:
        override = parse(argument)
        if override.is_sweep_override():
            space[override.get_key_element()] = from_grammar(override)
        else:
            fixed.append(argument)

    for name, value in params.items():
        if str(name).lstrip("+~") in typed:
            continue
        if isinstance(value, dict):
            space[name] = from_section(name, value)
        elif isinstance(value, list):
            space[name] = from_section(name, {"type": "choice", "choices": value})
        else:
            take(f"{name}={text_of(value)}")
    for argument in arguments:
        take(argument)
    if not space:
        raise UserError(
            "hydra.sweeper.params: a search needs at least one key with a space, for example "
            "hydra/sweeper=optuna 'method.lambda_init=interval(0,1)'."
        )
    return fixed, space


def from_section(name: str, section: Mapping[str, Any]) -> Any:
    """Build a distribution from a mapping such as ``{type: float, low: 0, high: 1, log: false}``.

    Raises:
        UserError: naming the key.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    where = f"hydra.sweeper.params.{name}"
    kind = str(section.get("type"))
    if kind not in KINDS:
        raise UserError(f"{where}.type: expected one of {', '.join(KINDS)}, got {kind!r}.")
    required, optional = KINDS[kind]
    fields = {k: v for k, v in section.items() if k != "type"}
    refuse_unknown(fields, [*required, *optional], where)
    lacking = [n for n in required if n not in fields]
    if lacking:
        raise UserError(f"{where}.{lacking[0]}: a space of type {kind} needs it.")
    if kind == "choice":
        if not isinstance(fields["choices"], list) or not fields["choices"]:
            raise UserError(f"{where}.choices: expected a list of values, got {fields['choices']!r}.")
        wrong = [c for c in fields["choices"] if c is not None and not isinstance(c, (bool, int, float, str))]
        if wrong:
            raise UserError(f"{where}.choices: expected numbers, texts, true, false or null, got {wrong[0]!r}.")
        return guarded(where, lambda: CategoricalDistribution(fields["choices"]))
    if isinstance(fields.get("log", False), str):
        raise UserError(f"{where}.log: expected true or false, got {fields['log']!r}.")
    whole = kind == "int"
    for bound in ("low", "high", "step"):
        value = fields.get(bound)
        bad = isinstance(value, bool) or not isinstance(value, int if whole else (int, float))
        if bad and not (bound == "step" and value is None):
            raise UserError(f"{where}.{bound}: expected a {'whole ' if whole else ''}number, got {value!r}.")
    numbers = {k: v for k, v in fields.items() if v is not None}
    return guarded(where, lambda: (IntDistribution if whole else FloatDistribution)(**numbers))


def from_grammar(override: Any) -> Any:
    """Build a distribution from Hydra's ``interval(a,b)``, ``tag(log,interval(a,b))``, ``a,b,c`` or ``range(a,b,step)``."""
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    where, value = override.get_key_element(), override.value()
    tags = set(getattr(value, "tags", ()))
    if isinstance(value, IntervalSweep):
        bounds = [float(bound or 0) for bound in (value.start, value.end)]  # Hydra gives ints or floats
        whole = "int" in tags
        low, high = (int(bound) if whole and bound.is_integer() else bound for bound in bounds)
        section = {"type": "int" if whole else "float", "low": low, "high": high, "log": "log" in tags}
        return from_section(where, section)
    if isinstance(value, RangeSweep):
        values = list(value.range())
        if not values:
            raise UserError(f"{override.input_line}: this range has no values.")
        whole = all(isinstance(v, int) for v in values)
        section = {"type": "int" if whole else "float", "low": values[0], "high": values[-1], "step": value.step}
        return from_section(where, section)
    return from_section(where, {"type": "choice", "choices": list(override.sweep_string_iterator())})


def guarded(where: str, make: Callable[[], Any]) -> Any:
    """Call ``make``, which builds a distribution, and turn Optuna's ValueError into a UserError.

    Raises:
        UserError: naming the key.
    """
    try:
        return make()
    except ValueError as error:
        raise UserError(f"{where}: {first_line(error)}") from None


def text_of(value: Any) -> str:
    """Format a value in Hydra's override grammar; text stays unchanged, as on the command line."""
    if isinstance(value, str):
        return value
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Format a trial's parameters as overrides."""
    return [f"{name}={text_of(value)}" for name, value in values.items()]


def described(space: Mapping[str, Any]) -> str:
    """Serialise a space as JSON, equal for equal spaces."""
    from optuna.distributions import distribution_to_json

    return json.dumps({name: json.loads(distribution_to_json(space[name])) for name in sorted(space)}, sort_keys=True)


def grid_size(space: Mapping[str, Any]) -> int:
    """Return the number of combinations in a grid over the space.

    Raises:
        UserError: for a range of numbers without steps.
    """
    size = 1
    for values in grid_values(space).values():
        size *= len(values)
    return size


def grid_values(space: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of every key on a grid.

    Raises:
        UserError: for a range of numbers without steps.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values: dict[str, list[Any]] = {}
    for name, over in space.items():
        if isinstance(over, CategoricalDistribution):
            values[name] = list(over.choices)
            continue
        if over.log or (isinstance(over, FloatDistribution) and over.step is None):
            raise UserError(
                f"hydra/sweeper/sampler=grid: {name} is a range of numbers without steps; give it a step, or choices."
            )
        count = round((over.high - over.low) / over.step) + 1
        values[name] = [over.low + i * over.step for i in range(count)]
    return values
