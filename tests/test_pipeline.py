"""A run's configuration: what is wrong with it is one message."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from holdfast.errors import UsageError
from holdfast.stages import demo, pipeline
from holdfast.stages.attacking.config import AttackConfig

EMPTY = """
out: {out}
model: world
data: {{alignment: "world:alignment", harmful: "world:harmful", test: "world:test"}}
methods: {{sam: {{options: }}}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run configuration: out is required; model is required; data is required"),
        ("vars:", "run configuration: out is required; model is required; data is required"),
        ("vars: [a, b]", r"vars must map names to values, got \['a', 'b'\]"),
        ("vars: {A: '{b: c'}\nout: ${A}", "not valid YAML once its variables are filled in"),
        ("- a list", "not a YAML mapping"),
        ("out: ${NOBODY_SET_THIS}", "variable 'NOBODY_SET_THIS' is not set"),
        ("a: [", "not a YAML mapping"),
        ("model: a\nmodel: b", "line 2, column 1: the key 'model' occurs twice"),
    ],
)
def test_what_is_no_configuration_is_one_message(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        pipeline.load(path)


def test_a_variable_may_break_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("out: ${A}")
    with pytest.raises(UsageError, match="not valid YAML once its variables are filled in"):
        pipeline.load(path, {"A": "{b: c"})


def test_a_variable_that_is_misspelt_is_no_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("vars: {SEEDS: 3}\nout: ${OUT}")
    with pytest.raises(UsageError, match=r"--set MODLE: .* has no such variable; it has OUT, SEED"):
        pipeline.load(path, {"OUT": "a", "MODLE": "x"})
    with pytest.raises(UsageError, match="is a directory; give a configuration file"):
        pipeline.load(tmp_path)


def test_options_that_are_not_there_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(EMPTY.format(out=tmp_path))
    with pytest.raises(
        UsageError, match="run.yaml: align: options=None must be a mapping of names to values"
    ):
        pipeline.load(path)


ATTACKS = """
out: {out}
model: world
data: {{alignment: "world:alignment", harmful: "world:harmful", test: "world:test"}}
methods: {{sft: {{}}, sam: {{}}}}
attack: {{tasks: [world_topic], steps: 50, until_broken: {until_broken}}}
track: {track}
more_attacks: {more}
"""


def attacks_of(
    tmp_path: Path, *, more: str = "{}", track: str = "false", until_broken: str = "true"
) -> dict[str, AttackConfig]:
    """Return the planned attacks by their titles."""
    path = tmp_path / "run.yaml"
    out = tmp_path / "run"
    path.write_text(ATTACKS.format(out=out, more=more, track=track, until_broken=until_broken))
    calls = [call for call in pipeline.plan(pipeline.load(path)) if call.stage == "attack"]
    return {call.name: cast(AttackConfig, call.config) for call in calls}


def test_the_attacks_on_the_scored_model_track_the_alignment_rows(tmp_path: Path) -> None:
    attacks = attacks_of(tmp_path, track="true", until_broken="false")
    assert {name: attack.track for name, attack in attacks.items()} == {
        "sft-s0": "world:alignment",
        "sam-s0": None,
    }


def test_further_attacks_differ_in_what_they_name(tmp_path: Path) -> None:
    more = """{
      long: {steps: 90},
      tracked: {methods: [sft], steps: 24, until_broken: false, track: "world:alignment"}}"""
    attacks = attacks_of(tmp_path, more=more)
    assert list(attacks) == ["sft-s0", "sft-s0-long", "sft-s0-tracked", "sam-s0", "sam-s0-long"]
    assert [attack.models for attack in attacks.values()] == [["sft-s0"]] * 3 + [["sam-s0"]] * 2
    assert [attack.name for attack in attacks.values()] == ["", "long", "tracked", "", "long"]
    assert [attack.steps for attack in attacks.values()] == [[50], [90], [24], [50], [90]]
    assert [attack.until_broken for attack in attacks.values()] == [True, True, False, True, True]
    tracking = [name for name, attack in attacks.items() if attack.track is not None]
    assert tracking == ["sft-s0-tracked"]


def test_further_attacks_on_a_method_that_the_run_lacks_are_refused(tmp_path: Path) -> None:
    message = r"more_attacks.long.methods: 'vaa' is not a method of this run; its methods are sft, "
    with pytest.raises(UsageError, match=message):
        attacks_of(tmp_path, more="{long: {methods: [vaa]}}")


def test_the_demo_attacks_until_the_models_break(tmp_path: Path) -> None:
    calls = pipeline.plan(demo.configuration(tmp_path))
    attacks = {call.name: call.config for call in calls if isinstance(call.config, AttackConfig)}
    broken = [name for name, attack in attacks.items() if attack.until_broken]
    assert broken == ["sft-s0", "vaa-s0", "hold-s0"]
    assert [name for name, attack in attacks.items() if attack.track] == ["sft-s0-tracked"]
    assert len({call.title for call in calls}) == len(calls)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("sead: [1]", "run configuration: sead is not an option. Did you mean seeds? The options "
         "are align, analyses, answer, attack, "),
        ("score: {loss: {estimater: loss}}", "score: estimater is not an option. Did you mean "
         "estimator? The options are agreement, "),
        ("attack: {tasks: [world_topic], stepz: 3}", "attack: stepz is not an option. Did you mean "
         "steps?"),
        ("attack: {tasks: [world_topic], lr: 0.1}", "attack: lr is not an option; here it is "
         "called learning_rates"),
        ("attack: {task: [world_topic]}", "attack: tasks is required; task is not an option; "
         "here it is called tasks"),
        ("attack: {tasks: [world_topic], batch-size: 8}", "attack: batch-size is not an option; "
         "here it is called batch_size"),
        ("align: {lr: 0.1}", "align: lr is not an option; here it is called learning_rate"),
        ("judge: [refusal]", "run configuration: judge is not an option; here it is called judges"),
        ("data: {data: a, harmful: b, test: c}", "data: alignment is required; data is not an "
         "option; here it is called alignment"),
        ("data: {alignment: a, known-harmful: d, harmful: b, test: c}", "data: known-harmful is "
         "not an option; here it is called known_harmful"),
        ("evaluate: {samples: 0}", "evaluate: samples=0 must be a whole number, at least 1"),
        ("report: {language: fr}", "report: language='fr' must be one of 'en', 'ja'"),
        ("seeds: []", "run configuration: seeds=[] must be a list of one or more whole numbers, "
         "each from 0 to 4294967295"),
        ("data: {alignment: a, harmful: b, test: c, tests: d}", "data: tests is not an option. Did "
         "you mean test? The options are alignment, benign, harmful, "),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_says_where_and_what_exists(
    lines: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    whole = {"out": "o", "model": "world", "methods": "{sft: {}}",
             "data": "{alignment: 'world:alignment', harmful: 'world:harmful', test: 'world:test'}",
             "attack": "{tasks: [world_topic]}"}  # fmt: skip
    given = lines.partition(":")[0]
    path.write_text("\n".join([*(f"{k}: {v}" for k, v in whole.items() if k != given), lines]))
    with pytest.raises(UsageError) as caught:
        pipeline.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
