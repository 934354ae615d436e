"""The program behind a job: it reads jobs and runs them; see `holdfast.jobs.workers`.

It also plans whole runs, so that the process that waits for the jobs need not load torch.
"""

from __future__ import annotations

import gc
import importlib
from typing import Any

from holdfast.jobs.workers import serve

PATIENCE = 60.0
"""Seconds to wait for a job that another process is running: it may be just saving."""


def main() -> None:
    """Load what nearly every job needs, then run jobs."""
    importlib.import_module("holdfast.methods.base")
    gc.freeze()  # a collection after each job would look through all that was imported
    serve(_do)


def _do(raw: dict[str, Any]) -> Any:
    if "run" in raw:
        from holdfast.stages import pipeline

        config = pipeline.RunConfig(**raw["run"])
        return pipeline.agenda(config, jobs=raw["jobs"]).as_dict()
    _run_job(raw)
    return None


def _run_job(raw: dict[str, Any]) -> None:
    from holdfast.results.run_dir import waiting_for_locks
    from holdfast.stages.planned_jobs import PlannedJob

    with waiting_for_locks(PATIENCE):
        PlannedJob.read(raw)()


if __name__ == "__main__":
    main()
