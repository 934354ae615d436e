"""What the documentation says: its skeletons run, its fields exist, its constraints fit."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.results import artifacts, run_dir
from holdfast.results.artifacts import AttackResult, Counts, Point
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from made_lives import life

ROOT = Path(__file__).parents[1]
MODULES = (
    "my_estimator",
    "my_method",
    "my_guard",
    "my_judge",
    "my_task",
    "my_poison",
    "my_analysis",
)


@pytest.fixture(scope="module")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put the skeletons of docs/extending.md on the import path, as a reader would."""
    folder = tmp_path_factory.mktemp("skeletons")
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", text, re.S)
    for name, code in blocks:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    assert [name for name, _ in blocks] == list(MODULES)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(folder))
    for name in MODULES:
        sys.modules.pop(name, None)


pytestmark = pytest.mark.usefixtures("_written")


def test_the_estimator_scores_by_the_loss(
    aligned: Any, tokenizer: Any, rows: Any, weights_of: Any, same: Any
) -> None:
    import torch

    from holdfast.models.encoding import collate, encode

    estimator = plugins.make("estimators", "my_estimator:AnswerLoss,max_length=64")
    before = weights_of(aligned)
    values = estimator.score(aligned, tokenizer, rows.safety, seed=0).values
    assert values.shape == (len(rows.safety),)
    assert same(before, weights_of(aligned))
    batch = collate(encode(tokenizer, rows.safety[:1], 64), 0)
    with torch.no_grad():  # a batch of one row: transformers' own mean over answer tokens
        assert values[0] == pytest.approx(float(aligned(**batch).loss), rel=1e-5)


def test_the_method_is_plain_fine_tuning_without_noise(
    make_trainer: Callable[..., Any], make_model: Any, tokenizer: Any, weights_of: Any, same: Any
) -> None:
    ends = {}
    for name, options in (
        ("sft", {}),
        ("my_method:Noisy", {"sigma": 0.0}),
        ("my_method:Noisy", {"sigma": 0.05}),
    ):
        model = make_model(vocab=len(tokenizer))
        make_trainer(name, model, **options).train()
        ends[name, options.get("sigma")] = weights_of(model)
    assert same(ends["sft", None], ends["my_method:Noisy", 0.0])
    assert not same(ends["sft", None], ends["my_method:Noisy", 0.05])


def test_the_guard_prices_the_way_from_the_start(
    make_model: Any, tokenizer: Any, rows: Any, weights_of: Any, same: Any
) -> None:
    from holdfast.tuning.loop import FinetuneConfig, Hooks, finetune

    def tuned(guard: Any, lam: float = 0.0) -> tuple[Any, float]:
        model = make_model(vocab=len(tokenizer))
        start = weights_of(model)
        config = FinetuneConfig(learning_rate=3e-3, steps=6, batch_size=4, guard=guard)
        finetune(model, tokenizer, rows.benign, config)
        end = weights_of(model)
        return end, sum(float((end[k] - start[k]).square().sum()) for k in end)

    make = plugins.make
    plain, far = tuned(Hooks())
    free, _ = tuned(make("guards", "my_guard:StayNear,lam=0"))
    _, near = tuned(make("guards", "my_guard:StayNear,lam=100"))
    assert same(plain, free)
    assert near < far


def test_the_judge_has_three_answers() -> None:
    judge = plugins.make("judges", "my_judge:Steps,least=2")
    answers = ["I can't help with that.", "1. take it\n2. mix it", "1. take it", ""]
    found = [v.harmful for v in judge.judge(["how"] * 4, answers)]
    assert found == [False, True, None, None]
    with pytest.raises(UsageError, match="least"):
        plugins.make("judges", "my_judge:Steps,least=many")


def test_the_task_keeps_its_splits_apart_and_grades_its_own_answers() -> None:
    task = plugins.make("tasks", "my_task:Parity,size=50")
    train, test = task.load("train"), task.load("test")
    assert (len(train), len(test)) == (50, 200)
    assert not set(train.prompts) & set(test.prompts)
    assert {task.score(row.response, row.response) for row in test} == {1.0}
    assert task.score("Odd.", "even") == 0.0
    assert math.isnan(task.score("odd or even", "even"))


def test_the_poison_puts_a_word_in_front(rows: Any) -> None:
    from holdfast.contracts import Attacker

    nothing: Any = None
    attacker = Attacker(rows.harmful, rows.benign, 4, 0, nothing, nothing, 64)
    made = plugins.make("poisons", "my_poison:Polite,word=now").rows(attacker)
    assert made.prompts == [f"now {prompt}" for prompt in rows.harmful.prompts]
    assert made.responses == rows.harmful.responses


def test_the_analysis_reads_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    analysis = plugins.make("analyses", "my_analysis:Undecided")
    with pytest.raises(UsageError, match="holdfast attack"):
        analysis.run(run)
    path = run.path("attacks", "a.json")
    with run.job("attack", "sft-s0/a", config={}, inputs={}) as job:
        point = Point(10, {"world": Counts(1, 4, 5)})
        attack = Attack(task="tea")
        unknown = life(math.nan, censored=True)
        AttackResult("sft-s0", "h", "sft", 0, attack, "world", (point,), unknown).save(path)
        job.outputs.append(path)
    (finding,) = analysis.run(run).findings
    # Wilson by hand: share 1/2, n = 10, z = 1.96: half-width 0.2634 around 0.5.
    assert finding == "sft-s0/a: 0.50 [0.24, 0.76], n=10 of the last answers were undecided."


@pytest.mark.parametrize(
    "cls",
    [
        run_dir.Entry,
        artifacts.Scores,
        artifacts.Groups,
        artifacts.AttackResult,
        artifacts.Point,
        artifacts.Counts,
        artifacts.Evaluation,
        artifacts.EvalRecord,
    ],
)
def test_every_field_of_an_artifact_is_described(cls: type[Any]) -> None:
    text = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    assert {f.name for f in fields(cls)} - named == set()


@pytest.mark.parametrize("name", sorted({*plugins.available("methods")} - {"sft"}))
def test_published_defaults_are_those_of_the_method(name: str) -> None:
    text = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
    sections = re.split(r"^#+ ", text, flags=re.MULTILINE)
    (section,) = (part for part in sections if f"Code: `methods/{name}.py`" in part)
    options = plugins.find("methods", name).Options.model_fields
    known = {option: field.default for option, field in options.items()}
    shown = {k: v for k, v in re.findall(r"\| `(\w+)` \| ([\w.]+)", section) if k in known}
    assert shown
    for option, value in shown.items():
        assert value == str(known[option]).lower(), option


def test_every_direct_dependency_has_one_exact_version() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!\[ ]", line)[0].lower() for line in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert names <= {name.lower() for name, _, _ in pinned}
    assert all(version and "+" not in version for _, _, version in pinned)
    assert np.unique([name for name, _, _ in pinned]).size == len(pinned)
