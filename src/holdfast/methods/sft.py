"""Plain supervised fine-tuning on the alignment rows, the baseline."""

from __future__ import annotations

from holdfast.methods.base import AlignmentTrainer


class Sft(AlignmentTrainer):
    """Minimizes the mean answer loss over safety and benign rows (ERM). One backward pass."""
