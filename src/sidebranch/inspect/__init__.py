"""Looking at runs: tables, curves, a page."""

from sidebranch.inspect.record import Record, by_kind, label, read_record, summarise
from sidebranch.inspect.report import verdict, write_report

__all__ = ["Record", "by_kind", "label", "read_record", "summarise", "verdict", "write_report"]
