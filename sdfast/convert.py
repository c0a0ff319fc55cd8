"""A model as it was found, as a Hugging Face folder: what sdfast reads, other programs then read as well."""

from __future__ import annotations

from pathlib import Path

from sdfast.durable import recover_directory, staged_directory
from sdfast.errors import UserError
from sdfast.log import log
from sdfast.modalities.choose import modality_of
from sdfast.models.found import Told
from sdfast.models.hub import find_model_folder
from sdfast.rundir import foreign_in


def convert_model(
    spec: str,
    to: Path,
    told: Told | None = None,
    image_size: tuple[int, int] | int | None = None,
    channels: int | None = None,
    replace: bool = False,
) -> str:
    """Write a model that sdfast takes as a Hugging Face folder, float32; what was not read as it is stored is logged.

    Args:
        spec: hub id, folder, or file of weights alone.
        to: folder to make.
        told: what a file of weights alone does not say.
        image_size: height and width, or one number, for which a model of images is adapted.
        channels: the same of its channels.
        replace: take the place of a model that is in `to`.

    Returns:
        What was written, in words.

    Raises:
        UserError: the model is none that can be taken, or `to` is in the way; nothing was written.
    """
    place = find_model_folder(spec)
    _check_room(place, to, replace)
    modality = modality_of(place)
    model = modality.given(spec, told or Told(), image_size, channels)
    described = modality.describe(model)
    log.info("model: %s, %s", spec, described)
    for note in model.notes:
        log.warning("model: %s", note.removeprefix("warning: "))
    with staged_directory(to) as staging:
        what = modality.write_given(model, staging)
    return f"{what}, {described}"


def _check_room(place: Path, to: Path, replace: bool) -> None:
    """Refuse to write over what is there, and over the model itself."""
    recover_directory(to)
    if not to.exists():
        return
    if not to.is_dir():
        raise UserError(f"{to} is a file; choose another folder.")
    if to.resolve() in (place.resolve(), *place.resolve().parents):
        raise UserError(f"the model {place} lies in {to}; choose another folder.")
    if not any(to.iterdir()):
        return
    if not replace:
        raise UserError(f"{to} is not empty; choose another folder, or give --replace to put the model in its place.")
    if other := foreign_in(to):
        raise UserError(
            f"{to} holds {other[0]!r}, which is no part of a model and would be lost; choose another folder."
        )
