"""Export: an adapter in the form that other tools serve, each route exact or refused with the reason."""

from graft.export.export import TARGETS, Report, export

__all__ = ["TARGETS", "Report", "export"]
