"""The report: one HTML file that reads, prints and archives without anything else."""

from holdfast.reports.build import write

__all__ = ["write"]
