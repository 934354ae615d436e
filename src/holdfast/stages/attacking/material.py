"""What all attacks of a grid share: rows and judges, checked before the first attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast import plugins
from holdfast.contracts import Judge, Poison, Task
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.attacks import HALF, Attack
from holdfast.rows.readers import ASKS_TEST_PROMPT, warn_once
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of
from holdfast.stages.attacking.guards import check_disjoint
from holdfast.stages.plugin_inputs import judge_hashes, judges_of, task_of


def checked_material(config: AttackConfig) -> Material:
    """Read what all attacks of a grid share, and refuse it if one of them would end it.

    Raises:
        UsageError: See `prepare` and `check_rows`.
    """
    material = read_material(config)
    check_rows(config, material, attacks_of(config))
    return material


def read_material(config: AttackConfig) -> Material:
    """Read what all attacks of a grid share.

    Raises:
        UsageError: Options that do not go together, an unknown judge, no such rows.
    """
    judges = judges_of(config.judges)
    if config.track_judge and config.track_judge not in judges:
        raise UsageError(
            f"track_judge {config.track_judge!r} is none of the judges: {', '.join(judges)}"
        )
    if config.until_broken and config.track:
        raise UsageError(
            "until_broken ends attacks at different checkpoints, and ForgotNum counts checkpoints; "
            "leave out track or until_broken"
        )
    if config.broken_at != HALF and not config.until_broken:
        raise UsageError(
            f"broken_at={config.broken_at:g} says where until_broken ends an attack, and without "
            "until_broken it goes on to its last step; give until_broken, or leave out broken_at"
        )
    harmful = config.read_if(config.harmful, harmful=True)
    check_disjoint(config.read_if(config.known_harmful, harmful=True), harmful, "known_harmful")
    test = config.read_prompts(config.test)
    return Material(
        harmful=untested(harmful or Examples([], name="no harmful rows"), test),
        test=test,
        judges=judges,
        track=_tracked(config),
        hashes=judge_hashes(config.run, config.judges, judges),
    )


def untested(harmful: Examples, test: Examples) -> Examples:
    """Leave out harmful rows whose prompt is asked afterwards: they would be learnt by heart."""
    tested = {row.prompt_id for row in test}
    in_test = {i: ASKS_TEST_PROMPT for i, row in enumerate(harmful) if row.prompt_id in tested}
    if in_test:
        warn_once(f"{len(in_test)} of {len(harmful)} harmful rows ask a prompt of --test: left out")
    return harmful.without(in_test)


def _tracked(config: AttackConfig) -> Examples | None:
    rows = config.read_if(config.track)
    if rows is None or not config.track_rows:
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: rows.ids[i])[: config.track_rows]
    return rows.select(sorted(chosen))


@dataclass(frozen=True)
class Material:
    """What all attacks of a grid share; `harmful` is empty if there are no such rows."""

    harmful: Examples
    test: Examples
    judges: Mapping[str, Judge]
    track: Examples | None
    hashes: Mapping[str, str] = field(default_factory=dict)


def task_rows(task: Task, n_test: int) -> dict[str, Examples]:
    """Return a task's rows for the inputs of a job, its test rows if any are used."""
    rows = {"task": task.load("train")}
    return {**rows, "task test": task.load("test")} if n_test else rows


def check_rows(config: AttackConfig, material: Material, attacks: Sequence[Attack]) -> None:
    """Refuse a grid that one of its attacks would end, before the first of them.

    Raises:
        UsageError: A ratio makes no row, there are no harmful rows for an attack that
            has some, or too few for its ratio, or too few of its task.
    """
    for spec, ratio, name in dict.fromkeys((a.task, a.poison_ratio, a.poison) for a in attacks):
        task: Task = task_of(config.run, spec)
        poison: Poison = plugins.make("poisons", name)
        wanted = round(config.rows * ratio)
        if ratio and not wanted:
            raise UsageError(
                f"a poison ratio of {ratio:g} of {config.rows} rows makes no harmful row: give "
                f"--rows {int(0.5 / ratio) + 1} or more, a greater --poison-ratio, or "
                "--poison-ratio 0 for an attack without any"
            )
        if wanted and "harmful" in poison.needs and not material.harmful:
            raise UsageError(
                f"a poison ratio of {ratio:g} needs harmful rows: give --harmful, or "
                "--poison-ratio 0 for an attack without any"
            )
        benign = task.load("train")
        pools: list[tuple[str, float, int]] = [(benign.name, len(benign), config.rows - wanted)]
        if "harmful" in poison.needs:
            pools.append((material.harmful.name, len(material.harmful), wanted))
        elif wanted:
            pools.append((name, poison.max_rows(benign), wanted))
        for pool, there, needed in pools:
            if needed > there:
                raise UsageError(
                    f"{pool}: {needed} rows are needed for {config.rows} rows of which "
                    f"{ratio:.0%} are harmful, and it has {there}. Give --rows "
                    f"{_enough(config.rows, needed, int(there))} or fewer, another "
                    "--poison-ratio, or more rows."
                )


def _enough(rows: int, needed: int, there: int) -> int:
    """Return how many rows in all would need no more of one pool than there are."""
    return rows * there // needed
