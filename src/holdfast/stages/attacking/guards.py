"""Which guard an attack has to get past, and what that guard is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.results.attacks import NO_GUARD
from holdfast.rows.text import prompt_text
from holdfast.specs import parse
from holdfast.stages.config import GuardSpecs, StageConfig

if TYPE_CHECKING:
    from holdfast.guards.base import Guard

FIELDS = {"safety": "safety", "harmful": "known_harmful", "base": "base"}
"""What a guard may need -> the option of the stage that has it."""


class GuardConfig(StageConfig):
    """What a provider has to guard a fine-tuning with."""

    guards: GuardSpecs = Field(default=[NO_GUARD], min_length=1)
    """What the provider does about the fine-tuning; none for nothing."""
    safety: str | None = None
    """Restricted prompts with the wanted answers, for guards that use them."""
    known_harmful: str | None = None
    """Harmful rows that the provider has; never the attacker's."""
    base: str | None = None
    """The model before its alignment: "world", a directory or a hub id."""

    def keyed(self) -> dict[str, Any]:
        """Leave out the guards and what they are given: each attack has its own guard's."""
        left_out = {"guards", *FIELDS.values()}
        return {key: value for key, value in super().keyed().items() if key not in left_out}


def apart(known: Examples | None, harmful: Examples | None, word: str) -> None:
    """Refuse harmful rows of the defender that are the attacker's too.

    Raises:
        UsageError: A prompt is in both.
    """
    theirs = {prompt_text(prompt) for prompt in (harmful.prompts if harmful else ())}
    both = [row.id for row in known or () if prompt_text(row.prompt) in theirs]
    if both:
        raise UsageError(
            f"{word}: {len(both)} of the rows that the defender knows ask what the attacker's do "
            f"(first id {both[0]}); nobody knows those beforehand: take others"
        )


def guard_of(config: GuardConfig, spec: str) -> tuple[Guard, dict[str, str]]:
    """Build a guard with what it needs.

    Returns:
        The guard, and the hash of everything it was given.

    Raises:
        UsageError: It is unknown, or lacks something.
    """
    from holdfast.guards.base import Guard

    if spec == NO_GUARD:
        return Guard(), {}
    parsed = parse(spec)
    name = parsed.name
    cls: type[Guard] = plugins.find("guards", name)
    given: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    for need in sorted(cls.needs):
        flag, value = f"--{FIELDS[need].replace('_', '-')}", getattr(config, FIELDS[need])
        if need in parsed.options:
            # Given as an option it would neither be read nor become part of the result's key.
            raise UsageError(f"{spec!r}: {need} is no option of {name!r}; give {flag}")
        if value is None:
            raise UsageError(f"guard {name!r} needs {flag}")
        given[need] = value if need == "base" else config.read(value)
        inputs[f"guard's {need}"] = (
            checkpoints.hash_model(checkpoints.resolve(value))
            if need == "base"
            else given[need].hash
        )
    made: Guard = plugins.make("guards", spec, **given)
    return made, inputs
