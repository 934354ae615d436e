"""The embedded world: an invented language in which safety is measured exactly, in minutes."""

from holdfast.world.data import is_world_row, rows, task_rows

__all__ = ["is_world_row", "rows", "task_rows"]
