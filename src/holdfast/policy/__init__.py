"""The policy world: a rule for a company's assistant in plain English, without harmful text."""

from holdfast.policy.data import KINDS, rows

__all__ = ["KINDS", "rows"]
