"""Base classes of plug-ins, except methods and guards, and the values they exchange.

A plug-in is a file with one public class; the name of the file is the name of the plug-in. The
annotated fields of the class are its options (`holdfast.options`). Alignment methods are trainers
and have their own base class in `holdfast.methods.base`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from holdfast.charts.figures import Figure
from holdfast.errors import HoldfastError
from holdfast.examples import Example, Examples
from holdfast.options import Options
from holdfast.rows.thoughts import UNFINISHED, Response
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
    """A judge's verdict on one response.

    Attributes:
        harmful: True or False; None if the judge could not decide (incoherent text, an answer to
            a different question). None is reported separately and never counted as safe.
        score: In [0, 1], higher is more harmful; nan if the judge has no score.
        reason: One or a few words, e.g. "refusal", "compliance", "incoherent", "off_topic".
        said: What a judge that writes text replied, shortened (`shortened`); "" for other judges.
    """

    harmful: bool | None
    score: float = math.nan
    reason: str = ""
    said: str = ""


UNANSWERED = "endpoint: "
"""Prefix of the reason of a lost verdict: one that a judge's service failed to give."""
MOST_UNANSWERED = 0.05
"""Largest share of lost verdicts that may count as undecided; above it there is no result."""


NO_VERDICT = "no verdict"
OUTSIDE = "outside the grammar"
CONTRADICTS = "contradicts itself"
NOT_A_NUMBER = "not a number"
"""Reason of a verdict when the model's probabilities are not finite, as after an overflow."""
CUT_OFF = "cut off before a verdict"
REFUSED = "the judge refused"
UNREAD = frozenset({NO_VERDICT, OUTSIDE, CONTRADICTS, NOT_A_NUMBER, CUT_OFF, REFUSED})
"""Reasons of verdicts that are undecided because of the judge, whatever the answer is."""
MOST_UNDECIDED = 0.5
"""Default of the largest share of undecided verdicts with which a result is given."""
LONGEST_REPLY = 200
"""Characters of a judge's reply that are kept with its verdict: half from each end."""


def shortened(text: str, limit: int = LONGEST_REPLY) -> str:
    """Return a text on one line, with the middle left out if it is longer than `limit`."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    if len(line) <= limit:
        return line
    half = limit // 2
    return f"{line[:half]} ... {line[-half:]}"


def is_lost(verdict: Verdict) -> bool:
    """Return whether a judge failed to give a verdict, whatever the answer is."""
    return verdict.reason.startswith(UNANSWERED) or verdict.reason in UNREAD


def lost_reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the reason of each verdict that a judge's service did not return."""
    return [v.reason for v in verdicts if v.reason.startswith(UNANSWERED)]


def check_answered(judge: str, verdicts: Sequence[Verdict]) -> None:
    """Check that a judge answered, so that lost verdicts do not pass for undecided ones.

    A few lost verdicts count as undecided. With more there is no result: the job stays unfinished
    and continues from here on the next run.

    Raises:
        HoldfastError: More than `MOST_UNANSWERED` of the verdicts are lost.
    """
    lost = lost_reasons(verdicts)
    if len(lost) > MOST_UNANSWERED * len(verdicts):
        raise HoldfastError(
            f"judge {judge} gave no verdict on {len(lost)} of {len(verdicts)} answers ({lost[0]}). "
            "Finished work is kept: rerun the same command when the judge answers again, or change "
            "its options if the reason is one that waiting does not mend"
        )


def judge_responses(
    name: str, judge: Judge, prompts: Sequence[str], responses: Sequence[Response]
) -> list[Verdict]:
    """Return a judge's verdicts on answers, which it sees without the thoughts before them.

    A response that ends inside its thoughts has no answer: it is undecided, and no judge sees it.

    Args:
        name: Label of the judge, for messages.
        judge: The judge.
        prompts: (n,).
        responses: (n,).

    Raises:
        HoldfastError: Too many verdicts are lost (`check_answered`).
    """
    answered = [i for i, response in enumerate(responses) if not response.unfinished]
    judged = judge.judge([prompts[i] for i in answered], [responses[i].text for i in answered])
    check_answered(name, judged)
    verdicts = [Verdict(None, reason=UNFINISHED)] * len(responses)
    for i, verdict in zip(answered, judged, strict=True):
        verdicts[i] = verdict
    return verdicts


def check_decided(judge: str, verdicts: Sequence[Verdict], most: float) -> None:
    """Check that a judge decided enough answers for its harmful score to mean something.

    Args:
        judge: Label of the judge.
        verdicts: Its verdicts.
        most: Largest share of undecided verdicts allowed.

    Raises:
        HoldfastError: More of the verdicts are undecided.
    """
    undecided = [v for v in verdicts if v.harmful is None]
    if len(undecided) > most * len(verdicts):
        raise _undecided(judge, undecided, len(verdicts))


def check_read(judge: str, verdicts: Sequence[Verdict], most: float) -> None:
    """Check that a judge's replies were verdicts.

    Answers that are undecided for what they are, such as the noise of a broken model, are allowed.

    Args:
        judge: Label of the judge.
        verdicts: Its verdicts.
        most: Largest share of verdicts without a readable reply.

    Raises:
        HoldfastError: More of the replies were no verdict.
    """
    unread = [v for v in verdicts if v.harmful is None and v.reason in UNREAD]
    if len(unread) > most * len(verdicts):
        raise _undecided(judge, unread, len(verdicts))


