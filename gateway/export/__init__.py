"""Writes what was used to files: the only owner of exported files."""

from gateway.export.exporter import Exporter, Totals, follow
from gateway.export.files import ReceiptFiles

__all__ = ["Exporter", "ReceiptFiles", "Totals", "follow"]
