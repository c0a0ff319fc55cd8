"""MkDocs hooks: what the site has beside docs/, links as on GitHub, and formulas without a script from elsewhere.

The repository is laid out on the site as it is, with docs/ as its root: README.md becomes the first page, and every
file that a page links to is put at its own path, so that one relative link serves GitHub and the site.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import docs_reference
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
REFERENCE = """# Python

## The run

::: sdfast.Pipeline
    options:
      members: [run, pretrain, distill, finetune, evaluate, evaluation, predict, embed, probe, report, replay, export,
                push, results]

::: sdfast.rundir.Result

::: sdfast.stages.evaluate.Evaluation

::: sdfast.inference.predict.Predictions

::: sdfast.inference.embed.Embeddings

::: sdfast.inference.probe.Probe

::: sdfast.Study

## Losses

They import torch and nothing else of sdfast but its operators ([in your own trainer](../tutorials/trainer.md)).

::: sdfast.losses.mae_distill_loss

::: sdfast.losses.MaeDistillLoss

::: sdfast.losses.MaeDistillOutput

::: sdfast.losses.mlm_distill_loss

::: sdfast.losses.MlmDistillOutput

::: sdfast.losses.linear_cross_entropy

::: sdfast.losses.linear_kl
"""


def on_config(config: Any) -> Any:
    """Fences of ```math become pictures, as GitHub shows them too; pages not in the menu join its guides."""
    guides = next(part["Guides"] for part in config.nav if "Guides" in part)
    guides += [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in str(config.nav)]
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and whatever of the repository the pages link to."""
    made = {
        "reference/commands.md": docs_reference.commands(),
        "reference/configuration.md": docs_reference.configuration(),
        "reference/python.md": REFERENCE,
    }
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    to_read = [Path("README.md"), Path("CONTRIBUTING.md"), Path("CHANGELOG.md")]
    to_read += [
        Path("docs", file.src_uri) for file in files if file.is_documentation_page() and file.src_uri not in made
    ]
    seen = set(to_read)
    while to_read:
        path = to_read.pop()
        if files.get_file_from_path(site_path(path)) is None:
            files.append(_file(path, config))
        if path.suffix == ".md":
            linked = {target for link, _ in LINK.findall(_text(path)) if (target := linked_file(path, link))}
            to_read += sorted(linked - seen)
            seen |= linked
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page, which are those of the repository, at the pages of the site."""
    path = repository_path(page.file.src_uri)
    if not (ROOT / path).is_file():
        return markdown  # made here
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = linked_file(path, match[1])
        return posixpath.relpath(site_path(target), here or ".") + (match[2] or "") if target else match[0]

    return LINK.sub(moved, markdown)


def linked_file(page: Path, link: str) -> Path | None:
    """The file of the repository that a link of one of its pages names; None of a link to elsewhere."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    path = Path(posixpath.normpath(posixpath.join(page.parent.as_posix(), link)))
    return path if (ROOT / path).is_file() else None


def site_path(path: Path) -> str:
    """Where a file of the repository is on the site, as MkDocs names its source."""
    if path.as_posix() == "README.md":
        return "index.md"
    uri = path.relative_to("docs").as_posix() if path.parts[0] == "docs" else path.as_posix()
    return f"{uri}.md" if path.suffix == ".py" else uri


def repository_path(uri: str) -> Path:
    """The file that a page of the site was made of; it need not be there."""
    if uri == "index.md":
        return Path("README.md")
    return next((path for path in (Path("docs", uri), Path(uri)) if (ROOT / path).is_file()), Path(uri))


def _text(path: Path) -> str:
    return (ROOT / path).read_text("utf-8")


def _file(path: Path, config: Any) -> File:
    if path.suffix == ".py":
        return File.generated(config, site_path(path), content=f"# {path}\n\n```python\n{_text(path)}```\n")
    return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))


def formula(source: str, *_: Any, **__: Any) -> str:
    """A formula of TeX as an SVG whose lines take the colour of the text; matplotlib sets it, a line each."""
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    pictures = []
    for line in filter(None, (each.strip() for each in source.splitlines())):
        outline = TextPath((0, 0), f"${line}$", size=17)
        box = outline.get_extents()
        drawn = []
        for points, code in outline.iter_segments():
            if code == Outline.CLOSEPOLY:
                drawn.append("Z")
            else:
                drawn.append(letters[code] + " ".join(f"{value:.2f}" for value in points))
        width, height = box.width + 2, box.height + 4
        pictures.append(
            f'<svg class="formula" role="img" aria-label="{html.escape(line, quote=True)}" width="{width:.0f}"'
            f' height="{height:.0f}" viewBox="{box.x0 - 1:.2f} {-box.y1 - 2:.2f} {width:.2f} {height:.2f}">'
            f'<path transform="scale(1 -1)" fill="currentColor" d="{"".join(drawn)}"/></svg>'
        )
    return f'<div class="formulas">{"".join(pictures)}</div>'
