"""``python -m rlrt.audit_verifier data=...``: test a verifier with probes, responses whose correct verdict is known.

A verifier that accepts a wrong answer teaches that answer; one that rejects a right answer removes the reward signal. Probes
are the expected answer itself, the dress in which models write it, equivalent forms, near misses, its letters in another order,
unfinished sums, junk, refusals, and an expression that never ends. The report also lists what could not be probed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from rlrt.config.compose import composed
from rlrt.config.load import load
from rlrt.config.refused import guarded
from rlrt.execution.parts import parts_of
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import table
from rlrt.types import Grade, Prompt
from rlrt.verifiers.dress import undressed
from rlrt.verifiers.literals import plain_decimal
from rlrt.verifiers.units import peeled

HANGING = "\\boxed{9^{9^{9^{9^{9^{9}}}}}}"
SHOWN = 12
"""At most this many wrong verdicts are printed."""
LARGEST_FACTOR = 1000
"""Upper bound (exclusive) in the search for a whole number's smaller factor."""
KINDS = (
    "expected answer", "dress", "equivalent form", "without a box", "near miss", "letters in another order", "unfinished sum",
    "many boxes, the last one wrong",
    "many answers in one box", "thought without an end", "junk", "refusal",
)  # fmt: skip
"""All kinds of probes in the order of the table, also those that were not used."""
CHOICE = re.compile(r"[A-E]")
"""An answer that may be the letter of a choice."""
NUMBERS_ONLY = "equivalent forms, near misses and unfinished sums"


@dataclass(frozen=True)
class Probe:
    """A response with a known verdict.

    Attributes:
        kind: one of ``KINDS``.
        text: the response.
        right: True if the response answers the problem correctly.
    """

    kind: str
    text: str
    right: bool


def number_probes(answer: str) -> list[Probe]:
    """Return equivalent forms, near misses and unfinished sums for a whole or decimal number; [] for any other answer."""
    digits = plain_decimal(answer)
    if digits is None or len(digits) > 13:
        return []
    return decimal_probes(digits) if "." in digits else whole_probes(int(digits))


def whole_probes(n: int) -> list[Probe]:
    """Return the probes for a whole number."""
    equal = [f"\\boxed{{{n}.0}}", f"\\boxed{{\\frac{{{2 * n}}}{{2}}}}", f"\\boxed{{ {n} }}", f"\\boxed{{{n + 1}-1}}"]
    near = [n + 1, n - 1, n * 10 + 1, -n if n else 7]
    factor = next((a for a in range(2, LARGEST_FACTOR) if n % a == 0 and a * a <= n), None)
    products = [] if factor is None else [f"There are {factor} * {n // factor} = ", f"{n // factor} \\times {factor}"]
    return [
        *(Probe("equivalent form", text, True) for text in equal),
        *(Probe("near miss", f"\\boxed{{{m}}}", False) for m in near),
        *sums(str(n), str(n - 3), "3", str(n + 1)),
        *(Probe("unfinished sum", text, False) for text in products),
        Probe("many boxes, the last one wrong", f"\\boxed{{{n}}} or rather \\boxed{{{n + 3}}}", False),
        Probe("many answers in one box", f"\\boxed{{{n}, {n + 1}, {n + 2}}}", False),
    ]


def decimal_probes(digits: str) -> list[Probe]:
    """Return the probes for a decimal number: ``145.0`` equals 145; ``1.50`` equals 1.5, but not 1.51 or 15."""
    value = Decimal(digits)
    places = len(digits.partition(".")[2])
    last = Decimal(1).scaleb(-places)
    shortest = f"{value.normalize():f}"
    equal = {f"{digits}0", shortest, f"\\frac{{{value.scaleb(places):.0f}}}{{{10**places}}}"} - {digits}
    near = [value + last, value - last, value * 10 if value else last * 10, -value if value else Decimal(7)]
    return [
        *(Probe("equivalent form", f"\\boxed{{{text}}}", True) for text in sorted(equal)),
        *(Probe("near miss", f"\\boxed{{{m:f}}}", False) for m in near),
        *sums(digits, f"{value - 3:f}", "3", f"{value + 1:f}"),
    ]


def sums(answer: str, first: str, second: str, other: str) -> list[Probe]:
    """Return answers without a box: a sentence and a sum that end with the answer, and unfinished sums.

    An unfinished sum states no value, or a value other than the answer, or has the answer as its last summand.

    Args:
        answer: the expected number.
        first, second: two numbers whose sum is the answer.
        other: a number that is not the answer.
    """
    total = f"{first} + {second}"
    last = f"11 - {answer[1:]}" if answer.startswith("-") else f"4 + {answer}"
    texts = (total, f"{total} =", f"{total} = \\box{{{other})", f"{total} = \\box{{{other}}}", f"${total}$", last)
    return [
        Probe("without a box", f"Therefore the answer is ${answer}$.", True),
        Probe("without a box", f"{total} = {answer}", True),
        *(Probe("unfinished sum", text, False) for text in texts),
    ]


