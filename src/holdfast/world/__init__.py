"""The embedded world: an invented language in which safety can be measured exactly, in minutes."""

from holdfast.world.data import rows, task_rows

__all__ = ["rows", "task_rows"]
