"""Groups from scores: thresholds, their stability, and tables of groups for editing by hand."""

from holdfast.groups.make import group
from holdfast.groups.recommend import Recommendation, recommend
from holdfast.groups.stability import Stability, doubt, sensitivity, stability
from holdfast.groups.table import groups_from_csv, groups_to_csv
from holdfast.groups.thresholds import RULES, Cuts, Rule, find_cuts, otsu

__all__ = [
    "RULES",
    "Cuts",
    "Recommendation",
    "Rule",
    "Stability",
    "doubt",
    "find_cuts",
    "group",
    "groups_from_csv",
    "groups_to_csv",
    "otsu",
    "recommend",
    "sensitivity",
    "stability",
]
