"""The stage `validate-estimator`: agreement, gain, ceiling, categories, sizes, stability."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.analyses.reliability import Reliability
from holdfast.cli import show
from holdfast.contracts import Estimate, Estimator
from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.models import checkpoints
from holdfast.options import Supplied
from holdfast.results.artifacts import AttackResult, Counts, Point
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Validation
from holdfast.stages.validate import VARIED, ValidateConfig, validate
from holdfast.stats import agreement
from holdfast.stats.intervals import Interval, bootstrap
from made_lives import life

NAN = float("nan")


class Number(Estimator):
    """The number that a prompt ends with, turned round or shifted as told."""

    sign: float = 1.0
    shift: float = 0.0
    unknown: int = 0
    seeded: bool = False
    fails: bool = False

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        values = np.array([float(p.split()[-1]) for p in examples.prompts])
        sign = -self.sign if self.seeded and seed % 2 else self.sign
        found = sign * values + self.shift
        found[values < self.unknown] = NAN
        if self.fails:
            raise UsageError("no step flips enough")
        return Estimate(found)


class Still(Estimator):
    """The same for every example; it has no option."""

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        del seed
        return Estimate(np.zeros(len(examples)))


class Proxied(Still):
    """It uses proxy tasks."""

    accepts: ClassVar[frozenset[str]] = frozenset({"proxies"})
    proxies: Supplied[tuple[Examples, ...]] = ()


class Taught(Still):
    """It uses harmful rows."""

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful"})
    harmful: Supplied[Examples | None] = None


NUMBER, STILL = f"{__name__}:Number", f"{__name__}:Still"
N = 60
ROWS = [Example(f"tell me {i}", f"no {i}", {"category": "ab"[i % 3 == 0]}) for i in range(N)]
"""Number i; every third is of category b: 20 rows, and 40 of a."""


@dataclass(frozen=True)
class Setting:
    run: RunDir
    data: str
    model: str

    def attacked(
        self,
        name: str,
        counts: dict[int, int],
        inputs: dict[str, str] | None = None,
        rows: dict[str, Examples] | None = None,
        **changes: Any,
    ) -> None:
        """Leave an attack that found these rows harmful at so many checkpoints."""
        result = AttackResult(
            **{
                "model": "tiny",
                "model_hash": checkpoints.hash_model(Path(self.model)),
                "method": "sft",
                "model_seed": 0,
                "attack": Attack(task=name),
                "judge": "j",
                "points": (Point(0, {"j": Counts(0, 10, 0)}),),
                "half_life": life(NAN, censored=True),
                "tracked": {ROWS[i].id: count for i, count in counts.items()},
                **changes,
            }
        )
        with self.run.job(
            "attack", name, config={"seed": 0}, inputs=inputs or {}, rows=rows or {}
        ) as job:
            path = self.run.path("attacks", f"{name}.json")
            result.save(path)
            job.outputs.append(path)

    def config(self, **options: Any) -> ValidateConfig:
        fixed = {"out": self.run.root, "data": self.data, "model": self.model, "device": "cpu"}
        brief: dict[str, Any] = {"estimators": [NUMBER], "vary": [], "seeds": 1, "examples": []}
        return ValidateConfig(**{**fixed, **brief, **options})


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstrap briefly: test_agreement.py is about the intervals, this file is not."""

    def brief(*args: Any, **options: Any) -> Interval:
        return bootstrap(*args, **{**options, "resamples": 20})

    monkeypatch.setattr(agreement, "bootstrap", brief)


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, make_model: Any, tokenizer: PreTrainedTokenizerBase
) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    checkpoints.save(make_model(vocab=len(tokenizer)), tokenizer, path)
    return str(path)


