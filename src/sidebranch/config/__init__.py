"""The configuration: dataclasses, their rules, and the recipes that fill them. Imports no torch."""
