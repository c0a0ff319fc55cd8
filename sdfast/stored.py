"""The shape of the JSON files that a run keeps: what they say is checked before anything believes it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sdfast.durable import check_seal


class Stored(BaseModel):
    """A JSON object whose values have the kinds that are named; it may have further ones."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Stored)
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # SHA-256, hexadecimal
Count = Annotated[int, Field(ge=0, lt=2**63)]


class StoredFile(Stored):
    """One file beside a manifest."""

    bytes: Annotated[int, Field(gt=0, lt=2**63)]
    sha256: Digest


def fitted(kind: type[Kind], value: Any) -> Kind:
    """A JSON value as what it should be.

    Raises:
        ValueError: it differs from its own digest, where it has one, or is of another shape; the message says what.
    """
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    check_seal(value)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"its {'.'.join(map(str, first['loc']))} does not fit: {first['msg'].lower()}") from None
