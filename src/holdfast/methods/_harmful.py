"""Base class of the methods that use harmful rows during the alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.methods._batches import Batch, Stream
from holdfast.methods.base import AlignmentTrainer
from holdfast.models import processes


class HarmfulTrainer(AlignmentTrainer):
    """Adds an endless shuffle of harmful rows, which is part of every checkpoint."""

    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})

    def prepare(self) -> None:
        """Encode the harmful rows and shuffle them."""
        super().prepare()
        name = type(self).__name__
        rows = cast(Examples, self.data.harmful)
        if processes.world_size() > 1:
            raise UsageError(
                f"{processes.world_size()} processes: {name} goes back to its harmful rows after "
                "the processes have added up their gradients; train on one process, or take vaa"
            )
        self.harmful = self.encode(rows)
        if not self.harmful:
            raise UsageError(f"{rows.name}: no harmful rows; {name} needs some")
        self.stream = Stream(range(len(self.harmful)), self.args.seed)

    def harmful_batch(self, n: int) -> Batch:
        """Return the next n harmful rows on the training device."""
        return self.collate_rows([self.harmful[i] for i in self.stream.take(n)])

    def method_state(self) -> dict[str, Any]:
        """Return the stream of harmful rows."""
        return {**super().method_state(), "harmful": self.stream.state_dict()}

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.stream.load_state_dict(state["harmful"])
