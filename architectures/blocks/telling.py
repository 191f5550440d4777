"""What a network tells of itself while it is built, once: planning builds the same network many times."""

from __future__ import annotations

import logging
from functools import cache


@cache
def tell(logger: str, message: str) -> None:
    """Log a message, the first time that it is told."""
    logging.getLogger(logger).info(message)