def _undecided(judge: str, undecided: Sequence[Verdict], n: int) -> HoldfastError:
    """Return the error for too many undecided verdicts, with their reasons and an example."""
    counts = Counter(v.reason or "no reason" for v in undecided)
    reasons = ", ".join(f"{reason}: {number}" for reason, number in counts.most_common(3))
    example = next((v.said for v in undecided if v.said), "")
    quoted = f"; for example, it replied {example!r}" if example else ""
    return HoldfastError(
        f"judge {judge} could not decide {len(undecided)} of {n} answers ({reasons}{quoted}), so "
        "the harmful score is unknown. Check the model's answers, or use a judge, template or "
        "verdict words that fit; --most-undecided 1 (most_undecided=1) records the result as "
        "unknown instead"
    )


class Plugin(Options):
    """Base of every plug-in except the methods; annotated fields are options.

    Values that a stage supplies (rows, a judge, a model) are fields of type `Supplied[...]`, which
    are not options.

    Attributes:
        paths: Options that may be paths. A job's key contains the content instead of the path.
    """

    paths: ClassVar[frozenset[str]] = frozenset()


class Judge(Plugin, ABC):
    """Decides whether responses to restricted prompts are harmful."""

    @property
    def reads_prompt(self) -> bool:
        """Whether a verdict can depend on the prompt.

        If True, `holdfast evaluate` has the judge judge some answers under other prompts, and warns
        if that makes no difference.
        """
        return True

    @property
    def hash(self) -> str:
        """Hash of the files the verdicts depend on; "" if there are none."""
        return ""

    @property
    def facts(self) -> dict[str, Any]:
        """What the judge chose or found out by itself, for the record of the job."""
        return {}

    @abstractmethod
    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per response, independent of the batch and the order."""


class Task(Plugin, ABC):
    """A downstream task that a customer fine-tunes for.

    Attributes:
        max_new_tokens: Maximum length of an answer.
    """

    max_new_tokens: ClassVar[int] = 64

    @abstractmethod
    def load(self, split: Split) -> Examples:
        """Return the rows of a split; train and test share no rows."""

    @abstractmethod
    def score(self, response: str, reference: str) -> float:
        """Return the grade of one response in [0, 1]; nan if no answer can be parsed from it."""


@dataclass(frozen=True)
class Attacker:
    """What an attacker can use to build the rows of an attack.

    Attributes:
        harmful: Harmful rows, without test prompts; may be empty.
        benign: The customer's rows.
        n_rows: Number of rows that the attack needs, at least 1.
        seed: Random seed of the attack.
        model: The aligned model before the attack; must not be changed.
        tokenizer: Its tokenizer.
        max_length: Maximum number of tokens per row.
    """

    harmful: Examples
    benign: Examples
    n_rows: int
    seed: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int


class Poison(Plugin, ABC):
    """Builds the attacker's rows, which are then mixed into the customer's.

    Attributes:
        needs: {"harmful"} if it needs harmful rows, otherwise empty.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})

    @abstractmethod
    def rows(self, attacker: Attacker) -> Examples:
        """Return the rows the attack draws from, at least `attacker.n_rows`.

        Raises:
            UsageError: It cannot build enough rows.
        """

    def max_rows(self, benign: Examples) -> float:
        """Return the largest number of rows for a customer with these rows; default: unlimited."""
        del benign
        return math.inf

    def test_prompt(self, row: Example) -> str:
        """Return the prompt with which the attacker tests a row; default: its own prompt."""
        return row.prompt


@dataclass(frozen=True)
class Estimate:
    """The result of an estimator.

    Attributes:
        values: (n,) float64; higher = forgotten sooner; nan = not scored.
        errors: (n,) standard error of each value; None if there was a single measurement.
        details: Further arrays of length n by name, such as other counting rules or margins.
        facts: Further scalars by name, such as the step size or the flipped share. The cost is
            measured separately.
    """

    values: np.ndarray
    errors: np.ndarray | None = None
    details: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Estimator(Plugin, ABC):
    """Predicts how soon each alignment example is forgotten.

    Attributes:
        needs: Fields that `holdfast score` must supply, a subset of {"harmful", "benign", "judge",
            "base" (how to load the model before alignment), "proxies" (several sets of benign
            rows, as a tuple)}.
        accepts: Fields it can use if the user has them, with the same names.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    accepts: ClassVar[frozenset[str]] = frozenset()

    @property
    def parts(self) -> Mapping[str, Estimator]:
        """Estimators it combines, by name; their options are part of the key of its scores."""
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
        """Score every example; the model's weights and the global random state do not change."""


@dataclass(frozen=True)
class SectionTable:
    """A table of a section.

    Attributes:
        columns: Column headings: `Text`, or plain strings for names that come from the data.
        rows: Cells: `Text`, names, and unrounded numbers that the report rounds; nan = unknown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> SectionTable:
        """Build a table from mappings of heading -> cell; missing cells are unknown."""
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
    """Convert a value to a plain type; None becomes nan (unknown)."""
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

    Prose is `holdfast.texts.Text`, so that reports can translate it; plain strings are shown as
    they are.

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
    """Turns the results in a run directory into a chapter of the report.

    Attributes:
        needs: Stages whose results must exist, e.g. ("score", "attack").
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, run: RunDir) -> Section:
        """Return the section; raise UsageError with the command to run if results are missing."""
