"""The report of a comparison, made from its records alone: an HTML page, Markdown and PNG plots."""

from graft.compare.report.write import recommendation, summary_table, write_report

__all__ = ["recommendation", "summary_table", "write_report"]
