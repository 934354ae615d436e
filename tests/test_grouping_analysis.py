"""What the chapter on groups says of runs whose answer is known."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import plugins
from holdfast.charts.figures import LineChart
from holdfast.contracts import Section
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.groups import Rule, group, recommend, stability
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.run_dir import RunDir
from holdfast.texts import percent

NAN = math.nan
BUMPS = np.concatenate(
    [np.random.default_rng(0).normal(0, 1, 60), np.random.default_rng(1).normal(9, 1, 40)]
)


def record(
    run: RunDir,
    values: np.ndarray,
    *,
    name: str = "toy",
    errors: np.ndarray | None = None,
    config: dict[str, Any] | None = None,
) -> Groups:
    """Leave scores and groups in a run as the stages do."""
    options = {"rule": "otsu", "quantile": 0.6, "mass": 0.8, "groups": 2, **(config or {})}
    rows = Examples(Example(f"{name} prompt {i}", "no") for i in range(len(values)))
    scores = Scores(rows.ids, values, "toy", rows.hash, "", errors=errors)
    rule = Rule(options["rule"], options["quantile"], options["mass"], options["groups"])
    groups = group(scores, rows, rule=rule)
    for stage, folder, artifact in (("score", "scores", scores), ("group", "groups", groups)):
        with run.job(stage, name, config=options, inputs={}) as job:
            path = run.path(folder, f"{name}.json")
            artifact.save(path)  # type: ignore[attr-defined]
            job.outputs.append(path)
    return groups


def analyse(run: RunDir) -> Section:
    section: Section = plugins.make("analyses", "grouping,resamples=30").run(run)
    for sentence in section.findings:
        assert re.search(r"\bn=\d+", sentence), sentence
        assert re.search(r"\[[^\]]+\]|between \S+ and \S+|\bunknown\b", sentence), sentence
    for figure in section.figures.values():
        assert isinstance(figure, LineChart)
        assert figure.lines
    return section


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def test_findings_hold_the_numbers(run: RunDir) -> None:
    record(run, BUMPS, errors=np.full(100, 2.0))
    section = analyse(run)
    steady, near, close, advised = section.findings
    expected = stability(BUMPS, Rule("otsu"), resamples=30)
    cut = expected.cuts[0]
    assert f"lies at {cut.value:.3g} [{cut.low:.3g}, {cut.high:.3g}], n=100" in steady
    assert f"mean Jaccard index of {expected.jaccard.value:.3g} [" in steady
    # 40 of 100 lie above; the nearest other thresholds, at 5 % steps, keep 35 to 45 of them.
    assert re.search(r"between 3[5-9] and 4[0-5] examples", near)
    from scipy.stats import norm

    unsure = int((norm.cdf(-np.abs(BUMPS - cut.value) / 2) > 0.25).sum())
    assert f"{percent(unsure / 100)} [" in close
    assert "n=100 of 100" in close
    assert "another rule, gmm, is recommended, with its threshold at" in advised
    assert recommend(BUMPS).reason in advised


def test_without_errors_it_says_unknown(run: RunDir) -> None:
    record(run, BUMPS)
    assert (
        "is unknown, because the scores carry no standard errors (n=100)"
        in analyse(run).findings[2]
    )
    line = analyse(run).tables["Groups and their stability"].frame.iloc[0]
    assert math.isnan(line["too close to call"])


def test_the_recommended_rule_is_recognized(run: RunDir) -> None:
    record(run, BUMPS, config={"rule": "auto"})
    section = analyse(run)
    assert "the rule in use, gmm, is the recommended one" in section.findings[3]
    assert section.tables["Groups and their stability"].frame["rule"].tolist() == ["gmm"]


def test_every_grouping_has_its_line_and_its_figure(run: RunDir) -> None:
    record(run, BUMPS, name="one")
    record(run, BUMPS[::2] * 3, name="two", config={"rule": "knee"})
    record(run, BUMPS, name="three", config={"groups": 3})
    section = analyse(run)
    table = section.tables["Groups and their stability"].frame
    assert sorted(table["groups"]) == ["one", "three", "two"]
    assert len(section.figures) == 3
    assert len(section.findings) == 12
    (three,) = (s for s in section.findings if s.startswith("three: the thresholds"))
    assert three.count("[") == 3  # two thresholds and the Jaccard index


def test_edits_and_failed_resamples_are_told(run: RunDir) -> None:
    groups = record(run, np.array([0.0, 1.0, NAN]))
    path = run.path("groups", "toy.json")
    edits = ({"id": groups.ids[0], "from": "invulnerable", "to": "vulnerable"},)
    from dataclasses import replace

    with run.job("group", "toy", config={"rule": "otsu"}, inputs={}) as job:
        replace(groups, edits=edits).save(path)
        job.outputs.append(path)
    steady = analyse(run).findings[0]
    assert "1 examples were moved by hand" in steady
    assert re.search(r"\d+ of 30 resamples could not be cut", steady)


def test_a_vulnerable_group_of_unscored_rows_only(run: RunDir) -> None:
    # All scores are 0 or below, so that only the row without a score is vulnerable.
    record(run, np.array([-2.0, -1.0, 0.0, NAN]), config={"rule": "positive"})
    steady, near, *_ = analyse(run).findings
    assert "mean Jaccard index of unknown" in steady
    assert "Jaccard index with the chosen group is at least 0.00" in near


def test_groups_of_other_scores_are_refused(run: RunDir) -> None:
    record(run, BUMPS)
    path = run.path("scores", "toy.json")
    scores = Scores.load(path)
    Scores(scores.ids, scores.values + 1, "toy", scores.data_hash, "").save(path)
    with pytest.raises(UsageError, match="the groups were made from no longer exist"):
        analyse(run)


@pytest.mark.parametrize("stage", ["score", "group"])
def test_what_is_missing_is_named(run: RunDir, stage: str) -> None:
    if stage == "score":
        record(run, BUMPS)
        run.path("manifest", "score--toy.json").unlink()
    with pytest.raises(UsageError, match=f"`holdfast {stage}"):
        analyse(run)
