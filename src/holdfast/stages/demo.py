"""The run behind `holdfast demo`: the embedded world, small enough for two cores and minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.stages.pipeline import RunConfig, parse

WORLD: dict[str, Any] = {
    "model": "world",
    "data": {
        "alignment": "world:alignment",
        "benign": "world:benign",
        "harmful": "world:harmful",
        "test": "world:test",
        "over_refusal": "world:borderline",
    },
    "judges": ["world", "refusal"],
    "align": {"epochs": 5, "learning_rate": 3e-4, "schedule": "cosine", "max_length": 64},
    "score": {
        "attack_direction": {"estimator": "attack_direction"},
        "forget_count": {
            "estimator": "forget_count,learning_rate=2e-5,steps=60,max_new_tokens=24",
            "harmful": "world:probe_harmful",
        },
    },
    "group": {"scores": "attack_direction", "rule": "otsu"},
    "methods": {
        "sft": {},
        "vaa": {"method": "vaa"},
        "hold": {"method": "hold"},
    },
    "attack": {
        "tasks": ["world_sentiment", "world_topic"],
        "poison_ratios": [0.1],
        "learning_rates": [5e-5],
        "steps": 120,
        "max_length": 64,
        "max_new_tokens": 20,
        "track_rows": 300,
        "task_rows": 100,
    },
    "evaluate": {"tasks": ["world_general"], "max_new_tokens": 20},
    "report": {"title": "Does the safety alignment hold? The embedded world"},
}


def configuration(out: Path, *, seed: int = 0, device: str = "auto") -> RunConfig:
    """Return the demo's configuration."""
    return parse({**WORLD, "out": out, "seeds": [seed], "device": device}, where="demo")
