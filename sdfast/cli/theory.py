"""`sdfast theory`: the statements of the paper's section 4, verified on a random linear model."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdfast.cli import output
from sdfast.errors import RunError, UserError

if TYPE_CHECKING:
    from sdfast.theory.instance import Survey
    from sdfast.theory.verify import Claim, Curves


def theory(
    out: Annotated[Path, typer.Option(help="where the figure and the numbers go")] = Path("runs/theory"),
    seed: Annotated[int, typer.Option(min=0, help="of the drawn instance")] = 0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="of self-distillation, t = 0 .. rounds")] = 5,
    samples: Annotated[int, typer.Option(min=1, max=500, help="n")] = 6,
    features: Annotated[int, typer.Option(min=2, max=500, help="d, above n")] = 9,
    outputs: Annotated[int, typer.Option(min=1, max=500, help="p")] = 3,
    ridge: Annotated[float, typer.Option(min=0, help="lambda, the weight of ||w||^2 in a round")] = 0.05,
    time: Annotated[float, typer.Option(min=0, help="T, how long gradient flow fine-tunes")] = 1.0,
    targets: Annotated[str, typer.Option(help="labels near the teacher's outputs, or independent")] = "near",
    instances: Annotated[int, typer.Option(min=0, help="more instances, to count how often statements fail")] = 1000,
) -> None:
    """Check the theory of section 4 on a random linear model, and plot distance and bounds by round."""
    from sdfast.durable import write_bytes, write_json
    from sdfast.log import console
    from sdfast.theory.figure import draw_figure
    from sdfast.theory.instance import Draw, draw, survey
    from sdfast.theory.verify import curves, verify

    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder.")
    settings = Draw(samples, features, outputs, ridge, targets)  # type: ignore[arg-type]
    model, start = draw(settings, seed)
    claims = verify(model, start, rounds, time)
    found = curves(model, start, rounds, time)
    with console().status("drawing instances") as status:

        def say(done: int) -> None:
            if done % 50 == 0:
                status.update(f"instance {done} of {2 * instances}")

        counted = [
            survey(settings, "independent", seed, rounds, time, instances, say),
            survey(settings, "near", seed, rounds, time, instances, lambda done: say(instances + done)),
        ]
    about = (
        f"n = {samples} samples, d = {features} features, p = {outputs} outputs, λ = {ridge:g}, T = {time:g},"
        f" targets {'near the teacher' if targets == 'near' else 'independent'}, seed {seed}"
    )
    for kind, picture in draw_figure(found, about).items():
        write_bytes(out / f"theory.{kind}", picture)
    write_bytes(out / "theory.csv", _csv(found).encode())
    record = {
        "settings": asdict(settings) | {"seed": seed, "rounds": rounds, "time": time},
        "claims": [asdict(claim) for claim in claims],
        "survey": [asdict(each) for each in counted if instances],
    }
    write_json(out / "theory.json", record)

    def show() -> None:
        _show(claims, counted if instances else [], about)
        typer.echo(f"figure and numbers: {out}/theory.png, .svg, .csv, .json")

    output.give({"out": out, **record}, show)
    if broken := [claim.statement for claim in claims if claim.must and not claim.holds]:
        raise RunError(f"what must hold was not found to hold, which is a defect of sdfast: {'; '.join(broken)}.")


def _csv(found: Curves) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["t", "norm", "paper_zeta", "repaired_zeta", "distance", "paper_psi", "repaired_psi"])
    for t, (norm, paper, repaired, distance) in enumerate(
        zip(found.norm, found.paper, found.repaired, found.distance, strict=True)
    ):
        row = (norm, paper, repaired, distance, paper + found.start, repaired + found.start)
        writer.writerow([t, *map(repr, map(float, row))])
    return text.getvalue()


_MEASURES = {"error": "error {:.0e}", "ratio": "ratio {:.3f}", "drop": "drop {:.2g}"}


def _show(claims: list[Claim], counted: list[Survey], about: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    typer.echo(about)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)  # within eighty columns
    for name in ("statement", "measured", "on this instance"):
        table.add_column(name)
    for claim in claims:
        verdict = "holds" if claim.holds else "does not hold"
        table.add_row(claim.statement, _MEASURES[claim.measure].format(claim.value), verdict)
    console = Console(highlight=False, markup=False)
    console.print(table)
    typer.echo("error: largest, relative; ratio: largest, left side to right side; drop: smallest, of the square.")
    for each in counted:
        typer.echo(_sentence(each))


def _sentence(each: Any) -> str:
    kind = "independent targets" if each.targets == "independent" else "targets near the teacher's outputs"

    counts = (each.paper_fails, each.norm_rises, each.repaired_fails)
    paper, rises, repaired = (f"{100 * count / each.instances:.1f} %" for count in counts)
    return (
        f"{each.instances} instances with {kind}: (6) fails in {paper}, ||w_{{t,T}}|| rises in {rises}, the repaired"
        f" bound fails in {repaired}"
    )
