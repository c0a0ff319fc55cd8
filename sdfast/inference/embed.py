"""Features of the rows of a new source, of the encoder of any stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sdfast import __version__
from sdfast.config import Config
from sdfast.data.rows import RowWriter
from sdfast.durable import load_array, load_json, sealed, staged_directory, write_json
from sdfast.errors import UserError
from sdfast.evaluation.votes import answers_of
from sdfast.inference.encoders import StageEncoder, finished_stages, stage_encoder
from sdfast.inference.parts import PLAN, ROWS, Parts, made_parts, remove_parts
from sdfast.inference.places import begin, check_writable, noted_source, parts_folder, source_of, stem_for
from sdfast.inference.rows import Held, NewRows
from sdfast.inference.table import known_columns
from sdfast.log import log
from sdfast.models.embedder import FeatureTokens
from sdfast.store.artifact import described, first_foreign

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["npy", "parquet"]
Number = Literal["float32", "float16"]
MANIFEST, _FEATURES, _ROWS_FILE, _TABLE = "manifest.json", "features.npy", "rows.parquet", "features.parquet"
_OURS = {MANIFEST, _FEATURES, _ROWS_FILE, _TABLE}
_PART = 64 << 20  # bytes of the features of a part
_COLUMN = "features"
_TOKENS = ("cls", "mean", "patch")


@dataclass(frozen=True)
class Embeddings:
    """Features in a folder.

    Attributes:
        folder: with `manifest.json` and the files that it names.
        manifest: `source`, `stage`, `weights` (digest), `tokens`, `layer`, `dtype`, `shape`, `skipped` and `files`.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def features(self) -> NDArray[Any]:
        """[n, D], or [n, N, D] of patches; of `features.npy` a memory map."""
        if (self.folder / _FEATURES).is_file():
            return load_array(self.folder / _FEATURES, mmap_mode="r")
        return np.stack(self.to_pandas()[_COLUMN].to_list()).reshape(self.manifest["shape"])

    def to_pandas(self) -> pd.DataFrame:
        """Name, label and content digest of each row; of a parquet file its features too."""
        import pandas as pd

        name = _TABLE if (self.folder / _TABLE).is_file() else _ROWS_FILE
        return pd.read_parquet(self.folder / name)


