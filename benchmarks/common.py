"""What the benchmarks share: their options, the two settings, and the JSON object they write.

Every script takes `--json PATH`, `--seeds N` and `--quick` (the same rows from much less work: it
shows that the script runs, its numbers mean nothing) and writes

    {"benchmark", "commit", "versions", "hardware", "config", "rows": [...]}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import specs
from holdfast.errors import HoldfastError, UsageError
from holdfast.results.environment import git_commit, hardware, versions
from holdfast.results.files import write_json

if TYPE_CHECKING:
    from holdfast.stages.pipeline import RunConfig

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


# -------------------------------------------------------------------------------------- options


def parser(description: str | None, *, seeds: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=(description or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--json", type=Path, help="file for the results")
    made.add_argument("--seeds", type=int, default=seeds, help="number of seeds")
    made.add_argument("--first-seed", type=int, default=0, help="where they begin")
    made.add_argument("--quick", action="store_true", help="same rows, far less work")
    return made


def add_setting(made: argparse.ArgumentParser) -> None:
    """Add the options of benchmarks that walk the pipeline."""
    made.add_argument("--setting", choices=("world", "text"), default="world", help="what on")
    made.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="data and models of text"
    )
    made.add_argument("--model", help="base of the text setting, text-base-6m if not given")
    made.add_argument("--work", type=Path, help="keep the run here, and go on from what is there")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def main(function: Callable[[], None]) -> None:
    """Run a benchmark; an error of ours is one line and an exit code."""
    try:
        function()
    except HoldfastError as error:
        print(f"error {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@contextlib.contextmanager
def folder(work: Path | None) -> Iterator[Path]:
    """Yield the directory of the run: the user's, or a temporary one."""
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as made:
        yield Path(made)


# ------------------------------------------------------------------------------------- settings

AS_PUBLISHED: dict[str, Any] = {
    "align": {"epochs": 5, "learning_rate": 3e-4},
    "score": {
        "attack_direction": {"estimator": "attack_direction"},
        "forget_count": {
            "estimator": "forget_count,learning_rate=2e-5,steps=60,max_new_tokens=24",
            "harmful": "world:probe_harmful",
        },
    },
    "attack": {
        "learning_rates": [5e-5],
        "steps": 120,
        "every": 10,
        "spacing": 1.0,
        "until_broken": False,
        "track_rows": 300,
        "task_rows": 100,
    },
    "track": True,
    "more_attacks": {},
}
"""How the world's results were made, where `holdfast demo` takes less time instead."""
QUICK_ALIGN: dict[str, dict[str, Any]] = {
    "world": {"limit": 160, "learning_rate": 1e-3},
    "text": {"limit": 160},
}
"""By setting. On the world's few rows the base learns to refuse only at a higher rate."""


@dataclass(frozen=True)
class Setting:
    """Where a benchmark takes place.

    Attributes:
        name: "world" or "text".
        config: The run that ships with holdfast for it; benchmarks change parts of it.
    """

    name: str
    config: RunConfig

    @property
    def probe(self) -> str:
        """Harmful rows that a defender has; the attacker never draws from them."""
        return str(self.config.score["forget_count"]["harmful"])

    @property
    def prefix(self) -> str:
        """How the base begins an obliging answer; "" where no one prefix describes it.

        On real text each answer begins in its own way, and the source carries nothing.
        """
        return "to" if self.name == "world" else ""

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the attacker's direction can be taken from."""
        return ("harmful", "mismatched", *(("affirmative",) if self.prefix else ()))


def setting(options: argparse.Namespace, work: Path) -> Setting:
    """Return the setting that the options name; the text setting's files are made if missing.

    Raises:
        UsageError: The shared data of the text setting are not there.
    """
    from holdfast.stages import pipeline
    from holdfast.stages.demo import configuration

    if options.setting == "world":
        config = pipeline.parse(_with(configuration(work), AS_PUBLISHED), where="the world setting")
    else:
        files = work / "text"
        _prepare_text(options.shared, files)
        variables = {"SHARED": str(options.shared), "WORK": str(files)}
        variables["MODEL"] = options.model or str(options.shared / "models" / "text-base-6m")
        config = pipeline.load(ROOT / "examples" / "real_text.yaml", variables)
    return Setting(options.setting, config)


def configured(
    base: Setting, options: argparse.Namespace, out: Path, changes: Mapping[str, Any]
) -> RunConfig:
    """Return the setting's run with parts changed; mappings are merged, the rest is replaced."""
    from holdfast.stages import pipeline

    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    shared = {"out": out, "device": options.device, "seeds": seeds}
    raw = _with(base.config, {**shared, **changes})
    for stage in ("evaluate", "attack"):
        # What a method left undecidable is a result here, not a reason to stop.
        raw[stage] = {"most_undecided": 1, **raw[stage]}
    return pipeline.parse(raw, where=f"the {base.name} setting")


def _with(config: RunConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with parts changed: most mappings are merged, the rest replaced."""
    raw = config.model_dump()
    for key, value in changes.items():
        merge = isinstance(value, Mapping) and key not in ("methods", "score", "more_attacks")
        raw[key] = {**raw[key], **value} if merge else value
    return raw


def with_options(spec: str, options: Mapping[str, Any]) -> str:
    """Return a spec with options added; those that it has already are replaced."""
    parsed = specs.parse(spec)
    return specs.write(parsed.name, {**parsed.options, **options})


def walk(config: RunConfig, stages: Sequence[str]) -> None:
    """Run these stages of a run; what is finished is not done again."""
    from holdfast.stages import pipeline

    calls = [call for call in pipeline.plan(config) if call.stage in stages]
    for done, call in enumerate(calls, 1):
        print(f"[{done}/{len(calls)}] {call.stage} {call.name}", file=sys.stderr)
        call()


def _prepare_text(shared: Path, out: Path) -> None:
    from holdfast.judges.classifier import read_labelled, train_classifier

    if not (shared / "data").is_dir():
        raise UsageError(
            f"{shared}: has no data/; give --shared, the folder that examples/prepare_real_text.py "
            "reads, or use --setting world"
        )
    rows = out / "judge_train.jsonl"
    if not rows.is_file():
        script = str(ROOT / "examples" / "prepare_real_text.py")
        sizes = ["--alignment", "700", "--benign", "1200", "--test", "120"]
        places = ["--shared", str(shared), "--out", str(out)]
        subprocess.run([sys.executable, script, *places, *sizes], check=True, stdout=sys.stderr)
    if not (out / "judge").is_dir():
        train_classifier(read_labelled(rows), out / "judge", seed=0)


# -------------------------------------------------------------------------------------- results


def write(
    path: Path | None, benchmark: str, config: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Print the rows, and write the results if there is a path for them."""
    import torch

    result = {
        "benchmark": benchmark,
        "commit": git_commit(),
        "versions": versions(),
        "hardware": {"machine": hardware(), "threads": torch.get_num_threads()},
        "config": config,
        "rows": rows,
    }
    print(table(rows))
    if path is not None:
        write_json(path, result)


def others(path: Path | None, methods: Collection[str]) -> list[Row]:
    """Return the rows of a results file that are of other methods than these.

    Raises:
        UsageError: It is no results file.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path else []
        return [row for row in kept if row["method"] not in methods]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--add {path}: no results as --json writes them") from error


def table(rows: Sequence[Row]) -> str:
    """Return rows as text in columns; nested values are left to the file."""
    names = [k for k, v in rows[0].items() if not isinstance(v, (list, dict))] if rows else []
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
