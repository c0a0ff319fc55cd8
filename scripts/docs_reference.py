"""Pages of the documentation that are made of the program itself: the configuration's keys, and the commands' help."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]


def configuration() -> str:
    """A page with every key: its type, default and description, and where it counts."""
    from sdfast.config import Config

    schema = Config.model_json_schema()
    sections: dict[str, list[tuple[str, Schema, str]]] = {}
    for key, field, when in _fields(schema, schema["$defs"]):
        sections.setdefault(key.partition(".")[0] if "." in key else "The run", []).append((key, field, when))
    page = [
        "# Configuration",
        "",
        "Every key, as `sdfast config schema` has them. Give them as `key=value` behind a command, in a YAML file with"
        " `--config`, or by `--preset`; `sdfast config show` prints what holds. The ones most used are in"
        " [Settings](../settings.md).",
    ]
    for title, rows in sections.items():
        page += ["", f"## {title}", "", "| key | type | default | |", "|---|---|---|---|"]
        for key, field, when in rows:
            about = field.get("description", "")
            about += f" (counts where {' or '.join(when.split('|'))})" if when else ""
            default = json.dumps(field.get("default"), ensure_ascii=False)
            page.append(f"| `{key}` | {_type(field)} | `{default}` | {_cell(about)} |")
    return "\n".join(page) + "\n"


def _fields(schema: Schema, named: Schema, prefix: str = "", when: str = "") -> Iterator[tuple[str, Schema, str]]:
    for name, field in schema["properties"].items():
        condition = field.get("when", when)
        inner = named.get(field.get("$ref", "").rpartition("/")[2])
        if inner is not None and "properties" in inner:
            yield from _fields(inner, named, f"{prefix}{name}.", condition)
        else:
            yield f"{prefix}{name}", field, condition


def _type(field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(each) for each in field["anyOf"] if each.get("type") != "null"))
    words = field.get("enum") or ([field["const"]] if "const" in field else [])
    if words:
        return ", ".join(f"`{json.dumps(word) if not isinstance(word, str) else word}`" for word in words)
    kind = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "names with values"}.get(
        field.get("type", ""), field.get("type", "any")
    )
    if kind == "array":
        items = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_type(items)}" if items else "list"
    low = [f"{sign} {field[name]:g}" for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")) if name in field]
    high = [f"< {field['exclusiveMaximum']:g}"] if "exclusiveMaximum" in field else []
    high += [f"≤ {field['maximum']:g}"] if field.get("maximum", 1e6) < 1e4 else []
    return " ".join((kind, ", ".join(low + high))).strip()


def _cell(text: str) -> str:
    """Prose in a table: what looks like a tag or the end of a cell is shown as it is."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def commands() -> str:
    """A page with each command's help: what it does, its arguments and options."""
    import typer

    from sdfast.cli.main import app

    page = [
        "# Commands",
        "",
        "As `sdfast COMMAND --help` prints it. The exit code is 0 only when the work is done; 1: it failed; 2: the"
        " command or what it was given is wrong; 128 and more: a signal ended it (130: Ctrl-C).",
    ]
    whole = typer.main.get_command(app)
    page += ["", "Every command takes", "", "| | default | |", "|---|---|---|"]
    page += [_option(each) for each in whole.params if _is_of_all(each)]
    for name, command in _leaves(whole, "sdfast"):
        page += ["", f"## {name}", "", _prose(command.help), ""]
        shown = [each for each in command.params if not getattr(each, "hidden", False) and not _is_of_all(each)]
        if shown:
            page += ["| | default | |", "|---|---|---|"]
            page += [_option(each) for each in shown]
    return "\n".join(page) + "\n"


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, in alphabetical order, with its whole name."""
    for word, each in sorted(getattr(command, "commands", {}).items()):
        if hasattr(each, "commands"):
            yield from _leaves(each, f"{name} {word}")
        elif not each.hidden:
            yield f"{name} {word}", each


def _is_of_all(option: Any) -> bool:
    """Whether each command has it: what `--quiet` and its kin say is said once."""
    return getattr(option, "rich_help_panel", None) == "Messages"


def _option(option: Any) -> str:
    words = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
    if option.param_type_name == "argument":
        words = f"`{option.metavar or option.name.upper()}`"
    needed = option.required and option.default is None
    default = "needed" if needed else "" if option.default in (None, False, ()) else f"`{option.default}`"
    return f"| {words} | {default} | {_cell(_prose(option.help))} |"


def _prose(text: str | None) -> str:
    return " ".join((text or "").replace("[", "\\[").split())
