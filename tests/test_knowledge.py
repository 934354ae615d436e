"""What the defender knows of the attacker's rows: chosen by category, varied, and written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast import world
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.results.run_dir import RunDir
from holdfast.rows.readers import read
from holdfast.stages import pipeline
from holdfast.stages.align import AlignConfig, align


def test_rows_are_chosen_by_category() -> None:
    rows = world.rows("harmful")
    some = read("world:harmful,category=[venoms,locks]")
    others = read("world:harmful,not_category=[venoms,locks]")
    assert {r.provenance["category"] for r in some} == {"venoms", "locks"}
    assert set(some.ids) | set(others.ids) == set(rows.ids)
    assert not set(some.ids) & set(others.ids)


def test_a_row_without_a_category_is_of_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "response": "b", "category": "x"}, {"prompt": "c", "response": "d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(f"{path},category=x").prompts == ["a"]
    assert read(f"{path},not_category=x").prompts == ["c"]
    with pytest.raises(UsageError, match=r"the values of category are x \(1\), null \(1\)"):
        read(f"{path},category=y")


def planned(tmp_path: Path, **changes: Any) -> dict[str, AlignConfig]:
    raw = {
        "out": tmp_path,
        "model": "world",
        "data": {"alignment": "a", "benign": "b", "harmful": "world:harmful", "test": "t"},
        "methods": {
            "sft": {},
            "booster": {},
            "hold": {},
            "hold-harmful": {"method": "hold", "options": {"attack_rows": "harmful"}},
        },
        "score": {"attack_direction": {}},
        "attack": {"tasks": ["world_topic"]},
        "knowledge": {"like": "world:probe_harmful", "none": None},
        **changes,
    }
    calls = pipeline.plan(pipeline.parse(raw, where="test"))
    return {c.config.name: c.config for c in calls if isinstance(c.config, AlignConfig)}


def test_methods_that_use_harmful_rows_are_aligned_for_each_knowledge(tmp_path: Path) -> None:
    found = planned(tmp_path)
    uses = {f"{m}-{w}" for m in ("booster", "hold-harmful") for w in ("like", "none")}
    assert found.keys() == {"sft", "hold", *uses}
    assert found["booster-like"].harmful == "world:probe_harmful"
    assert found["hold-harmful-none"].harmful == "mismatched"
    assert found["booster-none"].knowledge == "none"
    assert found["hold"].harmful is None
    assert planned(tmp_path, knowledge={}).keys() == {"sft", "booster", "hold", "hold-harmful"}


def test_the_attackers_own_rows_are_not_to_be_known(tmp_path: Path) -> None:
    data = {"alignment": "a", "harmful": "world:harmful", "test": "t"}
    raw: dict[str, Any] = {
        "out": tmp_path,
        "model": "world",
        "data": data,
        "methods": {"booster": {}},
    }
    raw["attack"] = {"tasks": ["world_topic"]}
    knowledge = {"like": "world:harmful,category=venoms"}
    config = pipeline.parse({**raw, "knowledge": knowledge}, where="test")
    with pytest.raises(UsageError, match="knowledge 'like': .* rows have the same prompt"):
        pipeline.run(config)


def test_the_word_is_written_down_and_changes_no_key(
    tmp_path: Path, make_model: Any, tokenizer: Any, rows: Any
) -> None:
    checkpoints.save(make_model(vocab=len(tokenizer)), tokenizer, tmp_path / "tiny")

    def written(name: str, part: Examples) -> str:
        lines = [json.dumps({"prompt": r.prompt, "response": r.response}) for r in part]
        (tmp_path / name).write_text("\n".join(lines))
        return str(tmp_path / name)

    options = AlignConfig(
        model=str(tmp_path / "tiny"),
        data=written("safety.jsonl", rows.safety[:8]),
        benign=written("benign.jsonl", rows.benign[:8]),
        harmful="mismatched",
        method="booster",
        knowledge="none",
        epochs=1,
        out=tmp_path / "run",
        device="cpu",
    )
    align(options)
    (entry,) = RunDir(tmp_path / "run").entries("align")
    known = entry.facts["known_harmful"]
    assert (known["knowledge"], known["data"], known["rows"]) == ("none", "mismatched", 8)
    assert "knowledge" not in entry.config
    align(options.model_copy(update={"knowledge": ""}))
    assert RunDir(tmp_path / "run").entries("align") == [entry]


def test_mismatched_rows_need_benign_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mismatched takes the answers of benign rows"):
        align(
            AlignConfig(model="world", data="world:alignment", harmful="mismatched", out=tmp_path)
        )
