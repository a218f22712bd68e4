"""Looking at runs and at branches: tables, curves, a page, costs."""

from sidebranch.inspect.cost import Anatomy, Cost, Place, anatomy, costs
from sidebranch.inspect.record import Record, by_kind, label, read_record, summarise
from sidebranch.inspect.report import verdict, write_report
from sidebranch.inspect.tree import cost_table, forks_tree

__all__ = [
    "Anatomy",
    "Cost",
    "Place",
    "Record",
    "anatomy",
    "by_kind",
    "cost_table",
    "costs",
    "forks_tree",
    "label",
    "read_record",
    "summarise",
    "verdict",
    "write_report",
]
