"""`sdfast convert`: a model as it was found, as a Hugging Face folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from sdfast.cli import output
from sdfast.errors import UserError


def convert(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="hub id, folder, or a file of weights such as RETFound_cfp_weights.pth"),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to make")],
    image_size: Annotated[
        str | None, typer.Option(help="adapt to images of this size: 224, or 144x256 for height x width")
    ] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="adapt to this number of channels")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="attention heads, where a bare file does not say it")] = None,
    decoder_heads: Annotated[int | None, typer.Option(min=1, help="those of its decoder")] = None,
    mean: Annotated[
        str | None, typer.Option(help="mean of its pixels from 0 to 1, one per channel: 0.485,0.456,0.406")
    ] = None,
    std: Annotated[str | None, typer.Option(help="standard deviation of its pixels, in the same way")] = None,
    norm_pix: Annotated[
        bool | None,
        typer.Option("--norm-pix/--no-norm-pix", help="whether its decoder predicts pixels normalised per patch"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="take the place of a model that is in OUT")] = False,
) -> None:
    """Write any model that --model takes as a Hugging Face folder, and say what was read of it.

    A masked auto-encoder keeps its decoder, and its encoder lies in OUT/encoder
    too; an encoder stays one, and a model of texts keeps its tokenizer.
    --heads to --norm-pix say what a file of weights alone does not, as
    facebookresearch/mae saves it.
    """
    from sdfast.convert import convert_model
    from sdfast.models.found import Told

    if (mean is None) != (std is None):
        raise UserError("--mean and --std go together; give both.")
    told = Told(heads, decoder_heads, _numbers("--mean", mean), _numbers("--std", std, least=0.0), norm_pix)
    written = convert_model(model, out, told, _size(image_size), channels, replace)
    output.give({"out": out, "written": written}, lambda: typer.echo(f"{out}: {written}"))


def _numbers(option: str, text: str | None, least: float = -math.inf) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) and number > least for number in numbers):
        positive = " positive" if least == 0 else ""
        raise UserError(f"{option} {text}: give{positive} numbers with commas between them, one per channel.")
    return numbers


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 10 and int(side) for side in sides):
        raise UserError(f"--image-size {text}: give one number, or height x width such as 144x256.")
    return int(sides[0]), int(sides[-1])
