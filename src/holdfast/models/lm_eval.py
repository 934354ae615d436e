"""General ability, by EleutherAI's lm-evaluation-harness (an extra: `holdfast[lm-eval]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Metrics = dict[str, dict[str, float]]
SEED = 0
RESAMPLES = 1000
"""Resamples of the harness's bootstrap, for metrics whose standard error has no formula."""


def evaluate_general(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    folder: str | None = None,
    rows: int | None = None,
    batch_size: int = 16,
) -> dict[str, Metrics]:
    """Evaluate a model on tasks of the harness.

    The global random state, the model's mode and its generation settings are restored afterwards;
    of these settings, only the end tokens are used. The model computes in the precision of its
    weights, whatever a stage's `precision`: most tasks compare likelihoods.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer.
        tasks: Names of tasks or groups of tasks.
        folder: Directory of task files (YAML) that replaces the harness's own tasks; None for the
            harness's tasks, which load their data from the hub.
        rows: Maximum number of rows per task; None for all.
        batch_size: Rows per batch.

    Returns:
        Task -> metric -> {"value", "stderr", "n"}; stderr is nan if the harness reports none.

    Raises:
        UsageError: The harness is not installed, there is no such folder or task, or a task's
            data cannot be read.
    """
    manager = task_manager(tasks, folder)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from holdfast.models.endings import own_settings
    from holdfast.models.modes import evaluation_mode, untouched_generators

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed")
    try:
        with evaluation_mode(model), untouched_generators(), own_settings(model, tokenizer):
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"general {', '.join(tasks)}: {reason}; are the task's data on this machine?"
        ) from error
    return {name: _metrics(results["results"][name], _rows(results, name)) for name in tasks}


def _rows(results: Mapping[str, Any], name: str) -> float:
    """Return the number of rows of a task or a group of tasks; nan if not reported."""
    counts = results["n-samples"]
    parts = [name] if name in counts else results.get("group_subtasks", {}).get(name, [])
    part_rows = [counts[part]["effective"] for part in parts if part in counts]
    return float(sum(part_rows)) if part_rows else float("nan")


def task_manager(tasks: Sequence[str], folder: str | None) -> Any:
    """Return the harness's task manager, after checking that it has these tasks.

    Raises:
        UsageError: The harness is not installed, there is no such folder or task, or a task file
            is not valid.
    """
    try:
        import lm_eval  # noqa: F401  # only to check that it is installed
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UsageError(
            f"general: module {error.name!r} is not installed; run pip install holdfast[lm-eval]"
        ) from error
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(
            f"general_path {folder!r}: no such directory; give a directory of task files"
        )
    try:
        manager = TaskManager(include_path=folder, include_defaults=folder is None)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"general_path {folder!r}: {error}") from error
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        where = (
            f"{folder} has {', '.join(manager.all_tasks) or 'none'}" if folder else "see lm-eval"
        )
        raise UsageError(f"general {unknown[0]!r}: the harness has no such task; {where}")
    return manager


def _metrics(result: Mapping[str, Any], n: float) -> Metrics:
    """Read keys such as "acc,none" and "acc_stderr,none"; skip values that are not numbers."""
    metrics: Metrics = {}
    for key, value in result.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = result.get(f"{name}_stderr,{filter_name}")
        metrics[name if filter_name == "none" else key] = {
            "value": float(value),
            "stderr": float(error) if isinstance(error, (int, float)) else float("nan"),
            "n": n,
        }
    return metrics
