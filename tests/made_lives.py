"""Half-lives written by hand, as results of made-up attacks carry them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from holdfast.results.artifacts import Life, Point


def life(steps: float, points: Sequence[Point] = (), *, censored: bool = False) -> Life:
    """Return a life of so many steps under an attack with these checkpoints."""
    checkpoints = [float(point.step) for point in points]
    return Life(
        steps=math.nan if censored else steps,
        censored=censored,
        last=checkpoints[-1] if checkpoints else math.nan,
        first=next((step for step in checkpoints if step > 0), math.nan),
    )
