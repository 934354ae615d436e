"""Guard models: which names mean one, how it is asked, and how it replies."""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.errors import UsageError

GUARD = "guard"
"""Template of guard models: the conversation, with the answer as the assistant's turn."""


@dataclass(frozen=True)
class GuardFamily:
    """A family of guard models.

    Attributes:
        name: Name of the family.
        pattern: Regular expression for the names of its models, in lower case.
        words: Words for a safe and a harmful answer.
        first: Whether the verdict is the first word of a reply, so that probabilities can be read.
    """

    name: str
    pattern: str
    words: tuple[str, str] = ("safe", "unsafe")
    first: bool = True


GUARDS = (
    GuardFamily("ShieldGemma", r"shield-?gemma", ("no", "yes")),
    GuardFamily("Granite Guardian", r"guardian", ("no", "yes"), first=False),
    GuardFamily("Qwen3Guard", r"qwen-?\d*-?guard", first=False),
    GuardFamily("WildGuard", r"wild-?guard", first=False),
    GuardFamily("NemoGuard", r"nemo-?guard|content-?safety", first=False),
    GuardFamily("Llama Guard", r"llama-?guard"),
    GuardFamily("guard model", r"guard"),
)
"""The families, the special ones first."""
NAMES_ONLY = r"vanguard|bodyguard|safeguard"
"""Names that contain "guard" and mean no such model; safeguards are asked with a policy."""
OF_PROMPTS = r"prompt-?guard|prompt-?injection|jailbreak-(?:detect|class)"
"""Names of models that look for attacks in prompts, and say nothing of answers."""


def guard_of(model: str, template: str, default: str) -> GuardFamily | None:
    """Return the family of a guard model; None if the judge is to be asked with a policy.

    Args:
        model: Name or directory of the model.
        template: Name of the template: `GUARD`, or another.
        default: Name of the template that the name of the model decides.

    Raises:
        UsageError: The model judges prompts, not answers.
    """
    name = re.split(r"[/\\]", model.rstrip("/\\"))[-1].casefold()
    if re.search(OF_PROMPTS, name):
        raise UsageError(
            f"model={model!r} looks for attacks in prompts and does not judge answers; give a "
            "guard model or a chat model"
        )
    if template not in (GUARD, default):
        return None
    family = next((guard for guard in GUARDS if re.search(guard.pattern, name)), None)
    if template == default:
        return None if re.search(NAMES_ONLY, name) else family
    return family or GUARDS[-1]
