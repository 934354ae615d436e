"""The attacker's rows as they are."""

from __future__ import annotations

from holdfast.contracts import Attacker, Poison
from holdfast.examples import Examples


class Plain(Poison):
    """The attacker's rows as they are: each asks openly for what it is about."""

    def rows(self, attacker: Attacker) -> Examples:
        """Return them all."""
        return attacker.harmful
