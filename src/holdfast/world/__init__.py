"""The embedded world: an invented language in which safety can be measured exactly, in minutes."""

from holdfast.world.data import of_the_world, rows, task_rows

__all__ = ["of_the_world", "rows", "task_rows"]
