"""The program behind a job: it reads jobs and runs them; see `holdfast.jobs.workers`."""

from __future__ import annotations

import importlib
from typing import Any

from holdfast.jobs.workers import serve

PATIENCE = 60.0
"""Seconds to wait for a job that another process is running: it may be just saving."""


def main() -> None:
    """Load what nearly every job needs, then run jobs."""
    importlib.import_module("holdfast.methods.base")
    serve(_do)


def _do(raw: dict[str, Any]) -> None:
    from holdfast.results.run_dir import waiting_for_locks
    from holdfast.stages.planned_jobs import PlannedJob

    with waiting_for_locks(PATIENCE):
        PlannedJob.read(raw)()


if __name__ == "__main__":
    main()
