"""`sdfast push`: a stage's model on the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from sdfast.cli.options import RunDirectory, config_of


def push(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="user/name on the Hugging Face hub")],
    out: RunDirectory,
    stage: Annotated[
        str, typer.Option(help="folder of the stage: pretrain, distill, distill/round-1, finetune")
    ] = "finetune",
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="of a new repository; when not given the hub's default, public"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="branch; the main one when not given")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="take the place of files there, which stay in the history")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print files and card, and send nothing")] = False,
) -> None:
    """Upload a stage's model with its card to the Hugging Face hub, in one commit."""
    from sdfast.sharing.hub import pack_up, send

    config_of(out)
    parcel = pack_up(out, stage, repo_id)
    if not dry_run:
        typer.echo(send(parcel, private, revision, replace))
        return
    for name, size in parcel.sizes.items():
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"{sum(parcel.sizes.values()):>14,}  bytes in all, for {repo_id}; nothing was sent\n")
    typer.echo(parcel.card, nl=False)
