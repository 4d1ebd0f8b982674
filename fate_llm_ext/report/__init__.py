"""One self-contained HTML page per run: results, curves, bytes on the wire, time per phase, errors."""

from fate_llm_ext.report.page import write_report

__all__ = ["write_report"]
