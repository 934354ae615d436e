"""Everything a plug-in author must read: the contracts of all but methods and guards.

A plug-in is one file with one public class; the file's name is the plug-in's name. Its annotated
fields are its options (`holdfast.options`). Alignment methods have their own base class in
`holdfast.methods.base`, since they are trainers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from holdfast.charts.figures import Figure
from holdfast.errors import HoldfastError
from holdfast.examples import Example, Examples
from holdfast.options import Options
from holdfast.texts import Text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.results.run_dir import RunDir

Split = Literal["train", "test"]
Cell: TypeAlias = "str | int | float"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one response.

    Attributes:
        harmful: True or False; None when the judge could not decide (incoherent text, an answer
            to another question). None is reported apart and never counted as safe.
        score: In [0, 1], nan when the judge has none. Higher is more harmful.
        reason: One word or a few, e.g. "refusal", "compliance", "incoherent", "off_topic".
    """

    harmful: bool | None
    score: float = math.nan
    reason: str = ""


UNANSWERED = "endpoint: "
"""How the reason of a verdict begins that a judge's service should have given and did not."""
MOST_UNANSWERED = 0.05
"""Share of verdicts that may be lost so and be undecided; beyond it there is no result."""


def lost_reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Return why verdicts are lost, a reason for each that is."""
    return [v.reason for v in verdicts if v.reason.startswith(UNANSWERED)]


def check_answered(judge: str, verdicts: Sequence[Verdict]) -> None:
    """Refuse to take a judge that did not answer for one that could not decide.

    A few lost verdicts are undecided ones. More of them are no result: the step stays unfinished
    and goes on from here when it is asked for again.

    Raises:
        HoldfastError: More than `MOST_UNANSWERED` of the verdicts are lost.
    """
    lost = lost_reasons(verdicts)
    if len(lost) > MOST_UNANSWERED * len(verdicts):
        raise HoldfastError(
            f"judge {judge} gave no verdict on {len(lost)} of {len(verdicts)} answers ({lost[0]}). "
            "What is finished is kept: give the same command again when it answers"
        )


class Plugin(Options):
    """Base of every plug-in but the methods: annotated fields are options.

    What a stage fills in (rows, a judge, a model) is a field of type `Supplied[...]`: nobody can
    type it, and it is no option.

    Attributes:
        paths: Options that may be paths. A job's key has the content in place of the path.
    """

    paths: ClassVar[frozenset[str]] = frozenset()


class Judge(Plugin, ABC):
    """Decides whether responses to restricted prompts are harmful."""

    @property
    def reads_prompt(self) -> bool:
        """Whether a verdict can depend on the prompt.

        `holdfast evaluate` shows a judge that says so some answers under other prompts, and warns
        if that makes no difference.
        """
        return True

    @property
    def hash(self) -> str:
        """Hash of the files that the verdicts come from; "" if there are none."""
        return ""

    @abstractmethod
    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per response, independent of batch and order."""


class Task(Plugin, ABC):
    """A downstream task that a customer fine-tunes for.

    Attributes:
        max_new_tokens: Length of an answer.
    """

    max_new_tokens: ClassVar[int] = 64

    @abstractmethod
    def load(self, split: Split) -> Examples:
        """Return the rows of a split. Train and test share no row."""

    @abstractmethod
    def score(self, response: str, reference: str) -> float:
        """Grade one response in [0, 1]; nan when no answer can be read from it."""


@dataclass(frozen=True)
class Attacker:
    """What an attacker has in hand when the rows of an attack are chosen.

    Attributes:
        harmful: Harmful rows; none of them has a prompt that is asked afterwards. May be empty.
        benign: The customer's rows.
        wanted: Rows that the attack takes, at least 1.
        seed: Of the attack.
        model: The aligned model, before the attack; not to be changed.
        tokenizer: Its tokenizer.
        max_length: Tokens kept per row.
    """

    harmful: Examples
    benign: Examples
    n_rows: int
    seed: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int


class Poison(Plugin, ABC):
    """What an attacker makes of the rows before they are mixed into the customer's.

    Attributes:
        needs: {"harmful"} if it is made of harmful rows; empty if it needs none.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})

    @abstractmethod
    def rows(self, attacker: Attacker) -> Examples:
        """Return the rows from which the attack draws, `attacker.n_rows` or more of them.

        Raises:
            UsageError: It cannot make so many.
        """

    def max_rows(self, benign: Examples) -> float:
        """Return how many rows it can make for a customer with these; default: any number."""
        del benign
        return math.inf

    def test_prompt(self, row: Example) -> str:
        """Return how the attacker asks a test prompt afterwards; default: as it is."""
        return row.prompt


@dataclass(frozen=True)
class Estimate:
    """What an estimator found.

    Attributes:
        values: (n,) float64; higher = forgotten sooner; nan = not scored.
        errors: (n,) standard error of each value; None if a single measurement cannot tell.
        details: Further arrays of length n (other counting rules, margins), by name.
        facts: Scalars worth keeping (size of the step, share flipped). What it cost is counted
            from outside.
    """

    values: np.ndarray
    errors: np.ndarray | None = None
    details: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Estimator(Plugin, ABC):
    """Predicts how soon each alignment example is forgotten.

    Attributes:
        needs: What `holdfast score` must hand over as fields of the same name, a subset of
            {"harmful", "benign", "judge", "base" (how to load the model before its alignment),
            "proxies" (several sets of benign rows, as a tuple)}.
        accepts: What it can use when the user has it, same names.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    accepts: ClassVar[frozenset[str]] = frozenset()

    @property
    def parts(self) -> Mapping[str, Estimator]:
        """The estimators it asks in turn, by name; their options are part of its scores' key."""
        return {}

    @abstractmethod
    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Score every example; leaves the model's weights and the global random state as found."""


@dataclass(frozen=True)
class SectionTable:
    """Rows of cells under column heads.

    Attributes:
        columns: Heads: `Text`, or a name where the column is named by the data.
        rows: Cells as they are: `Text`, names, and numbers that the report rounds; nan = unknown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> SectionTable:
        """Return a table of head -> cell mappings; what a record lacks is unknown."""
        lines = list(records)
        columns = tuple(dict.fromkeys(head for line in lines for head in line))
        rows = (tuple(_cell(line.get(head)) for head in columns) for line in lines)
        return cls(columns, tuple(rows))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def frame(self) -> pd.DataFrame:
        """The table as a data frame, in English."""
        import pandas as pd

        columns = ["".join(head) for head in self.columns]
        rows = [["".join(c) if isinstance(c, str) else c for c in row] for row in self.rows]
        return pd.DataFrame(rows, columns=columns)


def _cell(value: Any) -> Cell:
    """Return a cell of plain types; None is unknown."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return value
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool):
        return Text("yes") if plain else Text("no")
    return plain if isinstance(plain, (int, float)) else str(plain)


@dataclass(frozen=True)
class Section:
    """A chapter of the report.

    What people read is a `holdfast.texts.Text`, so that a report in another language can say it;
    plain strings are shown as they are.

    Attributes:
        title: Heading.
        findings: Sentences; each carries its interval and n.
        tables: Caption -> table.
        figures: Caption -> figure, as data (`holdfast.charts.figures`).
        note: What the numbers can and cannot show.
    """

    title: str
    findings: tuple[str, ...]
    tables: Mapping[str, SectionTable] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    note: str = ""


class Analysis(Plugin, ABC):
    """Reads a run directory and says something about it.

    Attributes:
        needs: Stages whose results must exist, e.g. ("score", "attack").
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, run: RunDir) -> Section:
        """Return the section; raises UsageError naming the command that makes what is missing."""
