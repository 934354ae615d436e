"""Combines two methods: `vaccine+group_dro` is Vaccine on batches that the adversary draws."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, cast

from pydantic import create_model

from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.methods.base import AlignmentTrainer
from holdfast.methods.group_dro import GroupDro
from holdfast.options import Options, option_fields


@cache
def method(name: str) -> type[AlignmentTrainer]:
    """Return the class of a method, or of a method combined with group_dro.

    In a combination, the first method keeps its loss or perturbation, and group_dro draws the
    batches and observes the losses. The options are those of both.

    Raises:
        UsageError: There is no such method, options follow its name, or the two cannot be combined.
    """
    bare, comma, settings = name.partition(",")
    if comma:
        flags = " ".join(f"--option {setting}" for setting in settings.split(","))
        raise UsageError(
            f"{name!r}: the options of a method do not follow its name; use --method {bare} "
            f"{flags}, or `options` in a run file"
        )
    first, *rest = (plugins.find("methods", part) for part in name.split("+"))
    if not rest:
        return cast("type[AlignmentTrainer]", first)
    if rest != [GroupDro] or issubclass(first, GroupDro):
        raise UsageError(
            f"{name}: only one method and group_dro can be combined, e.g. vaccine+group_dro; "
            "group_dro, vaa and hold use groups already"
        )
    return _with_groups(first, name)


def _with_groups(first: type[AlignmentTrainer], name: str) -> type[AlignmentTrainer]:
    both = first.Options, GroupDro.Options
    shared = sorted(option_fields(both[0]).keys() & option_fields(both[1]).keys())
    if shared:
        raise UsageError(f"{name}: both methods have an option {shared[0]!r}")
    combined = create_model("CombinedOptions", __base__=both)
    combined.owner = name

    class Combined(first, GroupDro):  # type: ignore[misc, valid-type]  # bases known at run time
        __doc__ = first.__doc__
        Options: ClassVar[type[Options]] = combined
        needs: ClassVar[frozenset[str]] = first.needs | GroupDro.needs

    Combined.__name__ = Combined.__qualname__ = f"{first.__name__}GroupDro"
    return Combined
