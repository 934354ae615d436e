"""The stage `screen`: from files to files, by text and by the probe, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.cli import show
from holdfast.contracts import Estimate, Estimator
from holdfast.errors import HoldfastError, MismatchError, UsageError
from holdfast.examples import Example, Examples
from holdfast.groups.make import level_names
from holdfast.models import checkpoints
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.run_dir import RunDir
from holdfast.screening.text_screener import Screen
from holdfast.stages.screen import DISAGREES, NO_REFUSAL, PROBE_FAILED, ScreenConfig, screen


class Length(Estimator):
    """The vulnerability of a row is the length of its prompt; a prompt with a dash has none."""

    sign: float = 1.0
    lost: int = 0
    mixed: int = 0

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        values = self.sign * np.array([float(len(p)) for p in examples.prompts])
        if self.mixed:  # the longer half goes back
            values = np.where(values > 33, 66 - values, values)
        values[["-" in prompt for prompt in examples.prompts]] = np.nan
        return Estimate(values[self.lost :], facts={"looked": len(examples)})


PROBE = f"{__name__}:Length"


def write(path: Path, rows: list[Example]) -> str:
    lines = [{"prompt": r.prompt, "response": r.response, **r.provenance} for r in rows]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    checkpoints.save(make_model(vocab=len(tokenizer)), tokenizer, path)
    return str(path)


@dataclass(frozen=True)
class Setting:
    rows: list[Example]
    data: str
    run: RunDir
    folder: Path

    def config(self, new: list[Example], **options: Any) -> ScreenConfig:
        spec = write(self.folder / "new.jsonl", new)
        return ScreenConfig(**{"out": self.run.root, "data": self.data, "new": spec, **options})


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Return thirty rows whose score is the length of the prompt, and two groups of them."""
    rows = [Example(f"tell me about {'x' * i} now", "no") for i in range(1, 31)]
    examples, run = Examples(rows), RunDir(tmp_path / "run")
    scores = Scores(examples.ids, np.array([float(len(r.prompt)) for r in rows]), "toy", "", "")
    scores = Scores(scores.ids, scores.values, "toy", examples.hash, "")
    with run.job("score", "toy", config={}, inputs={}) as job:
        scores.save(run.path("scores", "toy.json"))
        job.outputs.append(run.path("scores", "toy.json"))
    labels = (np.arange(30) >= 20).astype(np.int64)
    for name, names, made_from in (
        ("two", level_names(2), scores.hash),
        ("three", level_names(3), scores.hash),
        ("by", ("a: undivided", "b: undivided"), scores.hash),
        ("other", level_names(2), "other scores"),
    ):
        with run.job("group", name, config={}, inputs={}) as job:
            path = run.path("groups", f"{name}.json")
            Groups(examples.ids, labels, names, "", made_from, examples.hash).save(path)
            job.outputs.append(path)
    return Setting(rows, write(tmp_path / "data.jsonl", rows), run, tmp_path)


def test_by_text(setting: Setting) -> None:
    new = [Example("an entirely other thing", "yes"), setting.rows[29], Example("tell me now")]
    table = setting.folder / "table.csv"
    config = setting.config(new, groups="two", csv=table, name="later/rows")
    found = screen(config)
    assert [row.basis for row in found.rows] == ["text", "scored", "text"]
    assert found.rows[1].rank == found.rows[1].vulnerable == 1.0
    assert found.counts == {"scored": 1, "text": 2}
    assert (found.new_hash, found.data_hash) == (Examples(new).hash, Examples(setting.rows).hash)
    assert len(found.accuracy) == 2
    entry = setting.run.require("screen", "later-rows")[0]
    assert entry.facts["counts"] == {"scored": 1, "text": 2}
    assert set(entry.inputs) >= {"scores", "data", "new", "groups"}
    assert str(Screen.load(setting.run.result(entry))) == str(found)
    assert setting.run.verify() == []
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert lines[0]["row"] == "2"  # the scored one, rank 1, comes first
    ranks = [float(line["rank"]) for line in lines]
    assert ranks == sorted(ranks, reverse=True)
    assert "entirely" not in table.read_text()


