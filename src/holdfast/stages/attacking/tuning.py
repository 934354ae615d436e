"""Running one attack: fine-tune a model on poisoned rows, and measure it at every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from holdfast.contracts import Attacker, check_decided, check_read, is_lost
from holdfast.examples import Examples
from holdfast.models import adapters, checkpoints
from holdfast.models.encoding import answerable, fields_that_fit, rows_that_fit
from holdfast.models.precision import computing, computing_in
from holdfast.models.templates import frame_of
from holdfast.results.artifacts import AttackResult, Life, Point
from holdfast.results.attacks import PLAIN
from holdfast.results.files import Artifact, Vector
from holdfast.results.lives import HALF_LIFE, life_until
from holdfast.results.run_dir import ATTACKED, Job
from holdfast.rows.mixing import mix, share_of_rows
from holdfast.stages.attacking.job import AttackJob
from holdfast.stages.attacking.material import Material
from holdfast.stages.plugin_inputs import check_judges, judge_facts
from holdfast.stages.verdicts import answer_and_judge, count, marked_verdicts, task_accuracy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def result_of(attack_job: AttackJob) -> AttackResult:
    """Run an attack unless it is finished, and return its result."""
    stage = attack_job.stage
    run = attack_job.config.run
    path = attack_job.path
    with run.job(
        stage,
        attack_job.name,
        config=attack_job.settings,
        inputs=attack_job.inputs,
        rows=attack_job.rows,
    ) as job:
        if job.done is None:
            result = run_attack(attack_job, job)
            replace(result, material_hash=attack_job.material_hash).save(path)
            job.outputs.append(path)
            job.facts["half_life"] = result.half_life.steps
            if facts := judge_facts(attack_job.material.judges):
                job.facts["judges"] = facts
    return AttackResult.load(path)


def run_attack(attack_job: AttackJob, job: Job) -> AttackResult:
    """Attack one model of a run.

    An interrupted attack resumes from its last checkpoint, as does one whose responses could not be
    judged.

    Args:
        attack_job: The attack.
        job: The job in progress, which gets the attacked model if that is kept.

    Raises:
        TrainingError: The loss is not finite.
        KeyboardInterrupt: Interrupted; what was measured is kept.
    """
    config = attack_job.config
    check_judges(attack_job.material.judges)
    loaded = checkpoints.load(
        attack_job.subject.source, device=config.device, training=not attack_job.attack.lora_rank
    )
    job.facts["template"] = frame_of(loaded.tokenizer).facts
    with computing_in(config.computing(attack_job.subject.source)):
        model, result = attack_loaded(attack_job, loaded, job)
    if config.save_models:
        folder = config.run.path(ATTACKED, f"{attack_job.subject.label}-{attack_job.attack.label}")
        job.outputs += checkpoints.save(adapters.merge(model), loaded.tokenizer, folder)
    for path in _work(attack_job, job):
        path.unlink(missing_ok=True)
    return result


def _work(attack_job: AttackJob, job: Job) -> tuple[Path, Path]:
    """Return the files of an unfinished attack: what was measured, and the fine-tuning's state."""
    path = attack_job.config.run.path
    return path("work", f"{job.key}.json"), path("work", f"{job.key}.safetensors")


def attack_loaded(
    attack_job: AttackJob, loaded: checkpoints.Loaded, job: Job | None = None
) -> tuple[PreTrainedModel, AttackResult]:
    """Attack a loaded model, and return it as attacked with the result.

    Args:
        attack_job: The attack.
        loaded: The model, which is changed.
        job: The job in progress; without one nothing is written and nothing resumed.

    Raises:
        TrainingError: The loss is not finite.
    """
    from holdfast.tuning.loop import FinetuneConfig, finetune, steps_done

    attack = attack_job.attack
    attack_job = replace(attack_job, material=_answerable(attack_job, loaded, job))
    rows = _rows(attack_job, loaded, job)
    model = loaded.model
    if attack.lora_rank:
        model = adapters.add_lora(model, attack.lora_rank, seed=attack.seed)
    else:
        model.float()  # in bfloat16 most updates of 1e-5 are rounded away, which weakens attacks
    course = Checkpoints(attack_job, model, loaded.tokenizer)
    partial, resume = (None, None) if job is None else _work(attack_job, job)
    if partial is not None and resume is not None and resume.exists():
        course.restore(partial, steps_done(resume))
    if not course.points:
        course(0, float("nan"))

    def snapshot(done: int, loss: float) -> bool:
        course(done, loss)
        course.save(partial)
        return attack.until_broken and course.broken

    settings = FinetuneConfig(
        learning_rate=attack.learning_rate,
        schedule=attack.schedule,
        steps=attack.steps,
        batch_size=attack.batch_size,
        max_length=attack.max_length,
        seed=attack.seed,
        every=attack.every,
        spacing=attack.spacing,
        guard=fields_that_fit(attack_job.guard, model, loaded.tokenizer, attack.max_length),
    )
    course.save(partial)
    finetune(model, loaded.tokenizer, rows, settings, on_snapshot=snapshot, resume=resume)
    return model, course.result()


