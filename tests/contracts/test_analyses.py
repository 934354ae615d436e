"""What every analysis must do, on a small run of all stages with a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.charts.drawing import render
from holdfast.contracts import Analysis, Section
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.models import checkpoints
from holdfast.reports.catalogue import language
from holdfast.results.artifacts import AttackResult
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.texts import Text

MEASURES = {"n", "p", "auroc", "auprc", "spearman", "jaccard", "kappa"}
"""Heads that every language writes alike."""
STAGES = {"score", "group", "align", "attack", "adapt", "evaluate", "validate-estimator"}


def _written(path: Path, rows: Examples) -> str:
    lines = [json.dumps({"prompt": r.prompt, "response": r.response, **r.provenance}) for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def _of_two_categories() -> list[Example]:
    from holdfast import world

    asked = world.rows("test")
    wanted = sorted({row.provenance["category"] for row in asked})[:2]
    kinds = [[row for row in asked if row.provenance["category"] == kind] for kind in wanted]
    return [row for kind in kinds for row in kind[:10]]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    rows: Any,
    _aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> RunDir:
    """Align, score, group, attack and evaluate, each in a few steps."""
    import holdfast as h
    from holdfast.stages.attack import attack as attack_stage
    from holdfast.stages.evaluate import evaluate as evaluate_stage
    from holdfast.stages.group import group as group_stage
    from holdfast.stages.score import score as score_stage

    folder = tmp_path_factory.mktemp("run")
    base, out = folder / "tiny", folder / "run"
    checkpoints.save(_aligned, tokenizer, base)
    safety = _written(folder / "safety.jsonl", rows.safety)
    benign = _written(folder / "benign.jsonl", rows.benign)
    harmful = _written(folder / "harmful.jsonl", list(rows.harmful)[8:])
    known = _written(folder / "known.jsonl", list(rows.harmful)[:8])
    test = _written(folder / "test.jsonl", Examples([*rows.planted, *_of_two_categories()]))
    common: dict[str, Any] = {"out": out, "device": "cpu"}
    h.align(
        h.AlignConfig(
            model=str(base), data=safety, benign=benign, epochs=1, learning_rate=1e-3, **common
        )
    )
    aligned = str(out / "models" / "sft-s0")
    scored = h.ScoreConfig(model=aligned, data=safety, harmful=known, benign=benign, **common)
    score_stage(scored)
    group_stage(h.GroupConfig(data=safety, **common))
    attack_stage(
        h.AttackConfig(
            models=["sft-s0"],
            tasks=["world_sentiment", "world_topic"],
            harmful=harmful,
            test=test,
            judges=["refusal", "world"],  # the first is the one that a tiny model can set off
            poison_ratios=[0.5],
            learning_rates=[3e-3],
            steps=8,
            every=2,
            rows=16,
            batch_size=8,
            max_new_tokens=16,
            task_rows=2,
            track=safety,
            **common,
        )
    )
    h.adapt(
        h.AdaptConfig(
            models=["sft-s0"],
            task="world_topic",
            harmful=harmful,
            test=test,
            judges=["refusal"],
            trials=2,
            floor=0.0,
            learning_rates=[1e-3, 1e-2],
            steps=[4, 8],
            lora_rank=[0],
            poison_ratios=[0.5],
            batch_size=[8],
            options={"rows": 16, "max_new_tokens": 16, "task_rows": 2},
            **common,
        )
    )
    h.validate(
        h.ValidateConfig(
            model="sft-s0",
            data=safety,
            harmful=known,
            benign=benign,
            vary=["source=mismatched"],
            seeds=2,
            examples=[20],
            **common,
        )
    )
    evaluate_stage(
        h.EvaluateConfig(
            models=["sft-s0", str(base)],
            test=test,
            judges=["world", "refusal"],
            over_refusal=benign,
            tasks=["world_general"],
            task_rows=4,
            max_new_tokens=16,
            **common,
        )
    )
    return RunDir(out)


@pytest.fixture(params=plugins.available("analyses"))
def analysis(request: pytest.FixtureRequest) -> Analysis:
    made: Analysis = plugins.make("analyses", request.param)
    return made


def test_needs_are_stages(analysis: Analysis) -> None:
    assert analysis.needs
    assert set(analysis.needs) <= STAGES


def test_the_run_has_forgotten_examples(run: RunDir) -> None:
    """Without any, the analyses below would have little to say."""
    for entry in run.require("attack"):
        result = AttackResult.load(run.path(next(iter(entry.outputs))))
        counts = list(result.tracked.values())
        assert len(counts) > 12
        assert 0 < sum(c > 0 for c in counts)


def test_every_finding_has_its_n_and_an_interval(analysis: Analysis, run: RunDir) -> None:
    section = analysis.run(run)
    assert isinstance(section, Section)
    assert section.title
    assert section.findings
    assert section.note, "say what the numbers can and cannot show"
    for sentence in section.findings:
        assert re.search(r"\bn=\d+", sentence), sentence
        assert re.search(r"\[[^\]]+\]|between \S+ and \S+|\bunknown\b", sentence), sentence
        assert sentence.endswith(".")


def test_tables_and_figures_can_be_shown(analysis: Analysis, run: RunDir) -> None:
    section = analysis.run(run)
    assert section.tables
    for caption, table in section.tables.items():
        assert caption
        assert len(table) > 0
    for caption, figure in section.figures.items():
        assert caption
        assert figure.title
        assert ElementTree.fromstring(render(figure)).tag.endswith("svg")


def _said(section: Section) -> Iterator[str]:
    """What a reader sees of a section, except the cells and labels that are names."""
    yield from (section.title, *section.findings, *section.tables, *section.figures, section.note)
    for table in section.tables.values():
        heads = (h for h in table.columns if h.lower() not in MEASURES)
        yield from (head for head in heads if head not in Attack.model_fields)
        yield from (c for row in table.rows for c in row if isinstance(c, Text))
    yield from (figure.title for figure in section.figures.values())


def _inside(text: str) -> Iterator[Text]:
    """A message and those in its values."""
    if isinstance(text, Text):
        yield text
        for value in text.values.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, str):
                    yield from _inside(item)


def test_everything_can_be_said_in_japanese(analysis: Analysis, run: RunDir) -> None:
    japanese = language("ja")
    for text in _said(analysis.run(run)):
        assert isinstance(text, Text), text
        for message in _inside(text):
            if re.search("[A-Za-z]", re.sub(r"\{[^}]*\}", "", message.template)):
                assert message.template in japanese.messages, message.template


def test_the_same_run_gives_the_same_section(
    analysis: Analysis, run: RunDir, tmp_path: Path
) -> None:
    from holdfast.reports.sections import load_section, save_section

    first, second = analysis.run(run), analysis.run(run)
    assert first.findings == second.findings
    assert repr(first.figures) == repr(second.figures)  # nan is not equal to itself
    save_section(tmp_path / "section.json", first)
    assert load_section(tmp_path / "section.json").findings == first.findings


def test_it_leaves_the_run_as_it_was(analysis: Analysis, run: RunDir) -> None:
    before = (run.digest, sorted(p for p in run.root.rglob("*")))
    analysis.run(run)
    assert (run.digest, sorted(p for p in run.root.rglob("*"))) == before
    assert run.verify() == []


def test_what_is_missing_is_made_by_a_command_that_is_named(
    analysis: Analysis, run: RunDir, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        analysis.run(RunDir(tmp_path))
    named = re.findall(r"`holdfast ([\w-]+)", str(raised.value))
    assert named
    assert set(named) <= set(analysis.needs)
