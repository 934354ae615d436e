"""Which guard an attack has to get past, and what that guard is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.attacks import NO_GUARD
from holdfast.specs import parse
from holdfast.stages.config import GuardSpecs, StageConfig
from holdfast.stages.run_models import model_hash

if TYPE_CHECKING:
    from holdfast.guards.base import Guard

FIELDS = {"safety": "safety", "harmful": "known_harmful", "base": "base"}
"""What a guard may need -> the option of the stage that has it."""


class GuardConfig(StageConfig):
    """What a provider has to guard a fine-tuning with."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"guards", *FIELDS.values()})
    """Each attack has the hashes of its own guard and of what that is given."""

    guards: GuardSpecs = Field(default=[NO_GUARD], min_length=1)
    """What the provider does about the fine-tuning; none for nothing."""
    safety: str | None = None
    """Restricted prompts with the wanted answers, for guards that use them."""
    known_harmful: str | None = None
    """Harmful rows that the provider has; never the attacker's."""
    base: str | None = None
    """The model before its alignment: "world", a directory or a hub id."""


def check_disjoint(known: Examples | None, harmful: Examples | None, word: str) -> None:
    """Refuse harmful rows of the defender that are the attacker's too.

    Raises:
        UsageError: A prompt is in both.
    """
    attacker_prompts = {row.prompt_id for row in harmful or ()}
    both = [row.id for row in known or () if row.prompt_id in attacker_prompts]
    if both:
        raise UsageError(
            f"{word}: {len(both)} of the rows that the defender knows ask what the attacker's do "
            f"(first id {both[0]}); nobody knows those beforehand: take others"
        )


def guard_of(config: GuardConfig, spec: str) -> tuple[Guard, dict[str, str], dict[str, Examples]]:
    """Build a guard with what it needs.

    Returns:
        The guard, the hashes and the rows of everything it was given.

    Raises:
        UsageError: It is unknown, or lacks something.
    """
    from holdfast.guards.base import Guard

    if spec == NO_GUARD:
        return Guard(), {}, {}
    parsed = parse(spec)
    name = parsed.name
    cls: type[Guard] = plugins.find("guards", name)
    resources: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    rows: dict[str, Examples] = {}
    for need in sorted(cls.needs):
        flag, value = f"--{FIELDS[need].replace('_', '-')}", getattr(config, FIELDS[need])
        if need in parsed.options:
            # As an option it would be neither read nor part of the result's key.
            raise UsageError(f"{spec!r}: {need} is no option of {name!r}; give {flag}")
        if value is None:
            raise UsageError(f"guard {name!r} needs {flag}")
        if need == "base":
            resources[need] = value
            hashes["guard's base"] = model_hash(config.run, value)
        else:
            resources[need] = config.read(value, harmful=need == "harmful")
            rows[f"guard's {need}"] = resources[need]
    guard: Guard = plugins.make("guards", spec, **resources)
    return guard, hashes, rows
