"""The space of a search: a distribution for each key, from ``hydra.sweeper.params`` and the command line (which wins)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlrt.config.load import refuse_unknown
from rlrt.config.overrides import parsed, written
from rlrt.errors import UserError, first_line, shown
from rlrt.keys import LARGEST, finite
from rlrt.sweep.plan import count, values_of

KINDS: Mapping[str, tuple[list[str], list[str]]] = {
    "float": (["low", "high"], ["log", "step"]),
    "int": (["low", "high"], ["log", "step"]),
    "choice": (["choices"], []),
}
"""Required and optional fields of each type of space."""


def space_of(
    params: Mapping[str, Any], arguments: Sequence[str], folders: Sequence[Path] = ()
) -> tuple[list[str], dict[str, Any]]:
    """Return the overrides that all trials share, and the distribution of every searched key.

    A text among the values of a distribution is in Hydra's grammar, ready for an override.

    Args:
        params: ``hydra.sweeper.params``.
        arguments: the command line's overrides, without those of Hydra's own section.
        folders: further folders with config groups.

    Returns:
        (overrides, key to an ``optuna.distributions`` distribution).

    Raises:
        UserError: for an invalid space, or if no key has a space.
    """
    typed = {a.split("=", 1)[0].lstrip("+~") for a in arguments}
    fixed: list[str] = []
    space: dict[str, Any] = {}

    def take(argument: str) -> None:
        (override,) = parsed([argument], folders)
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
            raise UserError(f"{where}.choices: expected a list of values, got {shown(fields['choices'])}.")
        wrong = [c for c in fields["choices"] if c is not None and not isinstance(c, (bool, int, float, str))]
        if wrong:
            raise UserError(f"{where}.choices: expected numbers, texts, true, false or null, got {shown(wrong[0])}.")
        return choice(where, [written(c) if isinstance(c, str) else c for c in fields["choices"]])
    return numbers(where, kind == "int", {k: v for k, v in fields.items() if v is not None})


def choice(where: str, values: Sequence[Any]) -> Any:
    """Build the distribution of a choice; a value that appears twice counts once, as in a grid.

    Values that Optuna could not tell apart (1, 1.0 and true) become texts of Hydra's grammar, which it can.
    """
    from optuna.distributions import CategoricalDistribution

    different = list({text_of(value): value for value in values}.values())
    alike = len(set(different)) < len(different)
    return guarded(where, lambda: CategoricalDistribution([text_of(v) if alike else v for v in different]))


def numbers(where: str, whole: bool, fields: Mapping[str, Any]) -> Any:
    """Build a distribution of numbers from ``low``, ``high`` and perhaps ``log`` and ``step``.

    Raises:
        UserError: for a bound that is no finite number, or bounds without a number between them.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    if not isinstance(fields.get("log", False), bool):
        raise UserError(f"{where}.log: expected true or false, got {shown(fields['log'])}.")
    for bound in ("low", "high", "step"):
        value = fields.get(bound, 1)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise UserError(f"{where}.{bound}: expected a {'whole ' if whole else ''}number, got {shown(value)}.")
        if not finite(value) or (isinstance(value, int) and abs(value) > LARGEST):
            limit = f"number of at most {LARGEST}" if isinstance(value, int) else "finite number"
            raise UserError(f"{where}.{bound}: expected a {limit}, got {shown(value)}.")
    low, high, step = fields["low"], fields["high"], fields.get("step")
    if low > high:
        raise UserError(f"{where}: expected low to be at most high, got low={low} and high={high}.")
    if not math.isfinite(high - low):
        raise UserError(f"{where}: expected bounds whose difference is a finite number, got {low} and {high}.")
    if fields.get("log") and low <= 0:
        raise UserError(f"{where}: expected low to be above 0 on a logarithmic scale, got {low}.")
    if step is not None:
        fields = {**fields, "high": last_point(where, low, high, step)}
    return guarded(where, lambda: (IntDistribution if whole else FloatDistribution)(**fields))


def last_point(where: str, low: Any, high: Any, step: Any) -> Any:
    """Return the largest of low, low + step, ... that is at most high; Optuna would take it too, with a warning.

    Raises:
        UserError: for a step that leads nowhere, or to more points than a range can have.
    """
    if step <= 0 or (low < high and step > high - low):
        raise UserError(
            f"{where}.step: expected a number above 0 and of at most high - low = {high - low}, got {step}."
        )
    steps = (high - low) / step
    if steps > LARGEST:
        raise UserError(f"{where}.step: expected at most {LARGEST} steps from {low} to {high}, got the step {step}.")
    exact = [Decimal(str(number)) for number in (low, high, step)]
    last = exact[0] + (exact[1] - exact[0]) // exact[2] * exact[2]
    return int(last) if isinstance(low, int) and isinstance(step, int) else float(last)


def from_grammar(override: Any) -> Any:
    """Build a distribution from Hydra's ``interval(a,b)``, ``tag(log,interval(a,b))``, ``a,b,c`` or ``range(a,b,step)``.

    Raises:
        UserError: naming the key.
    """
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    where, value = override.get_key_element(), override._value
    tags = set(getattr(value, "tags", ()))
    if unknown := sorted(tags - {"log", "int", "float"}):
        raise UserError(f"{override.input_line}: expected the tags log, int or float, got {', '.join(unknown)}.")
    if isinstance(value, IntervalSweep):
        bounds = [
            float(0 if bound is None else bound) for bound in (value.start, value.end)
        ]  # Hydra gives ints or floats
        whole = "int" in tags
        low, high = (int(bound) if whole and bound.is_integer() else bound for bound in bounds)
        return from_section(
            where, {"type": "int" if whole else "float", "low": low, "high": high, "log": "log" in tags}
        )
    number = count(override)
    if isinstance(value, RangeSweep):
        first: Any = value.start
        step: Any = value.step
        whole = all(isinstance(v, int) for v in (first, value.stop, step))
        last = first + (number - 1) * step if whole else float(Decimal(str(first)) + (number - 1) * Decimal(str(step)))
        section = {"low": min(first, last), "high": max(first, last), "step": abs(step)}
        return from_section(where, {"type": "int" if whole else "float", **section})
    return choice(where, values_of(override))


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
    """Format a value in Hydra's override grammar; a text is in it already."""
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
    """Return the number of combinations in a grid over the space, without making them.

    Raises:
        UserError: for a range of numbers without steps.
    """
    return math.prod(points(name, over) for name, over in space.items())


def points(name: str, over: Any) -> int:
    """Return the number of values of a key on a grid.

    Raises:
        UserError: for a range of numbers without steps.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(over, CategoricalDistribution):
        return len(over.choices)
    if over.log or (isinstance(over, FloatDistribution) and over.step is None):
        raise UserError(
            f"hydra/sweeper/sampler=grid: {name} is a range of numbers without steps; give it a step, or choices."
        )
    return round((over.high - over.low) / over.step) + 1


def grid_values(space: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of every key on a grid.

    Raises:
        UserError: for a range of numbers without steps.
    """
    from optuna.distributions import CategoricalDistribution

    values: dict[str, list[Any]] = {}
    for name, over in space.items():
        number = points(name, over)
        categorical = isinstance(over, CategoricalDistribution)
        values[name] = list(over.choices) if categorical else [over.low + i * over.step for i in range(number)]
    return values