@pytest.fixture
def setting(tmp_path: Path, tiny: str) -> Setting:
    """Return a run with two attacks that forget higher numbers sooner, the second two rows less."""
    lines = [{"prompt": r.prompt, "response": r.response, **r.provenance} for r in ROWS]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    made = Setting(RunDir(tmp_path / "run"), str(data), tiny)
    made.attacked("one", {i: i // 6 for i in range(N)})
    made.attacked("two", {i: (i + 3) // 6 for i in range(2, N)})
    return made


MEAN = np.array([(i // 6 + (i + 3) // 6) / 2 for i in range(2, N)])
"""Mean count of the 58 rows that both attacks tracked."""


def row(found: Validation, variant: str = "", seed: int = 0, estimator: str = NUMBER) -> Any:
    key = (estimator, variant, seed)
    (mine,) = [r for r in found.rows if (r["estimator"], r["variant"], r["seed"]) == key]
    return mine


def test_rows_are_held_against_the_mean_of_the_attacks(setting: Setting) -> None:
    found = validate(setting.config(vary=["sign=1,-1"]))
    assert [(r["variant"], r["seed"]) for r in found.rows] == [
        ("", 0),
        ("sign=1", 0),
        ("sign=-1", 0),
    ]
    assert (found.model, found.n) == ("tiny", 58)
    assert found.attacks == (
        "one, 10% harmful rows, learning rate 1e-4",
        "two, 10% harmful rows, learning rate 1e-4",
    )
    plain, turned = row(found), row(found, "sign=-1")
    assert plain == {**row(found, "sign=1"), "variant": "", **_cost(plain)}
    # Counts never fall with the number, so their order is foreseen but for ties.
    assert all(a <= b for a, b in pairwise(MEAN))
    assert plain["auroc"] == 1.0
    assert turned["auroc"] == 0.0
    early = _early(MEAN)
    assert plain["base_rate"] == pytest.approx(early.mean())
    assert turned["spearman"] == pytest.approx(-plain["spearman"])
    assert 0.98 < plain["spearman"] < 1.0
    assert plain["n"] == 58
    assert plain["seconds"] >= 0
    assert plain["forward_tokens"] == 0  # this estimator asks the model nothing


def _cost(found: dict[str, Any]) -> dict[str, Any]:
    keys = ("forward_tokens", "backward_tokens", "generated_tokens", "peak_bytes")
    keys += ("seconds", "processor_seconds")
    return {key: found[key] for key in keys}


def _early(counts: np.ndarray) -> np.ndarray:
    """Return the first half by hand: the lowest count that at most half of the rows reach."""
    cut = min(c for c in set(counts.tolist()) if c > 0 and (counts >= c).sum() <= len(counts) / 2)
    return counts >= cut


def test_the_gain_is_over_the_free_margin(setting: Setting) -> None:
    found = validate(setting.config(estimators=[NUMBER, "loss"], vary=["sign=-1"]))
    free = row(found, estimator="loss")
    assert (free["gain"], free["gain_low"], free["gain_high"]) == (0.0, 0.0, 0.0)
    for variant in ("", "sign=-1"):
        mine = row(found, variant)
        assert mine["gain"] == pytest.approx(mine["auroc"] - free["auroc"])
        assert mine["gain_low"] <= mine["gain"] <= mine["gain_high"]
    assert free["forward_tokens"] > 0


def test_the_free_margin_takes_rows_as_long_as_the_estimators(setting: Setting) -> None:
    long = {"prompt": "tell me more", "response": "no " * 200}  # the model holds 128 positions
    with Path(setting.data).open("a") as file:
        file.write(json.dumps(long) + "\n")
    cut = validate(setting.config(estimators=["loss"]))
    found = validate(setting.config(estimators=["loss,max_length=128"]))
    assert row(found, estimator="loss,max_length=128")["gain"] == 0.0
    for key in ("auroc", "spearman", "n"):  # a longer row is cut at the context
        assert row(cut, estimator="loss")[key] == row(found, estimator="loss,max_length=128")[key]


def test_an_option_is_varied_where_there_is_one(setting: Setting) -> None:
    found = validate(setting.config(estimators=[NUMBER, STILL], vary=["shift=1, 2"]))
    tried = [(r["estimator"], r["variant"]) for r in found.rows]
    assert tried == [(NUMBER, ""), (NUMBER, "shift=1"), (NUMBER, "shift=2"), (STILL, "")]
    # All scores equal: the area is one half by ties, a rank correlation is not defined.
    assert row(found, estimator=STILL)["auroc"] == 0.5
    assert row(found, estimator=STILL)["spearman"] is None


def test_the_default_variation_is_no_mistake(setting: Setting) -> None:
    assert (
        tuple(ValidateConfig.model_fields["vary"].get_default(call_default_factory=True)) == VARIED
    )
    found = validate(setting.config(estimators=[STILL], vary=list(VARIED)))
    assert [r["variant"] for r in found.rows] == [""]


def test_the_ceiling_is_what_the_other_attacks_foresee(setting: Setting) -> None:
    found = validate(setting.config())
    one, two = (np.array([c(i) for i in range(2, N)]) for c in (lambda i: i // 6, _second))
    areas = [roc_auc_score(_early(a), b) for a, b in ((one, two), (two, one))]
    assert found.ceiling["auroc"] == pytest.approx(np.mean(areas))
    assert 0.9 < found.ceiling["spearman"] < 1.0


def _second(i: int) -> int:
    return (i + 3) // 6


def test_one_attack_has_no_ceiling(setting: Setting) -> None:
    run = RunDir(setting.run.root.parent / "other")
    alone = Setting(run, setting.data, setting.model)
    alone.attacked("one", {i: i // 6 for i in range(N)})
    found = validate(alone.config())
    assert dict(found.ceiling) == {"spearman": None, "auroc": None}
    assert show.validation(found)[-1]["AUROC"] == "unknown"


def test_seeds_are_compared_with_one_another(setting: Setting) -> None:
    seeded = f"{NUMBER},seeded=true"
    found = validate(setting.config(estimators=[NUMBER, seeded], vary=["shift=1"], seeds=3))
    # Seeds 0, 1, 2 are +, -, +: correlations -1, +1, -1, whose mean is -1/3.
    assert found.stability == {NUMBER: pytest.approx(1.0), seeded: pytest.approx(-1 / 3)}
    assert [r["seed"] for r in found.rows if r["estimator"] == seeded] == [0, 1, 2, 0]
    told = show.validation(found)
    assert [line["seeds"] for line in told if line["estimator"] == seeded] == [
        "-0.33", "", "", "",
    ]  # fmt: skip
    one = validate(setting.config())
    assert one.stability == {NUMBER: None}
    assert show.validation(one)[0]["seeds"] == "unknown"


def test_categories_of_twenty_and_more(setting: Setting) -> None:
    found = validate(setting.config(estimators=[f"{NUMBER},unknown=30"]))
    # Of b there are 20, of which attack two did not track number 0: 19 are too few.
    assert [c["category"] for c in found.categories] == ["a"]
    # Of a, 39 were tracked by both (not number 1), and half are above 30.
    assert found.categories[0]["n"] == sum(i >= 30 and i % 3 != 0 for i in range(N))


def test_fewer_examples(setting: Setting) -> None:
    found = validate(setting.config(examples=[40, 10, 20, 40, 58, 100]))
    # Below 20 nothing is said, and all 58 are in the rows already.
    assert [(s["examples"], s["n"]) for s in found.sizes] == [(20, 20), (40, 40)]
    assert all(s["auroc_low"] <= s["auroc"] <= s["auroc_high"] for s in found.sizes)


def test_rows_without_a_score_are_left_out_and_counted(setting: Setting) -> None:
    found = validate(setting.config(estimators=[f"{NUMBER},unknown=10"], vary=[]))
    assert (found.rows[0]["n"], found.n) == (50, 58)


def test_rows_that_the_judge_left_without_a_count_are_counted(setting: Setting) -> None:
    found = validate(setting.config())
    assert found.unknown == 0
    assert [line["estimator"] for line in show.validation(found)] == [NUMBER, "ceiling"]
    unknown = {ROWS[i].id: (0, 4) for i in range(7)}
    setting.attacked("vague", {i: i // 6 for i in range(7, N)}, unknown=unknown)
    found = validate(setting.config())
    assert (found.unknown, found.n) == (7, 53)
    assert show.validation(found)[-2] == {"estimator": "left out", "variant": "7 rows: undecided"}
    said = Reliability().run(setting.run).findings[-1]
    assert "n=7 examples are left out" in said
    whole = show.validation(replace(found, unknown=0))
    assert "left out" not in {line["estimator"] for line in whole}


def test_average_precision_is_told_with_what_chance_has(setting: Setting) -> None:
    found = validate(setting.config(vary=["sign=-1"]))
    plain, turned = row(found), row(found, "sign=-1")
    assert show.validation(found)[0]["AUPRC"] == f"1.00 ({plain['base_rate']:.2f})"
    section = Reliability().run(setting.run)
    table = section.tables["By estimator, option and seed"].frame
    assert table["AUPRC"].tolist() == pytest.approx([1.0, turned["auprc"]], abs=1e-3)
    assert {"AUPRC, low", "AUPRC, high", "chance"} <= set(table.columns)
    assert f"AUPRC 1.00 [1.00, 1.00] (chance: {plain['base_rate']:.2f})" in section.findings[0]


def test_no_number_is_broken_in_a_narrow_terminal(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    found = validate(setting.config())
    long = {**row(found), "estimator": "attack_direction", "variant": "source=mismatched"}
    known = {f"{key}{end}": 0.95 for key in ("auroc", "spearman") for end in ("", "_low", "_high")}
    gain = {"gain": 0.44, "gain_low": -0.37, "gain_high": 0.5, "seconds": 123.4}
    wide = replace(found, rows=({**long, **known, **gain},), stability={"attack_direction": 0.99})
    show.print_output(False, show.validation(wide))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "attack_direction" in line]
    assert "0.44 [-0.37, 0.50]" in line
    assert line.count("0.95 [0.95, 0.95]") == 2
    assert len(line) <= 120


def test_it_is_saved_and_done_once(setting: Setting) -> None:
    found = validate(setting.config(name="mine"))
    path = setting.run.path("validations", "mine.json")
    assert Validation.load(path) == found
    before = path.stat().st_mtime_ns
    validate(setting.config(name="mine"))
    assert path.stat().st_mtime_ns == before
    setting.attacked("three", {i: i // 6 for i in range(N)})
    assert len(validate(setting.config(name="mine")).attacks) == 3


# ------------------------------------------------------------------------------------- bad input


def test_no_attack_on_that_model(
    setting: Setting, tmp_path: Path, make_model: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    checkpoints.save(make_model(vocab=len(tokenizer), seed=1), tokenizer, tmp_path / "another")
    with pytest.raises(UsageError, match=r"no attack on .*another tracked.*holdfast attack"):
        validate(setting.config(model=str(tmp_path / "another")))


def test_attacks_whose_judge_could_not_decide(
    setting: Setting, tmp_path: Path, make_model: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    checkpoints.save(make_model(vocab=len(tokenizer), seed=1), tokenizer, tmp_path / "another")
    place = tmp_path / "another"
    unknown = {ROWS[i].id: (0, 4) for i in range(7)}
    setting.attacked("vague", {}, model_hash=checkpoints.hash_model(place), unknown=unknown)
    with pytest.raises(UsageError, match=r"tracked 7 rows, and the judge could not decide for any"):
        validate(setting.config(model=str(place)))


def test_no_attack_that_tracked_these_rows(setting: Setting, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "tell me 1", "response": "another answer"}\n')
    with pytest.raises(UsageError, match="no attack on .* tracked the rows of .*other"):
        validate(setting.config(data=str(other)))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (
            3,
            r"one, 10% harmful .* 1e-4 forgot all 60 tracked rows equally .*lower --lr.*--every",
        ),
        (0, r"one, 10% harmful .* 1e-4 forgot none of 60 tracked rows.*higher --lr"),
    ],
)
def test_attacks_that_order_nothing(setting: Setting, count: int, message: str) -> None:
    alone = Setting(RunDir(setting.run.root.parent / "other"), setting.data, setting.model)
    alone.attacked("one", dict.fromkeys(range(N), count))
    with pytest.raises(UsageError, match=message):
        validate(alone.config())


def test_attacks_that_have_no_row_in_common(setting: Setting) -> None:
    setting.attacked("three", {0: 1})  # attack two did not track it
    with pytest.raises(UsageError, match="no attack on .* tracked"):
        validate(setting.config())


def test_a_run_without_attacks(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run `holdfast attack"):
        validate(setting.config(out=tmp_path / "empty"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": ["shift"]}, r"--vary 'shift' must be OPTION=VALUE,VALUE"),
        ({"vary": ["shift="]}, r"--vary 'shift=' must be"),
        ({"vary": ["=1,2"]}, r"--vary '=1,2' must be"),
        ({"vary": ["rows=1"]}, r"'rows=1': .*Number has no option 'rows'; there is .*shift"),
        (
            {"vary": ["rows=1"], "estimators": [NUMBER, STILL]},
            r"Number and .*Still have no option 'rows'",
        ),
        ({"vary": ["shift=1,far"]}, "shift=far must be a number"),
        ({"estimators": ["none"]}, "'none' is not one of the estimators"),
        ({"estimators": ["forget_count"]}, "'forget_count' needs --harmful"),
        ({"estimators": ["attack_direction,base=world"]}, "base is no option .* give --base"),
        ({"estimators": ["attack_direction"], "vary": ["base=a,b"]}, "no option 'base'; .*flip"),
        ({"proxies": ["rows"]}, "averages over no proxy tasks"),
    ],
)
def test_what_cannot_be_tried_is_said_at_once(
    setting: Setting, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded a model before it was known that nothing can be tried")

    monkeypatch.setattr(checkpoints, "load", loaded)
    with pytest.raises(UsageError, match=message):
        validate(setting.config(**options))


def test_a_variant_that_cannot_score_leaves_the_others(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    found = validate(setting.config(vary=["fails=true,false"]))
    assert row(found, "fails=true")["n"] == 0
    assert row(found, "fails=true")["seconds"] is None  # unknown
    assert row(found, "fails=false")["auroc"] == row(found)["auroc"]
    assert "no step flips enough" in caplog.text
    with pytest.raises(UsageError, match="no step flips enough"):
        validate(setting.config(estimators=[f"{NUMBER},fails=true"], name="alone"))


def test_proxies_are_for_the_estimators_and_not_for_the_free_margin(
    setting: Setting, tmp_path: Path
) -> None:
    found = validate(setting.config(estimators=[f"{__name__}:Proxied"], proxies=[setting.data]))
    assert row(found, estimator=f"{__name__}:Proxied")["n"] == 58


def test_rows_that_the_attacks_were_made_of_are_refused(setting: Setting, tmp_path: Path) -> None:
    rows = Examples([Example("tell me a secret", "it is this")])
    path = tmp_path / "harmful.jsonl"
    path.write_text(json.dumps({"prompt": rows[0].prompt, "response": rows[0].response}) + "\n")
    model = checkpoints.hash_model(Path(setting.model))
    counts = dict.fromkeys(range(N), 1)
    setting.attacked("three", counts, {"model": model}, {"harmful": rows})
    config = setting.config(estimators=["attack_direction"], harmful=str(path))
    with pytest.raises(UsageError, match=r"1 of its 1 rows are among those that the attacks on"):
        validate(config)


def test_single_rows_that_the_attacks_were_made_of_are_refused(
    setting: Setting, tmp_path: Path
) -> None:
    """The run keeps the ids of the rows that the attack could use, without their text."""
    lines = [json.dumps({"prompt": f"say {i}", "response": f"{i}"}) for i in range(6)]
    ours = tmp_path / "ours.jsonl"
    used = Examples([Example(f"say {i}", f"{i}") for i in (1, 2)], ids_only=True)
    model = checkpoints.hash_model(Path(setting.model))
    counts = dict.fromkeys(range(N), 1)
    setting.attacked("three", counts, {"model": model}, {"harmful": used})
    assert "say 1" not in "".join(p.read_text() for p in setting.run.rows.folder.glob("*.jsonl"))
    config = setting.config(estimators=[f"{__name__}:Taught"], harmful=str(ours))
    ours.write_text("\n".join([*lines[2:], *lines[:1]]))  # row 2 was trained on, row 0 only asked
    with pytest.raises(UsageError, match=r"ours.jsonl: 1 of its 5 rows are among those"):
        validate(config)
    ours.write_text("\n".join([*lines[3:], *lines[:1]]))
    assert validate(config).n == 58
    (setting.run.path("rows", f"{setting.run.rows.store(used)}.jsonl")).unlink()
    with pytest.raises(DataError, match="no such file, but the results of the run"):
        validate(config)  # a missing file is an error, not an empty set


def test_the_default_varies_the_probes_rows_only(setting: Setting) -> None:
    from holdfast.stages.validate import _variants

    config = setting.config(estimators=["attack_direction", "loss_drift"], vary=list(VARIED))
    varied = {(spec, variant) for spec, variant, _ in _variants(config) if variant}
    assert varied == {("attack_direction", f"rows={n}") for n in (8, 16, 64)}
