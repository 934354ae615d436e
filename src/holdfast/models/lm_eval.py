"""General ability, by EleutherAI's lm-evaluation-harness (an extra: `holdfast[lm-eval]`)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Metrics = dict[str, dict[str, float]]
SEED = 0
RESAMPLES = 1000
"""Of the harness's bootstrap, for metrics whose standard error has no formula."""


def evaluate_general(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    folder: str | None = None,
    rows: int | None = None,
    batch_size: int = 16,
) -> dict[str, Metrics]:
    """Ask tasks of the harness; the global random state and the model's mode are left as found.

    Args:
        model: To be asked, on its device.
        tokenizer: Its tokenizer.
        tasks: Names.
        folder: Directory of task files (yaml), the only ones looked at; with None the harness's
            own tasks, which load their data from the hub.
        rows: At most so many rows of each; None for all.
        batch_size: Rows at one time.

    Returns:
        Task -> metric -> {"value", "stderr", "n"}; stderr is nan where the harness has none.

    Raises:
        UsageError: The harness is not installed, no such folder or task, or a task's data cannot
            be read.
    """
    manager = task_manager(tasks, folder)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from holdfast.models.modes import evaluation_mode, isolate_rng

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed")
    try:
        with evaluation_mode(model), isolate_rng(SEED), _preserved():
            results = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(tasks),
                task_manager=manager,
                limit=rows,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                **dict.fromkeys(seeds, SEED),
            )
    except (ImportError, OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"general {', '.join(tasks)}: {first}; are the task's data on this machine?"
        ) from error
    return {name: _metrics(results["results"][name], _rows(results, name)) for name in tasks}


def _rows(results: Mapping[str, Any], name: str) -> float:
    """Return the rows of a task, or of all tasks of a group; nan if the harness does not say."""
    counts = results["n-samples"]
    parts = [name] if name in counts else results.get("group_subtasks", {}).get(name, [])
    known_parts = [counts[part]["effective"] for part in parts if part in counts]
    return float(sum(known_parts)) if known_parts else float("nan")


def task_manager(tasks: Sequence[str], folder: str | None) -> Any:
    """Return the harness's manager of tasks, once it is sure that it knows these.

    Raises:
        UsageError: The harness is not installed, no such folder or task, or a file is broken.
    """
    try:
        import lm_eval  # noqa: F401  # the parts of it are imported where they are used
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UsageError(
            f"general: module {error.name!r} is not installed; pip install holdfast[lm-eval]"
        ) from error
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"general_path {folder!r}: no such directory; give one of task files")
    try:
        manager = TaskManager(include_path=folder, include_defaults=folder is None)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"general_path {folder!r}: {error}") from error
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        where = (
            f"{folder} has {', '.join(manager.all_tasks) or 'none'}" if folder else "see lm-eval"
        )
        raise UsageError(f"general {unknown[0]!r}: the harness knows no such task; {where}")
    return manager


@contextlib.contextmanager
def _preserved() -> Iterator[None]:
    """Put the states of Python's and numpy's global generators back, which the harness seeds."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _metrics(result: Mapping[str, Any], n: float) -> Metrics:
    """Read the harness's keys, "acc,none" with "acc_stderr,none"; what is not a number is left."""
    metrics: Metrics = {}
    for key, value in result.items():
        name, comma, how = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = result.get(f"{name}_stderr,{how}")
        metrics[name if how == "none" else key] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, (int, float)) else float("nan"),
            "n": n,
        }
    return metrics
