"""Looks at a configuration, its store, files and machine, and says what is wrong or unwise, and what to do about it."""

from gateway.doctor.examination import examine
from gateway.doctor.finding import Finding, Level, as_json, as_lines

__all__ = ["Finding", "Level", "as_json", "as_lines", "examine"]
