"""One pass of the teacher over the data, written so that a kill at any moment leaves no bank or a resumable part.

The part lies beside the bank in `.partial-<name>`. Data first, then its checksums, then a line in the journal, each on
the disk before the next; the manifest comes last, and a rename makes the bank visible. Rows go through the teacher in
fixed batches, so that a resumed build gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast import __version__
from sdfast.data.rows import row_digest
from sdfast.durable import explain_os_error, fsync_path, recover_directory, sha256_file, write_json
from sdfast.errors import RunError, UserError
from sdfast.teacher.bank import Bank, open_bank
from sdfast.teacher.format import BUILT, CHECKSUMS, MANIFEST, ROWS, Layout, Manifest, read_manifest
from sdfast.teacher.partial import JOURNAL, PLAN, Partial
from sdfast.teacher.recipe import Recipe
from sdfast.teacher.storage import encode

Progress = Callable[[int, int], None]
_SPREAD_ROWS = 512
_SMALLEST_SPREAD = 1e-6  # of a feature, relative to the features' size
_KNOWN = (MANIFEST, ROWS, CHECKSUMS, BUILT, PLAN, JOURNAL)


def prepare_bank(
    directory: Path,
    recipe: Recipe,
    rebuild: bool = False,
    new_teacher: bool = False,
    progress: Progress | None = None,
    commit_seconds: float = 10.0,
) -> Bank:
    """The bank of a recipe: opened when it is there, else built, or built to the end when a part is there.

    Args:
        directory: of the bank.
        recipe: what it shall hold.
        rebuild: replace whatever is there, a part included.
        new_teacher: replace a bank of another teacher (a new round is a new teacher is a new bank).
        progress: called with (rows done, rows in all).
        commit_seconds: time between durable records of what is done; at most this much work is lost.

    Raises:
        UserError: the bank there is of something else or damaged, and `rebuild` is off; or rows that are unfit.
        RunError: features that are unfit, or a bank that cannot be written.
    """
    directory = Path(directory)
    recover_directory(directory)
    replace = rebuild or (new_teacher and _of_another_teacher(directory, recipe))
    if not replace and (directory / MANIFEST).exists():
        return open_bank(directory, recipe.identity)
    _refuse_foreign(directory)
    with explain_os_error(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        part = directory.with_name(f".partial-{directory.name}")
        if rebuild:
            shutil.rmtree(part, ignore_errors=True)
        if not _complete(part, recipe):
            _build(part, recipe, progress or (lambda done, total: None), commit_seconds)
        _publish(part, directory)
    return open_bank(directory, recipe.identity)


def _of_another_teacher(directory: Path, recipe: Recipe) -> bool:
    try:
        stored = read_manifest(directory).identity.get("teacher")
    except ValueError:
        return False
    return stored != recipe.identity["teacher"]


def _build(part: Path, recipe: Recipe, progress: Progress, commit_seconds: float) -> None:
    layout = Layout.plan(len(recipe.distinct_rows), recipe.feature_shape, recipe.dtype)
    partial = Partial(part, recipe, layout)
    started = time.monotonic()
    try:
        try:
            _fill(partial, recipe, progress, commit_seconds)
        finally:
            partial.commit()
        spread = _spread(partial, layout)
    finally:
        partial.close()
    manifest = Manifest(recipe.identity, layout, sha256_file(part / ROWS), sha256_file(part / CHECKSUMS), spread)
    seconds = partial.earlier_seconds + time.monotonic() - started
    built = {
        "at": time.time(),
        "seconds": seconds,
        "resumed": partial.resumed,
        "device": str(recipe.device),
        "versions": {"sdfast": __version__, "torch": torch.__version__},
    }
    write_json(part / BUILT, built)
    for path in (*(part / name for name in layout.sizes()), part):
        fsync_path(path)
    write_json(part / MANIFEST, manifest.to_json())


def _fill(partial: Partial, recipe: Recipe, progress: Progress, commit_seconds: float) -> None:
    """Run the teacher on every batch that is not done; hashing and writing go on in a thread beside it."""
    layout, rows = partial.layout, recipe.distinct_rows
    saved = time.monotonic()
    pending: list[Future[None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="sdfast-bank") as pool:
        for batch in range(layout.batches):
            first = batch * layout.rows_per_batch
            chosen = rows[first : first + layout.rows_per_batch]
            if batch not in partial.done:
                images = np.ascontiguousarray(recipe.images[chosen])
                features = recipe.features(images)
                pending.append(pool.submit(_store, partial, recipe, batch, chosen, images, features))
                while len(pending) > 2 or (pending and pending[0].done()):
                    pending.pop(0).result()
            if time.monotonic() - saved >= commit_seconds:
                while pending:
                    pending.pop(0).result()
                partial.commit()
                saved = time.monotonic()
            progress(first + len(chosen), layout.rows)
        for future in pending:
            future.result()


def _store(
    partial: Partial,
    recipe: Recipe,
    batch: int,
    rows: NDArray[np.int64],
    images: NDArray[np.uint8],
    features: Tensor,
) -> None:
    """Check one batch and write it.

    Raises:
        UserError: pixels that are not those of their digest.
        RunError: features that are not finite.
    """
    for row, image in zip(rows, images, strict=True):
        if row_digest(image) != recipe.digests[row].tobytes():
            raise UserError(f"row {row} of the pack differs from its digest; delete the pack to build it anew.")
    values = features.cpu()
    finite = torch.isfinite(values).flatten(1).all(dim=1).numpy()
    if not finite.all():
        raise RunError(
            f"the teacher's features of {int((~finite).sum())} of {len(rows)} images are not finite (the first is row "
            f"{rows[~finite][0]}); train the teacher again with a lower pretrain.lr."
        )
    partial.write(batch, encode(values, recipe.dtype))


def _spread(partial: Partial, layout: Layout) -> float:
    """Largest standard deviation of a feature over at most 512 rows.

    Raises:
        RunError: it is as good as zero, although the images differ.
    """
    if layout.rows < 2:
        return 0.0
    chosen = np.unique(np.linspace(0, layout.rows - 1, min(layout.rows, _SPREAD_ROWS)).astype(np.int64))
    sample = partial.read_rows(chosen)
    size = float(sample.square().mean().sqrt())
    spread = float(sample.std(dim=0, correction=0).max())
    if spread <= _SMALLEST_SPREAD * size:
        raise RunError(
            f"the teacher gives every image the same features (spread {spread:.1e}, size {size:.1e}): it has collapsed;"
            " train it again with a lower pretrain.lr."
        )
    return spread


def _complete(part: Path, recipe: Recipe) -> bool:
    """Whether the part was built to the end, from this recipe, and only the rename is missing."""
    if not (part / MANIFEST).exists():
        return False
    try:
        open_bank(part, recipe.identity).check()
    except UserError:
        shutil.rmtree(part)
        return False
    return True


def _publish(part: Path, directory: Path) -> None:
    """Put a finished part in the place of the bank; what was there goes last."""
    for name in (PLAN, JOURNAL):
        (part / name).unlink(missing_ok=True)
    for left_by_a_kill in part.glob(".staging-*"):
        left_by_a_kill.unlink()
    fsync_path(part)
    old = directory.with_name(f".old-{directory.name}")
    if directory.exists():
        os.rename(directory, old)
    os.rename(part, directory)
    fsync_path(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(directory: Path) -> None:
    """Stop before a directory that holds other things than a bank would be replaced."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UserError(f"{directory} is not a folder; move it away or choose another --out.")
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    foreign = [
        n
        for n in names
        if n not in _KNOWN
        and not n.startswith(".staging-")  # a file whose writer was killed
        and not (n.startswith(("features-", "scales-")) and n.endswith(".bin"))
    ]
    if foreign:
        raise UserError(f"{directory} holds {foreign[0]!r}, which is no part of a bank; move it away.")
