"""The stage `score`: what it leaves, and when another model's scores may be used again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.cli import show
from holdfast.contracts import Estimate, Estimator
from holdfast.errors import HoldfastError, MismatchError, UsageError
from holdfast.models import checkpoints
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import RunDir
from holdfast.stages.estimator_inputs import estimator_of
from holdfast.stages.score import CHECKED, FEWEST, ScoreConfig, score


class Slope(Estimator):
    """The length of a prompt times a weight of the model; unknown beyond another weight."""

    per: int = 1
    lost: int = 0

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Any,
        *,
        seed: int,
    ) -> Estimate:
        slope, most = model.get_input_embeddings().weight[0, :2].tolist()
        lengths = np.array([float(len(p)) for p in examples.prompts])
        values = np.where(lengths > most, np.nan, slope * lengths)[self.lost :]
        return Estimate(values, errors=values / 10, facts={"looked": len(examples)})


SLOPE = f"{__name__}:Slope"
ROWS = 100


@dataclass(frozen=True)
class Setting:
    """A hundred rows, number i of length i, and a maker of models."""

    data: str
    out: Path
    model: Callable[..., str]

    def config(self, model: str, **options: Any) -> ScoreConfig:
        fixed = {"out": self.out, "data": self.data, "estimator": SLOPE, "device": "cpu"}
        return ScoreConfig(**{**fixed, "model": model, **options})

    def first(self) -> Path:
        """Score a model whose slope is 1 and return the file."""
        score(self.config(self.model("first", 1.0), name="first"))
        return self.out / "scores" / "first.json"


def write(path: Path, lengths: range, *, back: bool = False) -> str:
    lines = [json.dumps({"prompt": "x" * i, "response": "no"}) for i in lengths]
    path.write_text("\n".join(lines[::-1] if back else lines) + "\n")
    return str(path)


@pytest.fixture
def setting(tmp_path: Path, make_model: Any, tokenizer: PreTrainedTokenizerBase) -> Setting:
    def model(name: str, slope: float, most: float = 1e6) -> str:
        made = make_model(vocab=len(tokenizer))
        made.get_input_embeddings().weight.data[0, 0] = slope
        made.get_input_embeddings().weight.data[0, 1] = most
        checkpoints.save(made, tokenizer, tmp_path / name)
        return str(tmp_path / name)

    data = write(tmp_path / "rows.jsonl", range(1, ROWS + 1))
    return Setting(data, tmp_path / "run", model)


def test_scores_are_saved_with_what_they_were_made_from(setting: Setting) -> None:
    place = setting.model("one", 2.0, most=90)
    found = score(setting.config(place))
    assert found.aligned_to(found.ids)[:3].tolist() == [2, 4, 6]
    assert np.isnan(found.values[90:]).all()
    assert found.errors is not None
    assert found.errors[4] == pytest.approx(1.0)
    assert found.model_hash == checkpoints.hash_model(Path(place))
    (entry,) = RunDir(setting.out).require("score", "Slope")
    assert set(entry.inputs) == {"model", "data", f"options of {SLOPE}"}
    assert set(entry.rows) == {"data"}
    assert entry.facts["looked"] == ROWS
    told = show.scores(found)
    assert (told["scores"], told["not scored"], told["with a standard error"]) == (90, 10, 90)


def test_done_once(setting: Setting) -> None:
    path = setting.first()
    before = path.stat().st_mtime_ns
    setting.first()
    assert path.stat().st_mtime_ns == before


def test_the_model_is_not_its_own_base(setting: Setting) -> None:
    model = setting.model("one", 1.0)
    options = {"estimator": "attack_direction", "base": model}
    with pytest.raises(UsageError, match="--base is the aligned model itself"):
        score(setting.config(model, **options))


def test_a_model_of_the_run_goes_by_its_label(setting: Setting) -> None:
    setting.model("run/models/sft-s3", 1.0)
    run = RunDir(setting.out)
    with run.job("align", "sft-s3", config={"seed": 3}, inputs={}):
        pass
    found = score(setting.config("sft-s3"))
    assert found.model_hash == checkpoints.hash_model(run.path("models", "sft-s3"))


def test_scores_of_another_model_are_not_replaced(setting: Setting) -> None:
    path = setting.first()
    before = path.read_bytes()
    other = setting.model("other", 5.0)
    with pytest.raises(UsageError, match="give those of other another name with --name"):
        score(setting.config(other, name="first"))
    assert path.read_bytes() == before
    assert score(setting.config(other, name="of-other")).model_hash != Scores.load(path).model_hash


# ---------------------------------------------------------------------------------------- reuse


def test_the_same_model_needs_no_check(setting: Setting) -> None:
    path = setting.first()
    found = score(setting.config(setting.model("copy", 1.0), reuse=path, name="again"))
    old = Scores.load(path)
    assert found.values.tolist() == old.values.tolist()
    assert found.errors is not None
    assert found.facts["reused_from"] == old.model_hash
    assert "drift_check" not in found.facts


def test_scores_that_hold_are_kept(setting: Setting) -> None:
    path = setting.first()
    other = setting.model("other", 5.0)  # five times the value, the same order
    found = score(setting.config(other, reuse=path, name="kept"))
    old = Scores.load(path)
    assert found.values.tolist() == old.values.tolist()
    assert found.model_hash == checkpoints.hash_model(Path(other)) != old.model_hash
    assert found.facts["reused_from"] == old.model_hash
    assert found.facts["drift_check"].startswith("1.00")
    assert f"n={CHECKED}" in found.facts["drift_check"]
    assert found.errors is None  # those were the other model's
    (entry,) = RunDir(setting.out).require("score", "kept")
    assert entry.inputs["reuse"] == old.hash


def test_scores_made_with_other_rows_are_not_reused(setting: Setting, tmp_path: Path) -> None:
    """The estimator and its options are the same, what it was given is not."""
    path = setting.first()
    old = json.loads(path.read_text())
    assert old["facts"]["resources"]
    old["facts"]["resources"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(old))
    with pytest.raises(MismatchError, match="made with other options, rows, base or judge than"):
        score(setting.config(setting.model("copy", 1.0), reuse=other, name="again"))
    # Scores of before this was kept are taken as they are.
    del old["facts"]["resources"]
    other.write_text(json.dumps(old))
    score(setting.config(setting.model("copy", 1.0), reuse=other, name="again"))


def test_a_chain_says_on_which_model_the_scores_were_made(setting: Setting) -> None:
    path = setting.first()
    score(setting.config(setting.model("second", 2.0), reuse=path, name="second"))
    chained = setting.out / "scores" / "second.json"
    for name, slope in (("third", 3.0), ("second", 2.0)):
        config = setting.config(setting.model(name, slope), reuse=chained, name=f"{name}-again")
        assert score(config).facts["reused_from"] == Scores.load(path).model_hash


def test_rows_in_another_order_are_compared_row_by_row(setting: Setting, tmp_path: Path) -> None:
    path = setting.first()
    back = write(tmp_path / "back.jsonl", range(1, ROWS + 1), back=True)
    config = setting.config(setting.model("other", 5.0), reuse=path, data=back, name="back")
    assert score(config).facts["drift_check"].startswith("1.00")


def test_scores_that_do_not_hold_are_refused(setting: Setting) -> None:
    path = setting.first()
    turned = setting.config(setting.model("turned", -1.0), reuse=path, name="turned")
    with pytest.raises(HoldfastError, match=r"correlate at -1\.00.*reach 0\.7.*without --reuse"):
        score(turned)
    assert RunDir(setting.out).entries("score") == RunDir(setting.out).require("score", "first")
    lenient = turned.model_copy(update={"agreement": -1.0})
    assert score(lenient).facts["drift_check"].startswith("-1.00")


def test_a_few_rows_that_can_be_scored_anew_prove_nothing(setting: Setting) -> None:
    """Of 64 checked rows some twelve of a hundred are short enough: in order, and too few."""
    path = setting.first()
    config = setting.config(setting.model("short", 1.0, most=12), reuse=path, name="short")
    with pytest.raises(HoldfastError, match=rf"of {CHECKED} rows \d+ could .* {FEWEST} are needed"):
        score(config)


def test_other_rows(setting: Setting, tmp_path: Path) -> None:
    path = setting.first()
    fewer = write(tmp_path / "fewer.jsonl", range(1, 50))
    config = setting.config(setting.model("other", 5.0), reuse=path, data=fewer)
    with pytest.raises(MismatchError, match="only the same may be used again"):
        score(config)


def test_another_default_is_another_score(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = setting.model("one", 1.0)
    score(setting.config(model))
    (before,) = RunDir(setting.out).require("score")
    plain = Slope.__init__
    monkeypatch.setattr(Slope, "__init__", lambda self, **given: plain(self, per=2, **given))
    score(setting.config(model))
    (after,) = RunDir(setting.out).require("score")
    assert before.key != after.key


def test_another_estimator(setting: Setting) -> None:
    path = setting.first()
    config = setting.config(setting.model("other", 5.0), reuse=path, estimator=f"{SLOPE},per=2")
    with pytest.raises(MismatchError, match=r"scores by '.*Slope' of rows .*'.*Slope,per=2'"):
        score(config)


def test_no_scores_to_reuse(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: no such file"):
        score(setting.config(setting.model("one", 1.0), reuse=tmp_path / "none.json"))


# ------------------------------------------------------------------------------------- bad input


def test_a_wrong_shape(setting: Setting) -> None:
    config = setting.config(setting.model("one", 1.0), estimator=f"{SLOPE},lost=1")
    with pytest.raises(HoldfastError, match=r"shape \(99,\) for 100 examples"):
        score(config)


def test_nothing_could_be_scored(setting: Setting) -> None:
    with pytest.raises(HoldfastError, match="could score none of the 100 examples: all its v"):
        score(setting.config(setting.model("one", 1.0, most=0)))


def test_an_estimator_without_what_it_needs(setting: Setting) -> None:
    config = setting.config(setting.model("one", 1.0), estimator="loss", proxies=[setting.data])
    with pytest.raises(UsageError, match="'loss' averages over no proxy tasks"):
        score(config)


def test_what_members_and_judges_may_choose_is_part_of_the_key(setting: Setting) -> None:
    """Their defaults as well: what another version changes is another score."""
    config = setting.config(setting.model("one", 2.0))
    made, inputs = estimator_of(config, "ensemble,members=[loss,(loss,quantity=first_token)]")
    assert {f"options of member {name}" for name in made.parts} <= inputs.hashes.keys()
    judged = config.model_copy(update={"judge": "refusal", "harmful": setting.data})
    _, inputs = estimator_of(judged, "forget_count")
    assert "options of judge 1, refusal" in inputs.hashes
