"""From a trained network to what is deployed."""

from sidebranch.deploy.export import export_reference, export_run

__all__ = ["export_reference", "export_run"]
