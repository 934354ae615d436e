"""The languages of the report: English as written in the code, others from one file each.

A file holds `messages` (English template -> translation), `joins` (see `holdfast.texts.JOINS`) and
`terms` (English term -> the one word chosen for it, for translators).
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Literal

from holdfast.texts import ENGLISH, Language

Code = Literal["en", "ja"]


@cache
def language(code: Code) -> Language:
    """Return a language of the report."""
    if code == "en":
        return ENGLISH
    text = resources.files("holdfast.reports").joinpath(f"{code}.json").read_text("utf-8")
    raw = json.loads(text)
    return Language(code, raw["messages"], raw["joins"])
