"""The panels of a report that show evidence, from files alone: what is void, or not whole, is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdfast.log import log
from sdfast.report.evidence import keep, layers, maps, masked, mistakes
from sdfast.report.evidence.show_layers import layers_panel
from sdfast.report.evidence.show_map import map_panel
from sdfast.report.evidence.show_masked import masked_panel
from sdfast.report.evidence.show_mistakes import mistakes_panel
from sdfast.report.evidence.stages import Standing
from sdfast.report.panel import Panel

_PANELS: dict[str, Callable[[dict[str, Any]], Panel | None]] = {
    masked.ITEM: masked_panel,
    layers.ITEM: layers_panel,
    maps.ITEM: map_panel,
    mistakes.ITEM: mistakes_panel,
}


def panels(out: Path) -> list[Panel]:
    """What is kept in a run directory and still true of the models there: see `make_evidence`."""
    standing, found = Standing(out), []
    for item, show in _PANELS.items():
        value = current(keep.read(out, item), standing)
        panel = None if value is None else shown(value, show, keep.path(out, item))
        if panel is not None:
            found.append(panel)
    return found


def shown(value: dict[str, Any], show: Callable[[dict[str, Any]], Panel | None], path: Path) -> Panel | None:
    """The panel of an item that was kept in a file; None where it is not as this version writes it."""
    try:
        return show(value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # another version's, or edited
        log.debug("report: %s is left out: %r", path, error)
        return None


def current(value: dict[str, Any] | None, standing: Standing) -> dict[str, Any] | None:
    """An item without the models that are not there any more; None where it is of such as a whole."""
    if value is None:
        return None
    whole = [*value["of"].get("models", {}).values(), *([value["of"]["model"]] if "model" in value["of"] else [])]
    if not all(map(standing.has, whole)):
        return None
    if "models" in value:
        kept = {key: one for key, one in value["models"].items() if standing.has(one)}
        return {**value, "models": kept} if kept else None
    return value
