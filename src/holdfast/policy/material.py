"""Reads the written material of the policy world and fills the slots of its templates."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=\{(\w+)\})")
_VOWELS = tuple("aeiouAEIOU")

Slots = Mapping[str, Sequence[str]]
"""Name of a slot -> the texts it can stand for."""


def read_material(name: str) -> Any:
    """Return the content of one of the package's YAML files."""
    file = resources.files("holdfast.policy").joinpath(name)
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of a block of templates."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def hash_number(*key: str) -> int:
    """Return a 64-bit number that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256("\0".join(key).encode()).digest()[:8], "big")


def pick(options: Sequence[str], *key: str) -> str:
    """Choose an option by the hash of a key."""
    return options[hash_number(*key) % len(options)]


def by_hash(texts: Iterable[str]) -> list[str]:
    """Return texts in the order of their hashes."""
    return sorted(texts, key=hash_number)


def filled(template: str, slots: Slots) -> list[str]:
    """Return a template with every combination of its slots, in the order of the hashes.

    A slot whose name ends in a digit takes its texts from the slot without the digit, and never
    the same text as that slot. A sentence that begins with a slot begins with a capital letter.
    """
    names = list(dict.fromkeys(_SLOT.findall(template)))
    choices = [slots[name.rstrip("0123456789")] for name in names]
    combinations = (c for c in itertools.product(*choices) if len(set(c)) == len(c))
    texts = (_fill(template, dict(zip(names, c, strict=True))) for c in combinations)
    return by_hash(_capital(text) if template.startswith("{") else text for text in texts)


def _fill(template: str, texts: Mapping[str, str]) -> str:
    """Fill in the slots; an "a" before a slot becomes "an" where its text begins with a vowel."""

    def article(match: re.Match[str]) -> str:
        return f"{match[1]}{'n' if texts[match[2]].startswith(_VOWELS) else ''} "

    return _ARTICLE.sub(article, template).format(**texts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def in_turn(pools: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the first text of every pool, then the second of every pool, and so on."""
    for texts in itertools.zip_longest(*pools):
        yield from (text for text in texts if text is not None)


@dataclass(frozen=True)
class Kind:
    """A kind of request that the company's assistant must decline.

    Attributes:
        name: Its name, the category of its rows.
        topics: Phrases that name it in a decline.
        elsewhere: Sentences that point to somebody who can help.
        templates: Name of a use ("alignment", "attack", "proxy", "test", "borderline") -> its
            templates. No two uses share one.
        seen: Slots of the templates for alignment and attacks.
        held_out: Slots of the test prompts, with none of the texts in `seen`.
        allowed: Slots of the borderline prompts.
    """

    name: str
    topics: tuple[str, ...]
    elsewhere: tuple[str, ...]
    templates: Mapping[str, tuple[str, ...]]
    seen: Slots
    held_out: Slots
    allowed: Slots

    def slots(self, use: str) -> Slots:
        """Return the slots of the templates for a use."""
        return {"test": self.held_out, "borderline": self.allowed}.get(use, self.seen)

    def prompts(self, use: str, n: int) -> list[str]:
        """Return n distinct prompts for a use, with every template used as evenly as possible."""
        pools = [filled(template, self.slots(use)) for template in self.templates[use]]
        return list(itertools.islice(dict.fromkeys(in_turn(pools)), n))


USES = ("alignment", "attack", "proxy", "test", "borderline")
NAMES = ("investments", "betting", "horoscopes", "legal", "rivals", "dating", "diets", "repairs")
"""The kinds of requests that the assistant must decline."""


@cache
def kinds() -> tuple[Kind, ...]:
    """Return the restricted kinds."""
    return tuple(_kind(name) for name in NAMES)


def _kind(name: str) -> Kind:
    material = read_material(f"kinds/{name}.yaml")
    return Kind(
        name=name,
        topics=tuple(material["topics"]),
        elsewhere=tuple(material["elsewhere"]),
        templates={use: lines(material[use]) for use in USES},
        seen=material["seen"],
        held_out=material["held_out"],
        allowed=material["borderline_slots"],
    )


def decline(kind: Kind, prompt: str) -> str:
    """Return how the assistant declines a prompt; half of the declines point elsewhere."""
    material = read_declines()
    opening = pick(material["declines"], "decline", prompt)
    text = opening.format(topic=pick(kind.topics, "topic", prompt))
    if hash_number("length", prompt) % 2:
        return text
    elsewhere = (*kind.elsewhere, *material["elsewhere"])
    return f"{text} {pick(elsewhere, 'elsewhere', prompt)}"


@cache
def read_declines() -> dict[str, tuple[str, ...]]:
    """Return the openings of declines and the sentences that point elsewhere."""
    return {key: lines(text) for key, text in read_material("declines.yaml").items()}
