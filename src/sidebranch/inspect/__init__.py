"""Runs and branches, inspected: tables, curves, a report page, costs."""
