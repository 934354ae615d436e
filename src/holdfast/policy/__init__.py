"""The policy world: a rule for a company's assistant in plain English, without harmful text."""

from holdfast.policy.data import KINDS, rows
from holdfast.policy.tasks import DEPARTMENTS, task_rows

__all__ = ["DEPARTMENTS", "KINDS", "rows", "task_rows"]
