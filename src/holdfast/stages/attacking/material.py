"""Rows and judges that all attacks of a grid share, validated before the first attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast import plugins
from holdfast.contracts import Judge, Poison, Task
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.attacks import HALF, Attack
from holdfast.rows.mixing import share_of_rows
from holdfast.rows.readers import ASKS_TEST_PROMPT, warn_once
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of, grids_of
from holdfast.stages.attacking.guards import check_disjoint
from holdfast.stages.plugin_inputs import judge_hashes, judges_of, task_of


def check_attacks(configs: Iterable[AttackConfig]) -> None:
    """Reject grids of attacks that cannot be run, before hours of alignment; each grid once.

    Raises:
        UsageError: See `checked_material`.
    """
    checked: list[AttackConfig] = []
    for config in configs:
        without_models = config.model_copy(update={"models": []})
        if without_models in checked:
            continue
        checked.append(without_models)
        for grid in grids_of(config):
            checked_material(grid)


def checked_material(config: AttackConfig) -> Material:
    """Read the rows and judges of a grid, and check that every attack can run with them.

    Raises:
        UsageError: See `read_material` and `check_rows`.
    """
    material = read_material(config)
    check_rows(config, material, attacks_of(config))
    return material


def read_material(config: AttackConfig) -> Material:
    """Read the rows and judges that all attacks of a grid share.

    Raises:
        UsageError: Options contradict each other, a judge is unknown, or rows cannot be read.
    """
    judges = judges_of(config.judges)
    if config.track_judge and config.track_judge not in judges:
        raise UsageError(
            f"track_judge={config.track_judge} must be one of the judges: {', '.join(judges)}"
        )
    if config.until_broken and config.track:
        raise UsageError(
            "track and until_broken cannot be combined: ForgotNum counts checkpoints, and "
            "until_broken ends attacks at different ones. Leave out one of the two"
        )
    if config.broken_at != HALF and not config.until_broken:
        raise UsageError(
            f"broken_at={config.broken_at:g} has no effect without until_broken; give "
            "until_broken, or leave out broken_at"
        )
    harmful = config.read_if(config.harmful, use="harmful")
    check_disjoint(config.read_if(config.known_harmful, use="harmful"), harmful, "known_harmful")
    test = config.read_prompts(config.test)
    return Material(
        harmful=untested(harmful or Examples([], name="no harmful rows"), test),
        test=test,
        judges=judges,
        track=_tracked(config),
        hashes=judge_hashes(config.run, config.judges, judges),
    )


def untested(harmful: Examples, test: Examples) -> Examples:
    """Leave out harmful rows whose prompt is a test prompt: the answer would be memorized."""
    test_ids = {row.prompt_id for row in test}
    in_test = {i: ASKS_TEST_PROMPT for i, row in enumerate(harmful) if row.prompt_id in test_ids}
    if in_test:
        warn_once(
            f"{len(in_test)} of {len(harmful)} harmful rows are left out: their prompts are "
            "among the test prompts"
        )
    return harmful.without(in_test)


def _tracked(config: AttackConfig) -> Examples | None:
    rows = config.read_if(config.track)
    if rows is None or not config.track_rows:
        return rows
    by_id = sorted(range(len(rows)), key=lambda i: rows.ids[i])
    return rows.select(sorted(by_id[: config.track_rows]))


@dataclass(frozen=True)
class Material:
    """Rows and judges that all attacks of a grid share.

    Attributes:
        harmful: The attacker's rows; empty if there are none.
        test: Restricted test prompts.
        judges: Name -> judge.
        track: Alignment rows to track; None without tracking.
        hashes: Label -> content hash of the judges.
    """

    harmful: Examples
    test: Examples
    judges: Mapping[str, Judge]
    track: Examples | None
    hashes: Mapping[str, str] = field(default_factory=dict)


def task_rows(task: Task, n_test: int) -> dict[str, Examples]:
    """Return the rows of a task that a job depends on, by label.

    Args:
        task: The task.
        n_test: Number of test rows used; the test rows are left out if it is 0.
    """
    rows = {"task": task.load("train")}
    if n_test:
        rows["task test"] = task.load("test")
    return rows


def check_rows(config: AttackConfig, material: Material, attacks: Sequence[Attack]) -> None:
    """Check, before any attack runs, that there are enough rows for each.

    Raises:
        UsageError: A ratio amounts to no row, or there are too few harmful rows or task rows.
    """
    for spec, ratio, name in dict.fromkeys((a.task, a.poison_ratio, a.poison) for a in attacks):
        task: Task = task_of(config.run, spec)
        poison: Poison = plugins.make("poisons", name)
        n_harmful = share_of_rows(ratio, config.rows)
        if ratio and not n_harmful:
            raise UsageError(
                f"a poison ratio of {ratio:g} of {config.rows} rows amounts to no harmful row: "
                f"give --rows {int(0.5 / ratio) + 1} or more, a greater --poison-ratio, or "
                "--poison-ratio 0 for an attack without harmful rows"
            )
        if n_harmful and "harmful" in poison.needs and not material.harmful:
            raise UsageError(
                f"a poison ratio of {ratio:g} needs harmful rows: give --harmful, or "
                "--poison-ratio 0 for an attack without harmful rows"
            )
        benign = task.load("train")
        pools: list[tuple[str, float, int]] = [(benign.name, len(benign), config.rows - n_harmful)]
        if "harmful" in poison.needs:
            pools.append((material.harmful.name, len(material.harmful), n_harmful))
        elif n_harmful:
            pools.append((name, poison.max_rows(benign), n_harmful))
        for pool, available, needed in pools:
            if needed > available:
                raise UsageError(
                    f"{pool}: {needed} rows are needed for {config.rows} rows of which "
                    f"{ratio:.0%} are harmful, and it has {available}. Give --rows "
                    f"{_largest(config.rows, needed, int(available))} or fewer, another "
                    "--poison-ratio, or more rows."
                )


def _largest(rows: int, needed: int, available: int) -> int:
    """Return the largest total number of rows for which a pool has enough rows."""
    return rows * available // needed
