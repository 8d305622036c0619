"""Logs: one JSON object a line. What was asked and answered is never in it; what was wrong with a request is told to its caller alone."""

import json
import logging
import sys
import time
from typing import TextIO

OWN = ("graft", "uvicorn.error")


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, message; the record's own facts; the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def to(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Send what Graft and the HTTP server log to a stream, and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in OWN:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