def test_what_is_told(setting: Setting) -> None:
    new = [Example("tell me now"), setting.rows[29], *setting.rows[:6]]
    told = show.screened(screen(setting.config(new, groups="two")))
    assert (told["rows"], told["placed by scored"], told["placed by text"]) == (8, 7, 1)
    # Rank 1 first, in the vulnerable group; of the others the guess is somewhere.
    assert told["most vulnerable"][0] == "row 2: rank 1.00 [1.00, 1.00], 100% likely vulnerable"
    assert len(told["most vulnerable"]) == show.FIRST
    assert any(note.startswith("1 of 8: no response") for note in told["notes"])
    assert "probe agrees with the scores" not in told
    assert len(told["accuracy"]) == 1


def test_done_once_and_again_when_something_read_changes(setting: Setting) -> None:
    def started(new: list[Example]) -> str:
        screen(setting.config(new, name="again"))
        return setting.run.require("screen", "again")[0].key

    first = started([setting.rows[0]])
    before = setting.run.path("screens", "again.json").stat().st_mtime_ns
    assert started([setting.rows[0]]) == first
    assert setting.run.path("screens", "again.json").stat().st_mtime_ns == before
    # The category is read too, and no part of the rows' own hash.
    row = setting.rows[0]
    assert started([Example(row.prompt, row.response, {"category": "a"})]) != first


def test_by_the_probe(setting: Setting, tiny: str) -> None:
    # Lengths 16 + i of the scored rows; the new one lies between those of i = 15 and 16.
    between = "tell me about " + "y" * 16 + " it"
    length = len(between)
    below = sum(len(r.prompt) < length for r in setting.rows)
    equal = sum(len(r.prompt) == length for r in setting.rows)
    new = [
        Example(between, "no"),
        Example("short", "no"),
        Example("no - length", "no"),
        Example("no response"),
        setting.rows[3],
    ]
    found = screen(setting.config(new, model=tiny, estimator=PROBE))
    assert [row.basis for row in found.rows] == ["probe", "probe", "text", "text", "scored"]
    assert found.rows[0].rank == pytest.approx((below + equal / 2) / 30)
    assert found.rows[0].low < found.rows[0].rank < found.rows[0].high
    assert found.rows[1].rank == found.rows[1].low == 0.0 < found.rows[1].high
    assert PROBE_FAILED in found.rows[2].note
    assert "no response" in found.rows[3].note
    assert found.facts["looked"] == 30 + 3
    assert found.facts["sample"] == 30
    assert found.facts["agreement"].startswith("1.00")
    assert found.facts["model_hash"]
    assert show.screened(found)["probe agrees with the scores"].startswith("1.00")


def test_the_model_goes_by_its_label(setting: Setting, tiny: str) -> None:
    shutil.copytree(tiny, setting.run.path("models", "sft-s0"))
    with setting.run.job("align", "sft-s0", config={"seed": 0}, inputs={}):
        pass
    found = screen(setting.config([Example("short", "no")], model="sft-s0", estimator=PROBE))
    assert found.facts["model_hash"] == checkpoints.hash_model(Path(tiny))


def test_a_sample_of_the_scored_rows_is_probed(setting: Setting, tiny: str) -> None:
    config = setting.config([Example("short", "no")], model=tiny, estimator=PROBE, sample=25)
    assert screen(config).facts["looked"] == 26


def test_a_probe_that_contradicts_the_scores_places_nothing(setting: Setting, tiny: str) -> None:
    probe = f"{PROBE},sign=-1"
    with pytest.raises(UsageError, match="orders 30 scored rows in another way than their scores"):
        screen(setting.config([Example("short", "no")], model=tiny, estimator=probe))


def test_a_probe_that_may_contradict_the_scores_is_named(setting: Setting, tiny: str) -> None:
    probe = f"{PROBE},mixed=1"
    found = screen(setting.config([Example("short", "no")], model=tiny, estimator=probe))
    assert found.rows[0].note == DISAGREES
    assert found.rows[0].rank == 0.0


