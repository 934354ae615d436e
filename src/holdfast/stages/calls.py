"""Calls of stages: which depend on which, and doing them in order or side by side."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from holdfast.errors import Busy, DiskFull, HoldfastError, JobError
from holdfast.jobs import queue as engine
from holdfast.jobs.cluster import connected
from holdfast.jobs.queue import Pace, QueuedJob
from holdfast.jobs.workers import local
from holdfast.results.run_dir import only_looking
from holdfast.runtime import progress
from holdfast.runtime.failures import failure
from holdfast.stages.config import StageConfig
from holdfast.stages.run_models import label_of
from holdfast.stages.table import STAGES

logger = logging.getLogger(__name__)

PROGRAM = "holdfast.stages.child"
Failures = dict[str, HoldfastError]
"""Name of a call -> why it failed."""


@dataclass(frozen=True)
class Call:
    """One stage with its options.

    Attributes:
        stage: Name of the stage, see `stages.table`.
        name: Name of the result within the stage, where there is one result.
        config: Its options.
    """

    stage: str
    name: str
    config: StageConfig

    def __call__(self) -> Any:
        """Run the stage."""
        _, function = STAGES[self.stage].load()
        return function(self.config)

    @property
    def title(self) -> str:
        """What people call it, and other calls that need it."""
        return f"{self.stage} {self.name}"

    @property
    def line(self) -> str:
        """The call as a line of JSON; `read` reads it."""
        config = self.config.model_dump(mode="json")
        return json.dumps({"stage": self.stage, "name": self.name, "config": config})

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Call:
        """Read a call from what `line` holds."""
        config = STAGES[raw["stage"]].load_config()
        return cls(raw["stage"], raw["name"], config.model_validate(raw["config"]))

    @property
    def needs(self) -> frozenset[str]:
        """Titles of the calls that make what this one reads, if they are made in the same run."""
        given = {name: getattr(self.config, name, None) for name in ("groups", "scores", "model")}
        models = [
            *getattr(self.config, "models", ()),
            *([given["model"]] if given["model"] else []),
        ]
        found = {f"align {label_of(name)}" for name in models}
        if self.stage == "align" and given["groups"]:
            found.add(f"group {given['groups']}")
        if self.stage == "group" and given["scores"]:
            found.add(f"score {given['scores']}")
        return frozenset(found - {self.title})

    @property
    def finished(self) -> bool:
        """Whether its result is there, made from what it would be made from now."""
        try:
            with only_looking():
                self()
        except Exception:  # noqa: BLE001  # unfinished; its turn reports the error
            return False
        return True


def parts(calls: Sequence[Call]) -> list[Call]:
    """Return the same calls, each with one result only."""
    return [part for call in calls for part in _parts(call)]


def _parts(call: Call) -> Iterator[Call]:
    if call.stage != "attack":
        yield call
        return
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.attacking.grid import single_attacks

    for name, config in single_attacks(cast(AttackConfig, call.config)):
        yield Call("attack", name, config)


def unfinished(calls: Sequence[Call]) -> list[Call]:
    """Return the calls that are still to be done, because they or what they need are not finished.

    Args:
        calls: Those that others need come first.
    """
    found: dict[str, Call] = {}
    for call in calls:
        if call.needs & found.keys() or not call.finished:
            found[call.title] = call
    return list(found.values())


def do(
    calls: Sequence[Call], *, jobs: int = 1, scheduler: str = "", allow_remote: bool = False
) -> None:
    """Do calls; one that fails is noted in its run directory, and the others are done all the same.

    Args:
        calls: In an order in which they can be done one after the other.
        jobs: So many at the same time, each in a process of its own; 1 for this process.
        scheduler: Address of a running dask cluster that does them.
        allow_remote: It may be on another machine.

    Raises:
        HoldfastError: Some failed; the message says which, and why.
        DiskFull: There is no room; what had not begun was not tried.
        KeyboardInterrupt: Interrupted; the same call goes on from there.
    """
    failures, total = try_all(calls, jobs=jobs, scheduler=scheduler, allow_remote=allow_remote)
    if failures:
        raise engine.summary(failures, total)


def try_all(
    calls: Sequence[Call], *, jobs: int = 1, scheduler: str = "", allow_remote: bool = False
) -> tuple[Failures, int]:
    """Do calls as `do` does; return what failed, and how many there are in all."""
    if jobs == 1 and not scheduler:
        return _in_order(calls), len(calls)
    every = parts(calls)
    wanted = {call.title: call for call in unfinished(every)}
    if there := len(every) - len(wanted):
        progress.say(f"{there} of {len(every)} are finished already")
    if not wanted:
        return {}, len(every)
    out = every[0].config.out
    with (
        connected(scheduler, PROGRAM, out, allow_remote=allow_remote)
        if scheduler
        else local(PROGRAM, min(jobs, len(wanted)))
    ) as pool:
        failures = engine.run(
            [_job(call, wanted) for call in wanted.values()],
            pool,
            lambda title, error: _note(wanted[title], error),
        )
    for error in failures.values():
        if isinstance(error, DiskFull):
            raise error
    return failures, len(every)


def _job(call: Call, others: Collection[str]) -> QueuedJob:
    return QueuedJob(
        name=call.title,
        kind=call.stage,
        line=call.line,
        needs=frozenset(call.needs & set(others)),
        accelerator=call.config.device in ("auto", "cuda"),
    )


def _in_order(calls: Sequence[Call]) -> Failures:
    failures: Failures = {}
    pace = Pace()
    for number, call in enumerate(calls):
        told = pace.remaining([(c.title, c.stage) for c in calls[number:]])
        place = f"[{number + 1}/{len(calls)}]"
        progress.say(f"{place} {call.title}{f' ({told})' if told else ''}")
        there, clock = len(call.config.run.entries(call.stage)), time.monotonic()
        try:
            if lacking := sorted(call.needs & failures.keys()):
                raise JobError(f"not run: it needs {', '.join(lacking)}")
            call()
        except DiskFull:
            raise
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
            failures[call.title] = why = failure(error)
            progress.say(f"{place} {call.title} failed: {why}")
            _note(call, why)
        else:
            call.config.run.forgive(call.stage, call.name)
            # What was finished before says nothing of how long the others take.
            if len(call.config.run.entries(call.stage)) > there:
                pace.end(call.title, call.stage, time.monotonic() - clock)
    return failures


def _note(call: Call, error: HoldfastError) -> None:
    """Note a failure in the run directory, as far as possible: it ends nothing that goes on."""
    if isinstance(error, Busy | DiskFull):  # the step that found no room has noted it
        return
    try:
        _noted(call, str(error))
    except Exception as problem:  # noqa: BLE001  # a note that fails must end nothing
        logger.warning("%s: its failure could not be noted: %s", call.title, failure(problem))


def _noted(call: Call, reason: str) -> None:
    """Note a failure where the step has not done so itself."""
    run, found = call.config.run, parts([call])
    noted = {(one.stage, one.name) for one in run.failures()}
    for part in found:
        known = (part.stage, part.name) in noted and len(found) > 1
        if not known and not part.finished:
            run.fail(part.stage, part.name, reason)
