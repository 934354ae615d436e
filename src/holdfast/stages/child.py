"""The program behind a job: it reads calls of stages and does them; see `holdfast.jobs.workers`."""

from __future__ import annotations

from typing import Any

from holdfast.jobs.workers import serve

PATIENCE = 60.0
"""Seconds to wait for a step that another process is doing: it may be one that is just saving."""


def main() -> None:
    """Do the calls."""
    serve(_do)


def _do(raw: dict[str, Any]) -> None:
    from holdfast.results.run_dir import waiting_for_locks
    from holdfast.stages.planned_jobs import PlannedJob

    with waiting_for_locks(PATIENCE):
        PlannedJob.read(raw)()


if __name__ == "__main__":
    main()