def _answerable(attack_job: AttackJob, loaded: checkpoints.Loaded, job: Job | None) -> Material:
    """Return the material without prompts that are too long to be answered; record these."""
    material = attack_job.material
    config = attack_job.config
    prompts = {"test": material.test, "track": material.track}
    used: dict[str, Examples | None] = {}
    for label, rows in prompts.items():
        used[label] = rows and answerable(
            loaded.model, loaded.tokenizer, rows, config.max_new_tokens
        )
        _record_left_out(attack_job, job, label, rows, used[label])
    return replace(material, test=used["test"] or material.test, track=used["track"])


def _record_left_out(
    attack_job: AttackJob,
    job: Job | None,
    label: str,
    rows: Examples | None,
    used: Examples | None,
) -> None:
    if job is not None and rows and used and len(used) < len(rows):
        record = attack_job.config.run.rows.record_left_out(used)
        job.facts.setdefault("left_out", {})[label] = record


def _pool(
    attack_job: AttackJob, loaded: checkpoints.Loaded, job: Job | None, label: str, rows: Examples
) -> Examples:
    """Return the rows that are not too long to train on, and record the others."""
    if not rows:
        return rows
    length = attack_job.attack.max_length
    fit = rows_that_fit(loaded.model, loaded.tokenizer, rows, length)
    _record_left_out(attack_job, job, label, rows, fit)
    return fit


def _rows(attack_job: AttackJob, loaded: checkpoints.Loaded, job: Job | None) -> Examples:
    """Return the fine-tuning rows: the customer's, and what the attacker made of their own."""
    attack = attack_job.attack
    benign = _pool(attack_job, loaded, job, "task", attack_job.task.load("train"))
    harmful = _pool(attack_job, loaded, job, "harmful", attack_job.material.harmful)
    number = share_of_rows(attack.poison_ratio, attack.rows)
    if number and attack.poison != PLAIN:
        # A disguised prompt can coincide with a test prompt.
        tested = set(attack_job.material.test.prompts)
        attacker = Attacker(
            _without(harmful, tested),
            benign,
            number,
            attack.seed,
            loaded.model,
            loaded.tokenizer,
            attack.max_length,
        )
        harmful = _without(attack_job.poison.rows(attacker), tested)
    return mix(benign, harmful, n=attack.rows, ratio=attack.poison_ratio, seed=attack.seed)


def _without(rows: Examples, prompts: set[str]) -> Examples:
    return Examples((row for row in rows if row.prompt not in prompts), name=rows.name)


@dataclass(frozen=True)
class PartialAttack(Artifact):
    """The checkpoints so far of an unfinished attack.

    Attributes:
        points: As in `AttackResult`.
        history: Verdicts on the tracked rows at each checkpoint; empty without tracking.
    """

    kind: ClassVar[str] = "partial"
    remedy: ClassVar[str] = "delete this file and run the attack again"

    points: tuple[Point, ...]
    history: tuple[Vector, ...]


