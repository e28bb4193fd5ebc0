"""Logs as one JSON object a line, for programs that read them: HEADTAIL_LOG=json."""

import logging
import os
import time

import msgspec


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger, message, and the traceback where there is one."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def set_up_logging(service: str, level: int = logging.WARNING) -> None:
    """Log this level and worse to standard error, as text or as the environment's HEADTAIL_LOG says."""
    handler = logging.StreamHandler()
    if os.environ.get("HEADTAIL_LOG") == "json":
        handler.setFormatter(JsonFormatter(service))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
