"""The harmful rows, unchanged."""

from __future__ import annotations

from holdfast.contracts import Attacker, Poison
from holdfast.examples import Examples


class Plain(Poison):
    """Uses the harmful rows unchanged: each asks openly for harm."""

    def rows(self, attacker: Attacker) -> Examples:
        """Return all harmful rows."""
        return attacker.harmful