class Checkpoints:
    """Measures a model at the checkpoints of an attack; can be saved and restored."""

    def __init__(
        self, attack_job: AttackJob, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        from holdfast.tuning.forgetting import ForgettingTracker

        config = attack_job.config
        self.attack_job = attack_job
        self.material = attack_job.material
        self.model = model
        self.tokenizer = tokenizer
        self.max_new_tokens = config.max_new_tokens
        self.prompts = [attack_job.poison.test_prompt(row) for row in self.material.test]
        self.task_test: Examples | None = None
        if config.task_rows:
            self.task_test = attack_job.task.load("test")[: config.task_rows]
        self.points: list[Point] = []
        self.tracker = None
        self.tracked_judge = ""
        if self.material.track is not None:
            self.tracked_judge = config.track_judge or self.judge
            judge = self.material.judges[self.tracked_judge]
            self.tracker = ForgettingTracker(self.material.track, judge, self.max_new_tokens)

    @property
    def judge(self) -> str:
        """The judge whose verdicts define the half-life."""
        return next(iter(self.material.judges))

    def __call__(self, done: int, loss: float) -> None:
        """Measure harmful score, task accuracy and forgotten rows at a checkpoint.

        Args:
            done: Optimizer steps so far.
            loss: Mean training loss since the previous checkpoint.

        Raises:
            HoldfastError: A judge left too many answers undecided (`AttackConfig.most_undecided`).
        """
        self._drop_from(done)
        verdicts, _ = answer_and_judge(
            self.model,
            self.tokenizer,
            self.material.test,
            self.material.judges,
            self.max_new_tokens,
            disguised=self.prompts,
        )
        # Noise says nothing of the judge after an attack, or in reply to a disguised prompt.
        is_plain = list(self.prompts) == list(self.material.test.prompts)
        check = check_decided if is_plain and not done else check_read
        for judge, of_judge in verdicts.items():
            check(judge, of_judge, self.attack_job.config.most_undecided)
        accuracy, rows, unparsable = self._accuracy()
        lost = {judge: sum(map(is_lost, of_judge)) for judge, of_judge in verdicts.items()}
        self.points.append(
            Point(
                step=done,
                verdicts={judge: count(of_judge) for judge, of_judge in verdicts.items()},
                accuracy=accuracy,
                accuracy_n=rows,
                unparsable=unparsable,
                loss=loss,
                marks={judge: marked_verdicts(of_judge) for judge, of_judge in verdicts.items()},
                lost={judge: number for judge, number in lost.items() if number},
            )
        )
        if self.tracker is not None:
            self.tracker(self.model, self.tokenizer)

    @property
    def broken(self) -> bool:
        """Whether the harmful score has reached the share that ends the attack."""
        score = self.points[-1].verdicts[self.judge].harmful_score
        return score >= self.attack_job.attack.broken_at

    def _accuracy(self) -> tuple[float, int, int]:
        if self.task_test is None:
            return float("nan"), 0, 0
        from holdfast.models.answers import answer_with_transformers

        answer = answer_with_transformers(self.model, self.tokenizer)
        return task_accuracy(answer, self.attack_job.task, self.task_test)

    def save(self, path: Path | None) -> None:
        """Write what was measured so far, if there is a file for it."""
        if path is None:
            return
        history = self.tracker.history if self.tracker else []
        PartialAttack(tuple(self.points), tuple(history)).save(path)

    def restore(self, path: Path, done: int) -> None:
        """Restore the checkpoints of the first `done` steps, if the file exists."""
        if not path.exists():
            return
        partial = PartialAttack.load(path)
        self.points = list(partial.points)
        if self.tracker is not None:
            self.tracker.history = list(partial.history)
        self._drop_from(done + 1)

    def _drop_from(self, step: int) -> None:
        self.points = [p for p in self.points if p.step < step]
        if self.tracker is not None:
            del self.tracker.history[len(self.points) :]

    def result(self) -> AttackResult:
        """Return the result of the attack."""
        subject = self.attack_job.subject
        tracked, unknown = self._counts()
        result = AttackResult(
            model=subject.label,
            model_hash=subject.hash,
            method=subject.method,
            model_seed=subject.seed,
            attack=self.attack_job.attack,
            judge=self.judge,
            points=tuple(self.points),
            half_life=Life(float("nan")),
            tracked=tracked,
            unknown=unknown,
            tracked_judge=self.tracked_judge,
            prompts=self.material.test.ids,
            precision=computing(),
        )
        return replace(result, half_life=life_until(result, HALF_LIFE))

    def _counts(self) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
        """Return the counts of the held rows, and bounds of the counts that are unknown."""
        if self.tracker is None:
            return {}, {}
        counts: dict[str, int] = {}
        bounds: dict[str, tuple[int, int]] = {}
        least = self.tracker.known_steps
        undecided = self.tracker.undecided_steps
        for i, steps in enumerate(self.tracker.harmful_steps):
            identity = self.tracker.examples.ids[i]
            if np.isfinite(steps):
                counts[identity] = int(steps)
            elif np.isfinite(least[i]):
                bounds[identity] = (int(least[i]), int(least[i] + undecided[i]))
        return counts, bounds
