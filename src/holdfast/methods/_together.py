"""Two methods as one: `vaccine+group_dro` is Vaccine on batches that the adversary draws."""

from __future__ import annotations

from dataclasses import fields, make_dataclass
from functools import cache
from typing import Any, cast

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.methods.base import AlignmentTrainer
from holdfast.methods.group_dro import GroupDro


@cache
def method(name: str) -> type[AlignmentTrainer]:
    """Return the class behind a method's name, or one of a method and the groups' adversary.

    The first keeps its loss or its perturbation, the second draws the batches and sees the losses;
    the options are those of both.

    Raises:
        UsageError: No such method, or two that do not go together.
    """
    first, *rest = (plugins.find("methods", part) for part in name.split("+"))
    if not rest:
        return cast("type[AlignmentTrainer]", first)
    if rest != [GroupDro] or issubclass(first, GroupDro):
        raise UsageError(
            f"{name}: what goes together is one method and group_dro, e.g. vaccine+group_dro; "
            "group_dro, vaa and hold have groups already"
        )
    options = _options(name, first.Options, GroupDro.Options)
    needs, neutral = first.needs | GroupDro.needs, first.neutral
    title = f"{first.__name__}GroupDro"
    members = {"Options": options, "needs": needs, "neutral": neutral, "__doc__": first.__doc__}
    return type(title, (first, GroupDro), members)


def _options(name: str, *parts: type[Any]) -> type[Any]:
    known = [f.name for part in parts for f in fields(part)]
    if twice := sorted({key for key in known if known.count(key) > 1}):
        raise UsageError(f"{name}: both have an option {twice[0]!r}, and it would be given to both")

    def check(self: Any) -> None:
        for part in parts:
            if hasattr(part, "__post_init__"):
                part.__post_init__(self)

    return make_dataclass(
        "Options", [], bases=parts, frozen=True, namespace={"__post_init__": check}
    )
