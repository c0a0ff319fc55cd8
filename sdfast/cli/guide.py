"""How the commands are presented: in which group of the help each stands, with an example below its own help."""

from __future__ import annotations

from typing import Any, NamedTuple

import typer


class Shown(NamedTuple):
    """How one command is presented.

    Attributes:
        panel: its group in `sdfast --help`.
        examples: command lines, without `sdfast`.
    """

    panel: str
    examples: tuple[str, ...]


_TRAIN, _LOOK, _USE, _CHECK = "Train", "Look", "Use", "Check and prepare"
SHOWN = {  # in the order of the help
    "train": Shown(
        _TRAIN,
        (
            "train",
            "train --data photos/ --model facebook/vit-mae-base --name photos",
            "train --data photos/ pretrain.steps=2000 distill.steps=2000 finetune.steps=1000",
        ),
    ),
    "study": Shown(
        _TRAIN, ("study compare --data photos/ --name which-method --seeds 5", "study labels --data photos/")
    ),
    "runs": Shown(_LOOK, ("runs", "runs runs/")),
    "report": Shown(_LOOK, ("report --out runs/photos",)),
    "eval": Shown(_LOOK, ("eval --out runs/photos", "eval --out runs/photos --data more-photos/")),
    "replay": Shown(_LOOK, ("replay --out runs/photos",)),
    "predict": Shown(_USE, ("predict --out runs/photos --data new-photos/",)),
    "embed": Shown(_USE, ("embed --out runs/photos --data new-photos/",)),
    "probe": Shown(_USE, ("probe --out runs/photos",)),
    "export": Shown(_USE, ("export --out runs/photos --to photos-model/",)),
    "push": Shown(_USE, ("push --out runs/photos --to NAME/photos",)),
    "convert": Shown(_USE, ("convert RETFound_cfp_weights.pth retfound/",)),
    "doctor": Shown(_CHECK, ("doctor",)),
    "env": Shown(_CHECK, ("env",)),
    "config": Shown(_CHECK, ("config show --preset paper-vit",)),
    "config show": Shown(_CHECK, ("config show --data photos/ > photos.yaml", "config show pretrain.steps=2000")),
    "config schema": Shown(_CHECK, ("config schema > schema.json",)),
    "config presets": Shown(_CHECK, ("config presets",)),
    "plan": Shown(_CHECK, ("plan --model vit-h --devices 64 --batch 4096 --memory 80 --tflops 989 --link 50", "plan")),
    "bench": Shown(_CHECK, ("bench --out runs/photos", "bench --batch 64 --batch 128")),
    "cache": Shown(_CHECK, ("cache info --out runs/photos",)),
    "cache build": Shown(_CHECK, ("cache build --out runs/photos",)),
    "cache verify": Shown(_CHECK, ("cache verify --out runs/photos",)),
    "cache info": Shown(_CHECK, ("cache info --out runs/photos",)),
    "theory": Shown(_CHECK, ("theory --out runs/theory",)),
    "help": Shown(_CHECK, ("help train", "help config show")),
}


def present(app: typer.Typer, prefix: str = "") -> None:
    """Give each command of an application its group, its place and its examples."""
    order = list(SHOWN)
    entries: list[Any] = [*app.registered_commands, *app.registered_groups]
    for entry in entries:
        shown = SHOWN.get(name := f"{prefix}{name_of(entry)}")
        if shown is not None:
            entry.epilog = "\n\n".join(f"[dim]Example:[/] [cyan]sdfast {each}[/]" for each in shown.examples)
            if not prefix:
                entry.rich_help_panel = shown.panel
        group = getattr(entry, "typer_instance", None)
        if group is not None:
            present(group, f"{name} ")
    app.registered_commands.sort(key=lambda each: _place(order, f"{prefix}{name_of(each)}"))


def name_of(entry: object) -> str:
    """What a command or group is called on the command line."""
    name = getattr(entry, "name", None)
    called = getattr(getattr(entry, "callback", None), "__name__", "")
    return str(name) if isinstance(name, str) else called.replace("_", "-")


def _place(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)
