"""A program for jobs: does what its line says, and writes down what it did."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from holdfast import errors
from holdfast.jobs.workers import serve
from holdfast.runtime import progress
from holdfast.runtime.interrupt import deferred_interrupt


class OptionError(errors.UsageError):
    """An error that `holdfast.errors` does not have."""


def do(job: dict[str, Any]) -> Any:
    folder, name = Path(job["folder"]), job["name"]
    seen = f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} "
    seen += os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with (folder / "log").open("a", encoding="utf-8") as log:
        log.write(f"{name} begins {seen}\n")
    print("not JSON")  # noqa: T201  # as libraries do
    progress.report("counting", 1, 3)
    match job["how"]:
        case "fail":
            kind = job.get("kind", "HoldfastError")
            cls = OptionError if kind == "OptionError" else getattr(errors, kind)
            raise cls(f"{name} cannot")
        case "crash":
            raise ZeroDivisionError("nobody foresaw this")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill worker":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(20)
        case "long":
            with deferred_interrupt() as interrupt:
                (folder / f"{name}.begun").touch()
                for _ in range(600):
                    if interrupt.requested:
                        (folder / f"{name}.saved").touch()
                        raise KeyboardInterrupt
                    time.sleep(0.05)
        case "short":
            time.sleep(job.get("seconds", 0))
    with (folder / "log").open("a", encoding="utf-8") as log:
        log.write(f"{name} ends\n")
    return {"name": name}


if __name__ == "__main__":
    serve(do)
