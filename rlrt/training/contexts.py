"""What a teacher is shown."""

from __future__ import annotations

from collections.abc import Sequence

from rlrt.types import Prompt, Rollout


def sibling_contexts(rollouts: Sequence[Rollout], on_unique_correct: str) -> list[str | None]:
    """For each rollout the text of another correct rollout of its group: the first by index, the second for the first.

    A group's only correct rollout gets None (``plain``), its own text (``self``) or the reference (``reference``); a
    group without a correct rollout gets None. So a group has at most two distinct contexts.
    """
    correct: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        if rollout.grade.correct:
            correct.setdefault(rollout.group, []).append(i)
    contexts: list[str | None] = []
    for i, rollout in enumerate(rollouts):
        others = [j for j in correct.get(rollout.group, [])[:2] if j != i]
        if others:
            contexts.append(rollouts[others[0]].text)
        elif rollout.grade.correct and on_unique_correct == "self":
            contexts.append(rollout.text)
        elif rollout.grade.correct and on_unique_correct == "reference":
            contexts.append(rollout.prompt.solution)
        else:
            contexts.append(None)
    return contexts


def sibling_of_kind(rollouts: Sequence[Rollout], correct: bool, number: int) -> list[str | None]:
    """For each rollout the text of the ``number``-th other rollout of its group with that verdict, or None."""
    found: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        if rollout.grade.correct == correct:
            found.setdefault(rollout.group, []).append(i)
    contexts: list[str | None] = []
    for i, rollout in enumerate(rollouts):
        others = [j for j in found.get(rollout.group, []) if j != i]
        contexts.append(rollouts[others[number]].text if number < len(others) else None)
    return contexts


def reference_text(prompt: Prompt, context: str) -> str | None:
    """What a prompt's data offers the teacher: ``reference``, its solution; ``answer``, its final answer.

    A prompt that states its answer already gives its solution under ``answer`` too (RLSD's rule).
    """
    if context == "answer" and not prompt.states_answer:
        return prompt.final
    return prompt.solution
