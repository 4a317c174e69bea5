"""The worker's log: one event a line, on standard error.

Never what a job was given or what it wrote: that is the tenant's. Callers log
names, numbers and ids; what else gets here by mistake is replaced by a marker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from typing import Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from corral_worker.secret import MARKER
from corral_worker.settings import LogFormat, LogLevel

REDACTED: Final = "[redacted]"
"""What stands for a value that must not be logged."""

_PRIVATE_KEYS = frozenset(
    {
        "argv",
        "authorization",
        "env",
        "job",
        "passwd",
        "password",
        "payload",
        "redis_url",
        "result",
        "secret",
        "stderr",
        "stdin",
        "stdout",
        "token",
    }
)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*(?:@[^/\s@]*)*@")
_URL_PASSWORD = re.compile(r"(?<=password=)[^&\s]+")
_MAX_DEPTH = 6
_SILENT = logging.CRITICAL + 1


def configure(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's logs to ``stream``.

    Args:
        log_format: ``auto`` is ``console`` on a terminal, else ``json``.
        level: the least severe events that are logged.
        stream: standard error if left out; standard output belongs to jobs.

    May be called again; the last call counts. Loggers never raise into their
    callers: what cannot be logged is named on the stream instead.
    """
    stream = sys.stderr if stream is None else stream
    on_terminal = stream.isatty()
    as_json = log_format == "json" or (log_format == "auto" and not on_terminal)
    handler = _Handler(stream)
    renderer: Processor = structlog.processors.JSONRenderer()
    if not as_json:
        # Not rich's tracebacks: they show the values of local variables.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=plain)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # All that can fail runs in here, behind the handler's guard.
            processors=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.StackInfoRenderer(),
                structlog.processors.ExceptionRenderer(),
                redact,
                renderer,
            ],
            foreign_pre_chain=[_stamp],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    _silence_arq()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _stamp,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace what must not be logged: a structlog processor, and the last line of defence.

    That is the value of any key that may hold a payload or a secret, bytes,
    Structs such as a job or a result, and the credentials in URLs.
    """
    return {key: _harmless(key, value, _MAX_DEPTH) for key, value in event.items()}


_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)


def _harmless(key: object, value: object, depth: int) -> object:
    if str(key).casefold() in _PRIVATE_KEYS:
        return REDACTED
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview() | msgspec.Struct():
            return REDACTED
        case str():
            return _without_credentials(value)
        case Mapping() if depth:
            return {str(k): _harmless(k, v, depth - 1) for k, v in value.items()}
        case list() | tuple() | set() | frozenset() if depth:
            return [_harmless(None, item, depth - 1) for item in value]
        case Mapping() | list() | tuple() | set() | frozenset():
            return REDACTED
        case BaseException():
            return _harmless(None, f"{type(value).__name__}: {value}", depth)
        case _:
            return _harmless(None, str(value), depth)


def _without_credentials(text: str) -> str:
    # The expressions take longer than much else that is done with a line.
    if "://" not in text and "password=" not in text:
        return text
    return _URL_PASSWORD.sub(MARKER, _URL_CREDENTIALS.sub(f"{MARKER}@", text))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; where it cannot, it says so without quoting what it was given."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller is not to see it
            failure = {
                "event": "log.unprintable",
                "level": "error",
                "logger": record.name,
                "error": type(error).__name__,
            }
            line = json.dumps(failure)
        with contextlib.suppress(Exception):  # there is nowhere left to say it
            self.stream.write(line + self.terminator)
            self.stream.flush()


def _silence_arq() -> None:
    # arq logs the arguments and results of jobs: nothing of it may get out.
    known = [name for name in logging.Logger.manager.loggerDict if name.startswith("arq.")]
    for name in ("arq", *known):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(_SILENT)
