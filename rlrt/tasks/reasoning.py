"""Procedural problems of reasoning-gym, graded by its own scoring."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from rlrt.errors import UserError, first_line, nearest
from rlrt.keys import key
from rlrt.tasks.base import content_id
from rlrt.tasks.graded import Graded
from rlrt.tasks.questions import plain
from rlrt.types import Prompt
from rlrt.verifiers.answers import after_thinking, final_answer
from rlrt.verifiers.gym import Problem, arguments_of, entry, scored
from rlrt.verifiers.verifier import InProcesses, Verifier

TASKS = tuple(
    """
    ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation binary_matrix
    bitwise_arithmetic caesar_cipher calendar_arithmetic chain_sum circuit_logic color_cube_rotation complex_arithmetic
    count_bits count_primes countdown course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery
    family_relationships figlet_font fraction_simplification futoshiki game_of_life gcd group_anagrams gsm_symbolic jugs
    kakurasu knights_knaves largest_island lcm leg_counting letter_counting letter_jumble mahjong_puzzle manipulate_matrix
    maze mini_sudoku modulo_grid n_queens needle_haystack number_filtering number_format number_sequence number_sorting
    palindrome_generation palindrome_partitioning path_star polynomial_equations pool_matrix power_function products
    puzzle24 quantum_lock rearc rectangle_count rotate_matrix rotten_oranges self_reference sentence_reordering
    shortest_path simple_equations simple_geometry simple_integration sokoban spell_backward spiral_matrix
    string_insertion string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals
    tower_of_hanoi tsumego word_sequence_reversal word_sorting zebra_puzzles
    """.split()  # noqa: SIM905
)
"""Tasks of version 0.1.25 whose problems are the same in every process, whose own answer scores 1, and whose scoring neither
fails on junk nor gives it the full score on every problem (benchmarks/audit_gym.py; docs/data.md)."""


@dataclass
class ReasoningGym(Graded):
    """One task of reasoning-gym. ``data.*``:"""

    task: str = key("the task; only tasks with trustworthy scoring are accepted")
    task_args: dict[str, Any] | None = key(
        "the task's own arguments, which set its difficulty: {min_terms: 2, max_terms: 3}; null: its defaults"
    )
    version: str = key("the required version of reasoning-gym: another version makes other problems")
    problems: int = key("number of training problems", least=2)
    heldout_prompts: int = key("number of evaluation problems, from another seed; none of them is trained on", least=1)
    data_seed: int = key("seed of the problems; the run's seed does not change them", least=0)
    instruction: str = key("format of the answer, which the model reads after the question")
    max_prompt_tokens: int = key("longer prompts are dropped, counted and reported", "tokens", least=1)
    train: list[Prompt] = field(default_factory=list, init=False, repr=False)
    heldout: list[Prompt] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a task that is unknown or has untrustworthy scoring."""
        if self.task not in TASKS:
            raise UserError(
                f"data.task: expected one of the {len(TASKS)} tasks of docs/data.md, got {self.task!r}."
                f"{nearest(self.task, TASKS)}"
            )

    def check_installed(self) -> None:
        """Refuse an environment without reasoning-gym, or with another version.

        Raises:
            UserError: naming what to install.
        """
        try:
            version = metadata.version("reasoning-gym")
        except metadata.PackageNotFoundError:
            raise UserError(
                f"data=reasoning_gym needs the package reasoning-gym {self.version}, which is not installed in this "
                "environment; install it with: make setup EXTRAS=gym."
            ) from None
        if version != self.version:
            raise UserError(
                f"data.version: expected reasoning-gym {self.version}, found {version}; install that version, or set "
                "data.version to the installed one (its problems may differ)."
            )

    def prepare(self) -> None:
        """Make the problems.

        Raises:
            UserError: if reasoning-gym is not installed, or has another version.
        """
        self.check_installed()
        self._check_arguments()
        self.dropped = Counter()
        self.heldout = self._made(self.heldout_prompts, self.data_seed + 1, set())
        self.train = self._made(self.problems, self.data_seed, {plain(p.text) for p in self.heldout})
        if not self.train:
            raise UserError(f"data.task: {self.task} has no problem that is not held out; lower data.heldout_prompts.")

    def _check_arguments(self) -> None:
        """Refuse arguments that the task does not have, or does not take.

        Raises:
            UserError: naming the argument.
        """
        known = arguments_of(self.task)
        for name, value in (self.task_args or {}).items():
            if name not in known:
                raise UserError(f"data.task_args: {self.task} has no argument {name!r}.{nearest(name, known)}")
            expected = kind_of(known[name])
            if expected and kind_of(value) != expected and (expected, kind_of(value)) != ("a number", "a whole number"):
                raise UserError(
                    f"data.task_args: expected {expected} for {name} of {self.task} (its default is {known[name]!r}), got "
                    f"{value!r}."
                )
        try:
            entry(self._problem(self.problems, self.data_seed, 0))
        except Exception as error:  # the task's own types
            given = json.dumps(self.task_args or {}, default=str)
            raise UserError(
                f"data.task_args: {self.task} makes no problem with {given} ({first_line(error)}); its arguments are "
                f"{', '.join(f'{k}={v!r}' for k, v in known.items())}."
            ) from None

    def _problem(self, count: int, seed: int, number: int) -> Problem:
        if not self.task_args:
            return self.task, count, seed, number
        return self.task, count, seed, number, json.dumps(self.task_args, sort_keys=True)

    def _made(self, count: int, seed: int, known: set[str]) -> list[Prompt]:
        prompts, seen = [], set(known)
        for number in range(count):
            problem = self._problem(count, seed, number)
            made = entry(problem)
            question, answer = str(made["question"]).strip(), str(made["answer"])
            if plain(question) in seen:
                self.dropped["repeated question"] += 1
                continue
            seen.add(plain(question))
            name = f"{self.task}:{content_id(question, answer)}"
            prompts.append(Prompt(name, question, problem, final=answer, instruction=self.instruction))
        return prompts

    def make_verifier(self) -> Verifier:
        """Return reasoning-gym's scoring of the last box, or of the last line if there is no box."""
        first = self.train[0].answer
        return InProcesses(scored, self.verifier_timeout_s, self.verifier_workers, last_answer, (first, ""))


def kind_of(value: Any) -> str:
    """Return an argument's kind in words; empty for kinds that only the task knows."""
    if isinstance(value, bool):
        return "true or false"
    kinds = {int: "a whole number", float: "a number", str: "text", list: "a list", tuple: "a list"}
    return kinds.get(type(value), "")


def last_answer(response: str) -> str:
    """Return the part of a response that is scored."""
    return final_answer(after_thinking(response))
