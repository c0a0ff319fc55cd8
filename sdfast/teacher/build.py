"""One pass of the teacher over the data, written so that a kill at any moment leaves no bank or a resumable part.

The part lies beside the bank in `.partial-<name>`. Data first, then its checksums, then a line in a journal, each on
the disk before the next; the manifest comes last, and a rename makes the bank visible. Rows go through the teacher in
fixed batches, so that a resumed build gives the same bits as an uninterrupted one, and several processes give the same
as one.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast import __version__
from sdfast.data.parallel import available_threads
from sdfast.durable import explain_os_error, fsync_path, recover_directory, sha256_file, write_json
from sdfast.errors import RunError, UserError
from sdfast.ranks import Ranks
from sdfast.store.artifact import first_foreign
from sdfast.store.partial import Partial, publish
from sdfast.store.rows import CHECKSUMS, ROWS, Layout
from sdfast.teacher.bank import BUILT, MANIFEST, Bank, Manifest, in_threads, open_bank, read_manifest
from sdfast.teacher.fingerprint import fingerprint
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.storage import decode, encode, widen

Progress = Callable[[int, int], None]
_SPREAD_VALUES = 4 << 20  # of a sample of the rows, which has 32 to 512 of them
_SMALLEST_SPREAD = 1e-6  # of a feature, relative to the features' size
_OURS = re.compile(  # the last are files whose writer was killed
    r"(manifest|built|plan)\.json|(rows|checksums)\.bin|(features|scales|journal)-.*\.bin|\.staging-.*", re.DOTALL
)


def prepare_bank(
    directory: Path,
    recipe: BankRecipe,
    rebuild: bool = False,
    new_teacher: bool = False,
    progress: Progress | None = None,
    commit_seconds: float = 10.0,
    ranks: Ranks | None = None,
) -> Bank:
    """The bank of a recipe: opened when it is there, else built, or built to the end when a part is there.

    Several processes may build it together, on one file system: each calls this with the same arguments but its own
    rank. They share out the batches that are not done, and rank 0 publishes. However many there were and whichever were
    killed, any number may continue, and the bank has the bits that one process gives it.

    Args:
        directory: of the bank.
        recipe: what it shall hold.
        rebuild: replace whatever is there, a part included.
        new_teacher: replace a bank of another teacher (a new round is a new teacher is a new bank).
        progress: called with (rows done, rows in all), of this process's share and what was done before.
        commit_seconds: time between durable records of what is done; at most this much work is lost.
        ranks: the processes; those of torch.distributed when not given.

    Raises:
        UserError: the bank there is of something else or damaged, and `rebuild` is off; or rows that are unfit.
        RunError: features that are unfit, or a bank that cannot be written.
    """
    directory, ranks = Path(directory), ranks or Ranks.current()
    part = directory.with_name(f".partial-{directory.name}")
    layout = Layout.plan(len(recipe.entry_digests), recipe.feature_shape, recipe.dtype)
    partial: Partial | None = None
    started = time.monotonic()

    def join(rank: int, done: Iterable[int] = ()) -> Partial:
        of = fingerprint(recipe.identity), recipe.entry_digests, layout
        return Partial(part, *of, "the teacher bank", "train with teacher.mode=live", rank, done, in_threads)

    def begin() -> list[int] | None:
        """On rank 0: the batches that are done already; None when the bank is there, or finished by the way."""
        nonlocal partial
        recover_directory(directory)
        replace = rebuild or (new_teacher and _of_another_teacher(directory, recipe))
        if not replace and (directory / MANIFEST).exists():
            open_bank(directory, recipe.identity)
            return None
        _refuse_foreign(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        if rebuild:
            shutil.rmtree(part, ignore_errors=True)
        if _complete(part, recipe):
            publish(part, directory)
            return None
        partial = join(0)
        return sorted(partial.done)

    def fill(done: list[int]) -> None:
        nonlocal partial
        partial = partial or join(ranks.rank, done)
        finished = set(done)
        share = ranks.share([batch for batch in range(layout.batches) if batch not in finished])
        try:
            _fill(partial, recipe, share, progress or (lambda done, total: None), commit_seconds)
        finally:
            partial.commit()

    def finish() -> None:
        """On rank 0: the manifest, and the bank becomes visible."""
        assert partial is not None
        partial.take_in_others()
        _finish(partial, recipe, time.monotonic() - started, ranks.world)
        partial.close()
        publish(part, directory)

    explained = explain_os_error(directory)
    try:
        done = ranks.first(explained(begin))
        if done is not None:
            ranks.agree(explained(lambda: fill(done)))
            ranks.first(explained(finish))
    finally:
        if partial is not None:
            partial.close()
    return open_bank(directory, recipe.identity)


def _of_another_teacher(directory: Path, recipe: BankRecipe) -> bool:
    try:
        stored = read_manifest(directory).identity.get("teacher")
    except ValueError:
        return False
    return stored != recipe.identity["teacher"]


def _finish(partial: Partial, recipe: BankRecipe, seconds: float, processes: int) -> None:
    """Write the manifest of a bank whose batches are all done."""
    part, layout = partial.directory, partial.layout
    spread = _spread(partial, layout, recipe.plural)
    manifest = Manifest(
        identity=recipe.identity,
        layout=layout,
        rows_sha256=sha256_file(part / ROWS),
        checksums_sha256=sha256_file(part / CHECKSUMS),
        spread=spread,
    )
    built = {
        "at": time.time(),
        "seconds": partial.earlier_seconds + seconds,
        "resumed": partial.resumed,
        "device": str(recipe.device),
        "processes": processes,
        "versions": {"sdfast": __version__, "torch": torch.__version__},
    }
    write_json(part / BUILT, built)
    for path in (*(part / name for name in layout.sizes()), part):
        fsync_path(path)
    write_json(part / MANIFEST, manifest.to_json())


def _fill(partial: Partial, recipe: BankRecipe, share: list[int], progress: Progress, commit_seconds: float) -> None:
    """Run the teacher on some batches; checking, hashing and writing go on in threads beside it."""
    layout = partial.layout
    saved = time.monotonic()
    threads = available_threads()
    pending: deque[Future[None]] = deque()
    before = len(partial.done)

    def rows_in(batches: int) -> int:
        return min(batches * layout.rows_per_batch, layout.rows)

    with ThreadPoolExecutor(threads, thread_name_prefix="sdfast-bank") as pool:
        for position, batch in enumerate(share, 1):
            first = batch * layout.rows_per_batch
            entries = np.arange(first, min(first + layout.rows_per_batch, layout.rows))
            rows = recipe.rows_of_entries(entries)
            contents = recipe.read(rows)
            features = recipe.features(contents, entries)
            pending.append(pool.submit(_store, partial, recipe, batch, rows, contents, features))
            while len(pending) > threads or (pending and pending[0].done()):
                pending.popleft().result()
            if time.monotonic() - saved >= commit_seconds:
                while pending:
                    pending.popleft().result()
                partial.commit()
                saved = time.monotonic()
            progress(rows_in(before + position), rows_in(before + len(share)))
        for future in pending:
            future.result()


def _store(
    partial: Partial,
    recipe: BankRecipe,
    batch: int,
    rows: NDArray[np.int64],
    contents: Any,
    features: Tensor,
) -> None:
    """Check one batch and write it.

    Raises:
        UserError: contents that are not those of their digest.
        RunError: features that are not finite.
    """
    recipe.check(contents, rows)
    values = features.cpu()
    if not torch.isfinite(torch.stack(torch.aminmax(values))).all():  # cheaper than to ask every feature
        finite = torch.isfinite(values).flatten(1).all(dim=1).numpy()
        raise RunError(
            f"the teacher's features of {int((~finite).sum())} of {len(rows)} {recipe.plural} are not finite (first: "
            f"row {rows[~finite][0]}); train the teacher again with a lower pretrain.lr."
        )
    partial.write(batch, encode(values, recipe.dtype))


def _spread(partial: Partial, layout: Layout, plural: str) -> float:
    """Largest standard deviation of a feature over a sample of the rows.

    Raises:
        RunError: it is as good as zero, although the contents differ.
    """
    if layout.rows < 2:
        return 0.0
    count = min(layout.rows, max(_SPREAD_VALUES // math.prod(layout.shape), 32), 512)
    streams = partial.read_rows(np.unique(np.linspace(0, layout.rows - 1, count).astype(np.int64)))
    sample = widen(*decode([torch.from_numpy(values) for values in streams], layout))
    size = float(sample.square().mean().sqrt())
    spread = float(sample.std(dim=0, correction=0).max())
    if spread <= _SMALLEST_SPREAD * size:
        raise RunError(
            f"the teacher gives all {plural} the same features (spread {spread:.1e}, size {size:.1e}): it has"
            " collapsed; train it again with a lower pretrain.lr."
        )
    return spread


def _complete(part: Path, recipe: BankRecipe) -> bool:
    """Whether the part was built to the end, from this recipe, and only the rename is missing."""
    if not (part / MANIFEST).exists():
        return False
    try:
        open_bank(part, recipe.identity).check()
    except UserError:
        shutil.rmtree(part)
        return False
    return True


def _refuse_foreign(directory: Path) -> None:
    """Stop before a directory that holds other things than a bank would be replaced."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UserError(f"{directory} is not a folder; move it away or choose another --out.")
    if foreign := first_foreign(directory, lambda name: _OURS.fullmatch(name) is not None):
        raise UserError(f"{directory} holds {foreign!r}, which is no part of a bank; move it away.")
