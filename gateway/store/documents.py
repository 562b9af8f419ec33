"""Stored documents as models. What is damaged is the gateway's failure, not its caller's, and harms nobody else."""

from __future__ import annotations

import logging
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gateway.errors import InternalError

_LOG = logging.getLogger("gateway.store")

M = TypeVar("M", bound=BaseModel)


def parsed(model: type[M], document: bytes | None, what: str) -> M:
    """The model of a document. Raises InternalError, and says in the log that ``what`` is damaged, where it is none."""
    found = parsed_or_none(model, document, what)
    if found is None:
        raise InternalError(f"What is stored of {what} is damaged.")
    return found


def parsed_or_none(model: type[M], document: bytes | None, what: str) -> M | None:
    """The same for lists, which leave out what is damaged."""
    try:
        return model.model_validate_json(document or b"")
    except ValidationError as error:  # which repeats values, and they may be secrets
        _LOG.error("what is stored of %s is damaged: %d errors", what, error.error_count())
        return None