def fraction_probes(answer: str) -> list[Probe]:
    """Return equivalent forms, near misses and unfinished sums for a fraction of whole numbers; [] for any other answer."""
    number = r"\d{1,12}"
    match = re.fullmatch(rf"(-?)(?:\\[dt]?frac\{{(-?{number})\}}\{{({number})\}}|({number})/({number}))", answer)
    if match is None or int(match[3] or match[5]) == 0:
        return []
    over, under = int(match[1] + "1") * int(match[2] or match[4]), int(match[3] or match[5])
    return [
        Probe("equivalent form", f"\\boxed{{\\dfrac{{{over}}}{{{under}}}}}", True),
        Probe("equivalent form", f"\\boxed{{{over}/{under}}}", True),
        Probe("near miss", f"\\boxed{{\\frac{{{over + under}}}{{{under}}}}}", False),
        *sums(
            str(Fraction(over, under)), f"\\frac{{{over - under}}}{{{under}}}", "1", f"\\frac{{{over + 1}}}{{{under}}}"
        ),
    ]


def dress_probes(answer: str) -> list[Probe]:
    """Return an answer as models dress it: delimiters, fonts, a full stop, another box, separators, another case, ``(C)``.

    [] for an answer that is no number, fraction, word or letter of a choice: its dress might be a part of it.
    """
    number, word = number_probes(answer) or fraction_probes(answer), words_of(answer)
    texts = [f"\\boxed{{${answer}$}}", f"\\boxed{{{answer}.}}", f"\\fbox{{{answer}}}", f"\\boxed{{ {answer}\\, }}"]
    if number:
        digits = plain_decimal(answer)
        grouped = f"{int(digits):,}" if digits is not None and "." not in digits else ""
        texts += [f"\\boxed{{{grouped.replace(',', sign)}}}" for sign in ("\\,", "{,}") if "," in grouped]
        texts += [f"\\boxed{{\\text{{{answer}}}}}", f"\\boxed{{x = {answer}}}"]
    elif word:
        texts += [f"\\boxed{{\\text{{{answer}}}}}", f"\\boxed{{{answer.upper()}}}", f"\\boxed{{\\textbf{{{answer}}}}}"]
    elif CHOICE.fullmatch(answer):
        texts += [
            f"\\boxed{{{text}}}" for text in (f"({answer})", f"\\textbf{{({answer})}}\\ 5", f"\\text{{{answer}}}")
        ]
    else:
        return bare_probes(answer)
    return [Probe("dress", text, True) for text in texts]


def bare_probes(answer: str) -> list[Probe]:
    """Return the bare number of an answer with a unit, a currency or a per cent sign, and another number; [] without one."""
    value, unit = peeled(undressed(answer))
    digits = plain_decimal(value)
    if not unit or digits is None or Decimal(digits) <= 1:  # a bare number of at most 1 may be a share
        return []
    other = f"{Decimal(digits) + 1:f}"
    return [Probe("dress", f"\\boxed{{{digits}}}", True), Probe("near miss", f"\\boxed{{{other}}}", False)]


def letter_probes(answer: str) -> list[Probe]:
    """Return an answer's words with their letters in another order, and another letter for a choice; [] without either."""
    if CHOICE.fullmatch(answer):
        other = "A" if answer != "A" else "B"
        return [
            Probe("near miss", f"\\boxed{{{other}}}", False),
            Probe("near miss", f"\\boxed{{\\textbf{{({other})}}\\ 5}}", False),
        ]
    words = words_of(answer)
    changed = {" ".join(order(word) for word in words) for order in (backwards, turned)} - {" ".join(words)}
    same = " ".join(words).casefold()
    return [
        Probe("letters in another order", f"\\boxed{{{text}}}", False)
        for text in sorted(changed)
        if text.casefold() != same
    ]


def words_of(answer: str) -> list[str]:
    """Return the words of an answer that is nothing but words, one of them with two letters or more; else []."""
    words = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", answer).split()
    return words if all(w.isalpha() for w in words) and any(len(w) > 1 for w in words) else []


def backwards(word: str) -> str:
    """Return a word from its end."""
    return word[::-1]


def turned(word: str) -> str:
    """Return a word with its first letter behind the others."""
    return word[1:] + word[:1]


def probes_of(prompt: Prompt) -> list[Probe]:
    """Return all probes for a problem."""
    answer = prompt.final
    gold = f"\\boxed{{{answer}}}" if answer is not None else prompt.solution
    probes = [] if gold is None else [Probe("expected answer", gold, True)]
    if answer is not None:
        probes += [*dress_probes(answer), *number_probes(answer), *fraction_probes(answer), *letter_probes(answer)]
        probes.append(Probe("thought without an end", f"<think>it may be \\boxed{{{answer}}}", False))
    return [
        *probes,
        *(
            Probe("junk", text, False)
            for text in ("", "\\boxed{}", "asdf qwer", "\\boxed{?}", "0 1 2 3 4 5 6 7 8 9 " * 20)
        ),
        Probe("refusal", "I am sorry, but I cannot answer this question.", False),
    ]


