"""What operators see: metrics for Prometheus, one JSON line for each proxied request, and the log of the process."""

from gateway.telemetry.access_log import MAX_LINES, WHOLE_BYTES, AccessLog
from gateway.telemetry.metrics import SHARED_METRICS, Metrics, forget_process
from gateway.telemetry.metrics_folder import metrics_folder
from gateway.telemetry.process_log import AUDIT, JsonFormatter, start_logging
from gateway.telemetry.visit import Called, Visit

__all__ = [
    "AUDIT",
    "MAX_LINES",
    "SHARED_METRICS",
    "WHOLE_BYTES",
    "AccessLog",
    "Called",
    "JsonFormatter",
    "Metrics",
    "Visit",
    "forget_process",
    "metrics_folder",
    "start_logging",
]
