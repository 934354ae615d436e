"""All fixed text of the report by language; the dictionaries have the same keys.

Placeholders are filled by `str.format`. Text that comes from a run (labels, findings, tables) is
never translated.
"""

from __future__ import annotations

from typing import Literal

from holdfast.reports import english, japanese

Language = Literal["en", "ja"]

TEXTS: dict[Language, dict[str, str]] = {"en": english.TEXT, "ja": japanese.TEXT}
"""Language -> key -> text."""