def embed_run(
    out: Path,
    config: Config,
    device: torch.device,
    data: str,
    stage: str | None = None,
    tokens: FeatureTokens = "cls",
    to: Path | None = None,
    form: Form = "npy",
    dtype: Number = "float32",
    read_only: bool = False,
) -> Embeddings:
    """Write the features of all rows of a source; a stopped command goes on where it was.

    Args:
        out: the run directory.
        config: of the run; its `data` section says how the source is read.
        device: where to compute, in float32.
        data: the source; labels are not needed.
        stage: whose encoder; the last of `init`, `pretrain` and `distill` that has ended when None.
        tokens: which features, see `Modality.features`: after all blocks and the last norm.
        to: folder to make; one in `embed/` of the run directory when None.
        form: `npy`: `features.npy` and `rows.parquet`; `parquet`: both in `features.parquet`.
        dtype: that they are stored in.
        read_only: the run directory cannot be written.

    Raises:
        UserError: there is no such stage or token, the source cannot be read, or `to` cannot be written.
        Interrupted: by Ctrl-C; what is done is kept.
    """
    for option, value, known in (
        ("--tokens", tokens, _TOKENS),
        ("--format", form, ("npy", "parquet")),
        ("--dtype", dtype, ("float32", "float16")),
    ):
        if value not in known:
            raise UserError(f"{option} {value} is not known; use {' or '.join(known)}.")
    stage = stage or finished_stages(out)[:3][-1]
    encoder = stage_encoder(out, config, stage, read_only)
    target = _target(out, data, f"-{stage.replace('/', '-')}-{tokens}", to, read_only)
    rows = NewRows(data, encoder.modality, config, encoder.model)
    module = encoder.modality.features(encoder.model.module, tokens, rows.how).to(device)
    width = module.classifier.out_features
    folder = parts_folder(target)
    begin(folder, data)
    size = max(64, min(ROWS, _PART // (4 * width) // 64 * 64))
    identity = ["features", encoder.weights, tokens, dtype, config.data.chunk_stride, __version__]
    work = _work(encoder, module, rows, config, device, tokens, dtype)
    parts = made_parts(folder, rows, identity, work, "embed", size)
    shape = [parts.rows, *_shape(width, encoder.model.module.shape.encoder.width)]
    about = {
        "source": source_of(data),
        "content": parts.source,
        "stage": stage,
        "weights": encoder.weights,
        "tokens": tokens,
        "layer": "last",
        "dtype": dtype,
        "shape": shape,
        "rows": parts.rows,
        "skipped": {"count": parts.skipped, "first": parts.broken},
        "made_by": rows.builder.identity[0],
        "sdfast": __version__,
    }
    with staged_directory(target) as staging:
        if form == "npy":
            _write_npy(parts, staging, shape, dtype)
        else:
            _write_parquet(parts, staging)
        files = {path.name: described(path) for path in sorted(staging.iterdir())}
        write_json(staging / MANIFEST, sealed({**about, "files": files}))
    remove_parts(folder)
    log.info("features: %s of %d %s (%s)", "x".join(map(str, shape)), parts.rows, rows.plural, target)
    return Embeddings(target, load_json(target / MANIFEST))


def _shape(width: int, of_token: int) -> list[int]:
    """The shape of one row: [D], or [N, D]."""
    return [width] if width == of_token else [width // of_token, of_token]


def _target(out: Path, data: str, ending: str, to: Path | None, read_only: bool) -> Path:
    """The folder to make; what is there is nothing but features."""
    if to is None:
        if read_only:
            raise UserError(f"{out} cannot be written; give a folder for the features by --to.")

        def taken(stem: str) -> str | None:
            noted = noted_source(out / "embed" / stem / MANIFEST)
            return noted_source(parts_folder(out / "embed" / stem) / PLAN) if noted is None else noted

        return out / "embed" / stem_for(data, taken, ending)
    check_writable(to.absolute().parent, f"--to {to}")
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {to} is a file; name a folder.")
    if foreign := first_foreign(to, lambda name: name in _OURS):
        raise UserError(f"--to {to} holds {foreign!r}, which is no part of features; name another folder.")
    return to.absolute()


def _work(
    encoder: StageEncoder,
    module: Any,
    rows: NewRows,
    config: Config,
    device: torch.device,
    tokens: FeatureTokens,
    dtype: Number,
) -> Any:
    """From rows in memory to a table of their features."""
    modality, companions, width = encoder.modality, encoder.model.companions, module.classifier.out_features

    def answers(seen: Any, chosen: torch.Tensor) -> torch.Tensor:
        return modality.predict(module, companions, seen, chosen, modality.reader(seen, device))

    def work(held: Held) -> Any:
        import pyarrow as pa

        features = torch.zeros(0, width)
        if held.split is not None:
            voting = modality.voting(rows.builder, held.split, config)
            if voting is not None and tokens == "patch":
                raise UserError("--tokens patch: pictures are cut into tiles (data.tile); use cls or mean for these.")
            features = answers_of(held.split, torch.arange(len(held.names)), voting, answers, "output")
        digests = [] if held.split is None else [digest.tobytes().hex() for digest in held.split.digests]
        flat = pa.array(features.flatten().numpy().astype(dtype))
        return pa.table(
            {
                **known_columns(held, rows.source, len(rows.splits) > 1),
                "sha256": pa.array(digests, pa.string()),
                _COLUMN: pa.FixedSizeListArray.from_arrays(flat, width),
            }
        )

    return work


def _write_npy(parts: Parts, folder: Path, shape: list[int], dtype: Number) -> None:
    import pyarrow.parquet as pq

    writer = None
    with RowWriter(folder / _FEATURES, tuple(shape[1:]), dtype) as features:
        for table in parts.tables():
            values = table.column(_COLUMN).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            features.extend(np.asarray(values, dtype).reshape(-1, *shape[1:]))
            table = table.drop_columns([_COLUMN]).replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(folder / _ROWS_FILE, table.schema)
            writer.write_table(table)
    assert writer is not None
    writer.close()


def _write_parquet(parts: Parts, folder: Path) -> None:
    import pyarrow.parquet as pq

    writer = None
    for table in parts.tables():
        table = table.replace_schema_metadata(None)
        writer = writer or pq.ParquetWriter(folder / _TABLE, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