def test_a_row_that_is_no_refusal_is_not_probed(setting: Setting, tiny: str) -> None:
    """One would not only be placed wrongly: it would change for all what a refusal is."""
    new = [Example("short", "no"), Example("also short", "here you go")]
    found = screen(setting.config(new, model=tiny, estimator=PROBE))
    assert [row.basis for row in found.rows] == ["probe", "text"]
    assert NO_REFUSAL in found.rows[1].note
    assert NO_REFUSAL not in found.rows[0].note
    assert found.facts["looked"] == 30 + 1
    with pytest.raises(UsageError, match="none of the 1 new responses begins as those of the"):
        screen(setting.config(new[1:], model=tiny, estimator=PROBE))


def test_the_real_probe(
    tmp_path: Path, rows: Any, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Score with `attack_direction`, screen with it: the same model orders the rows alike."""
    from holdfast.stages.score import ScoreConfig, score

    checkpoints.save(aligned, tokenizer, tmp_path / "tiny")
    scored = write(tmp_path / "data.jsonl", list(rows.safety[:21]))
    common: dict[str, Any] = {
        "out": tmp_path / "run",
        "device": "cpu",
        "model": str(tmp_path / "tiny"),
        "harmful": write(tmp_path / "harmful.jsonl", list(rows.harmful)),
        "data": scored,
    }
    score(ScoreConfig(**common))
    new = write(tmp_path / "new.jsonl", list(rows.safety[21:]))
    found = screen(ScreenConfig(new=new, **common))
    assert {row.basis for row in found.rows} == {"probe"}
    assert all(0 <= row.low <= row.rank <= row.high <= 1 for row in found.rows)
    assert found.accuracy == ()
    assert found.facts["source"] == "harmful"
    assert float(found.facts["agreement"].split()[0]) > 0.9


# -------------------------------------------------------------------------------------- bad input


def test_other_data_than_was_scored(setting: Setting) -> None:
    other = write(setting.folder / "other.jsonl", setting.rows[:25])
    with pytest.raises(MismatchError, match="'toy' were made from other rows"):
        screen(setting.config([setting.rows[0]], data=other))


def test_too_few_scored_rows(setting: Setting) -> None:
    few = Examples(setting.rows[:19])
    with setting.run.job("score", "few", config={}, inputs={}) as job:
        path = setting.run.path("scores", "few.json")
        Scores(few.ids, np.arange(19.0), "toy", few.hash, "").save(path)
        job.outputs.append(path)
    data = write(setting.folder / "few.jsonl", list(few))
    with pytest.raises(UsageError, match="19 scored rows"):
        screen(setting.config([Example("a", "b")], data=data, scores="few"))
    with pytest.raises(UsageError, match=r"several scores \((toy, few|few, toy)\).*--scores"):
        screen(setting.config([Example("a", "b")], data=data))
    assert setting.run.entries("screen") == []


def test_no_row_that_the_probe_can_read(setting: Setting, tiny: str) -> None:
    with pytest.raises(UsageError, match="no new row has a response"):
        screen(setting.config([Example("only asked")], model=tiny, estimator=PROBE))
    scored = setting.config([setting.rows[0]], model=tiny, estimator=PROBE)
    assert screen(scored).counts == {"scored": 1}  # needs no probe


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": "three"}, UsageError, "has the 3 groups level 1 .*; give one of two"),
        ({"groups": "by"}, UsageError, "a: undivided, b: undivided; give one of two, invulnerable"),
        ({"groups": "other"}, MismatchError, r"made from other scores than 'toy' \(hash other sco"),
        ({"groups": "none"}, UsageError, "no group 'none'"),
        ({"scores": "none"}, UsageError, "no score 'none'"),
    ],
)
def test_what_the_run_lacks(
    setting: Setting, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        screen(setting.config([setting.rows[0]], **options))


def test_a_probe_of_the_wrong_shape(setting: Setting, tiny: str) -> None:
    config = setting.config([Example("a", "no")], model=tiny, estimator=f"{PROBE},lost=1")
    with pytest.raises(HoldfastError, match=r"shape \(30,\) for 31 examples"):
        screen(config)


def test_too_few_probed_rows(setting: Setting, tiny: str) -> None:
    config = setting.config([Example("a", "no")], model=tiny, estimator=PROBE, sample=19)
    with pytest.raises(UsageError, match="could score 19 of 19 scored rows.*20 are needed"):
        screen(config)
