"""Guards of attacks: their options, and the resources they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.attacks import NO_GUARD
from holdfast.rows.marks import Use
from holdfast.specs import parse, write
from holdfast.stages.config import GuardSpecs, StageConfig
from holdfast.stages.run_models import model_hash

if TYPE_CHECKING:
    from holdfast.guards.base import Guard

FIELDS = {"safety": "safety", "harmful": "known_harmful", "base": "base"}
"""Resource that a guard can need -> the option of the stage that provides it."""


_USES: dict[str, Use] = {"safety": "safety", "harmful": "harmful"}
"""Rows that a guard can need -> what they are used for."""


class GuardConfig(StageConfig):
    """Options of the guards and their resources."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"guards", *FIELDS.values()})
    """Not in the key: each attack has the hashes of its own guard and the guard's resources."""

    guards: GuardSpecs = Field(default=[NO_GUARD], min_length=1)
    """Guard that the provider applies to the fine-tuning; none for no guard."""
    safety: str | None = None
    """Restricted prompts with safe answers, for guards that use them."""
    known_harmful: str | None = None
    """Harmful rows known to the provider; must not share prompts with --harmful."""
    base: str | None = None
    """The model before alignment, for guards that use it: "world", a directory, a GGUF file,
    package:NAME or a hub id.
    """


def check_disjoint(known: Examples | None, harmful: Examples | None, word: str) -> None:
    """Check that the defender's harmful rows share no prompt with the attacker's.

    Args:
        known: Harmful rows known to the defender.
        harmful: The attacker's rows.
        word: Name of the defender's rows in the message.

    Raises:
        UsageError: A prompt is in both.
    """
    attacker_prompts = {row.prompt_id for row in harmful or ()}
    shared = [row.id for row in known or () if row.prompt_id in attacker_prompts]
    if shared:
        raise UsageError(
            f"{word}: {len(shared)} rows have the same prompt as one of the attacker's rows (first "
            f"id {shared[0]}); a defender cannot know the attacker's rows, so use other rows"
        )


def guard_of(config: GuardConfig, spec: str) -> tuple[Guard, dict[str, str], dict[str, Examples]]:
    """Build a guard with the resources it needs.

    Returns:
        The guard, and the hashes and rows of its resources by label.

    Raises:
        UsageError: The guard is unknown, or a resource is missing.
    """
    from holdfast.guards.base import Guard

    if spec == NO_GUARD:
        return Guard(), {}, {}
    parsed = parse(spec)
    name = parsed.name
    cls: type[Guard] = plugins.find("guards", name)
    own = {key: value for key, value in parsed.options.items() if key not in cls.needs}
    # A wrong option is reported before a missing resource.
    plugins.make("guards", write(name, own), **dict.fromkeys(cls.needs))
    resources: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    rows: dict[str, Examples] = {}
    for need in sorted(cls.needs):
        flag = f"--{FIELDS[need].replace('_', '-')}"
        value = getattr(config, FIELDS[need])
        if need in parsed.options:
            # As an option of the guard it would be neither read nor part of the result's key.
            raise UsageError(f"{spec!r}: {need} is not an option of {name!r}; give {flag}")
        if value is None:
            raise UsageError(f"guard {name!r} needs {flag}")
        if need == "base":
            resources[need] = value
            hashes["guard's base"] = model_hash(config.run, value)
        else:
            resources[need] = config.read(value, use=_USES[need])
            rows[f"guard's {need}"] = resources[need]
    guard: Guard = plugins.make("guards", spec, **resources)
    return guard, hashes, rows