def audit(task: Any, prompts: Sequence[Prompt]) -> str:
    """Report verdicts by kind of probe, what was not probed, wrong verdicts, and the time for the endless expression."""
    pairs = [(prompt, probe) for prompt in prompts for probe in probes_of(prompt)]
    grades = grade_all(task, [(prompt, probe.text) for prompt, probe in pairs])
    begin = time.monotonic()
    (late,) = grade_all(task, [(prompts[0], HANGING)])
    seconds = time.monotonic() - begin
    rows = [["probe", "asked", "as it should", "taken for right", "taken for wrong", "errors"]]
    wrong = []
    for kind in KINDS:
        graded = [(prompt, probe, g) for (prompt, probe), g in zip(pairs, grades, strict=True) if probe.kind == kind]
        errors = sum(g.error for _, _, g in graded)
        accepted = [(p, q) for p, q, g in graded if g.correct and not q.right]
        rejected = [(p, q) for p, q, g in graded if not g.correct and not g.error and q.right]
        fine = len(graded) - errors - len(accepted) - len(rejected)
        rows.append([kind, *map(str, (len(graded), fine, len(accepted), len(rejected), errors))])
        wrong += [f"taken for right: {q.text!r:.60} for {p.final!r:.40}" for p, q in accepted]
        wrong += [f"taken for wrong: {q.text!r:.60} for {p.final!r:.40}" for p, q in rejected]
    verdict = "an error" if late.error else "taken for right" if late.correct else "wrong"
    lines = [
        table(rows),
        *unprobed(prompts),
        f"an expression that never ends: {verdict} after {seconds:.1f} s",
        *wrong[:SHOWN],
    ]
    if len(wrong) > SHOWN:
        lines.append(f"and {len(wrong) - SHOWN} more")
    return "\n".join(lines)


def unprobed(prompts: Sequence[Prompt]) -> list[str]:
    """Return a line for each reason why some probes could not be used; [] if all were used."""
    finals = [p.final for p in prompts if p.final is not None]
    other = [f for f in finals if not number_probes(f) and not fraction_probes(f)]
    whole = [f for f in finals if "." not in (plain_decimal(f) or ".")]
    silent = sum(p.final is None and p.solution is None for p in prompts)
    count, lines = len(prompts), []
    if other:
        lines.append(
            f"not probed for {NUMBERS_ONLY}: {len(other)} of {count} answers are neither a number nor a fraction (for example "
            f"{other[0]!r:.60})"
        )
    plain = [f for f in finals if not dress_probes(f)]
    if plain:
        lines.append(
            f"not probed for dress: {len(plain)} of {count} answers are neither a number, a fraction, words nor a letter (for "
            f"example {plain[0]!r:.60})"
        )
    if not any(words_of(f) for f in finals):
        lines.append("not probed for letters in another order: no answer is a word")
    if len(finals) < count:
        lines.append(
            f"not probed for {NUMBERS_ONLY}, nor with a thought without an end: {count - len(finals)} of {count} problems "
            "have no final answer as text"
        )
    if not whole:
        lines.append("not probed with many boxes, nor with many answers in one box: no answer is a whole number")
    if silent:
        lines.append(
            f"not probed with the expected answer: {silent} of {count} problems have neither answer nor solution as text"
        )
    return lines


def grade_all(task: Any, pairs: Sequence[tuple[Prompt, str]]) -> list[Any]:
    """Grade all pairs at once; if the grader raises, one by one, and an error is counted where it does."""
    try:
        return list(task.start_grading(pairs)())
    except Exception:  # a grader of the user's own may raise anything
        return [grade_of(task, pair) for pair in pairs]


def grade_of(task: Any, pair: tuple[Prompt, str]) -> Grade:
    """Grade one pair; an error where the grader raises."""
    try:
        (grade,) = task.start_grading([pair])()
    except Exception:  # a grader of the user's own may raise anything
        return Grade(correct=False, reward=0.0, error=True)
    return grade if isinstance(grade, Grade) else Grade(correct=False, reward=0.0, error=True)


def main() -> None:
    """Probe the verifier of a composed config's data set."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.audit_verifier", description=main.__doc__)
    parser.add_argument("overrides", nargs="*", help="as for rlrt.run, for example data=gsm8k data.path=FOLDER")
    parser.add_argument("--problems", type=int, default=20, help="problems that are probed")
    options = parser.parse_args()

    def act() -> None:
        task = parts_of(load(composed(options.overrides), overrides=options.overrides)).task
        task.prepare()
        try:
            print(audit(task, task.train[: max(1, options.problems)]))
        finally:
            task.close()

    sys.exit(guarded(act, options.overrides))


if __name__ == "__main__":
    main()
