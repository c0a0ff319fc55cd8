"""What pack and bank of a run need on the disk, by its configuration, its model and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdfast.config import resolve, with_own_settings
from sdfast.costs.plan import bank_bytes
from sdfast.costs.workload import workload
from sdfast.data.modality import IMAGES, TEXTS
from sdfast.data.sources import open_source
from sdfast.errors import UserError
from sdfast.modalities.choose import modality_of
from sdfast.modalities.named import task_of
from sdfast.opening import model_path


def needed(out: Path) -> dict[str, Any]:
    """Bytes of `pack` and `bank`, and whether they are there; or `why_not`, why that cannot be told.

    Nothing is fetched, and the source is counted, not read. Of texts that are cut or lie in several chunks it is what
    they need at the greatest length.
    """
    try:
        config = resolve(file=out / "config.yaml")
        place = Path(model_path(config)).expanduser()
        if not place.exists():
            return {"why_not": f"the model {config.model_spec} is not here"}
        modality = modality_of(place)
        model = modality.load(str(place), config)
        config, _ = with_own_settings(config, modality.own_settings(model))
        words = {"images": IMAGES, "texts": TEXTS}[modality.name]
        splits = open_source(modality.source(config), config.data, words).splits
        work = workload(task_of("distill", config, model.shape))
    except UserError as error:
        return {"why_not": str(error).rstrip(".")}
    rows = {name: len(items) for name, items in splits.items()}
    sizes = {
        "pack": (sum(rows.values()) * work.example, out / "pack"),
        "bank": (bank_bytes(work, config, rows.get("train", 0)), out / "teacher"),
    }
    return {
        name: {"bytes": size, "there": (folder / "manifest.json").is_file()} for name, (size, folder) in sizes.items()
    }
