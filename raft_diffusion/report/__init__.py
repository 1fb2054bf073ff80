"""The page of a run, from its folder alone. It needs no torch."""

from .page import write_report

__all__ = ["write_report"]
