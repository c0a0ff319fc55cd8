"""Model folders, configurations and places that are hostile or unlucky."""

from __future__ import annotations

import json
import shlex
import shutil
import struct
from pathlib import Path
from typing import Any

from stress.hostile_files import SPECIAL, Write, bytes_of, repeated, special_file
from stress.scenes import KINDS

_NUMBERS: tuple[Any, ...] = (0, -1, 10**6, 10**9, 10**30, 1.5, "x", None, [], True)
_KEYS = {
    "images": ("hidden_size", "num_hidden_layers", "image_size", "patch_size", "num_channels", "decoder_hidden_size"),
    "texts": ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "pad_token_id"),
}


def of(kind: str) -> dict[str, Write]:
    """What writes a hostile model into `evil`, by name."""
    model = KINDS[kind][0]
    found: dict[str, Write] = {}
    for key in _KEYS[kind]:
        for value in _NUMBERS:
            found[f"config.json: {key} is {value!r}"] = _changed(model, "config.json", {key: value})
    for name, value in {
        "model_type": "gpt9",
        "architectures": ["Nothing"],
        "auto_map": {"AutoModel": "evil.Model"},
    }.items():
        found[f"config.json: {name} is {value!r}"] = _changed(model, "config.json", {name: value})
    contents = {
        "empty": b"",
        "deep lists": b"[" * 200_000,
        "deep objects": b'{"a":' * 200_000,
        "a number of 100,000 digits": b'{"hidden_size": ' + b"1" * 100_000 + b"}",
        "a list": b"[]",
        "UTF-16": '{"model_type": "vit_mae"}'.encode("utf-16"),
    }
    others = ["config.json", "preprocessor_config.json" if kind == "images" else "tokenizer.json"]
    others += [] if kind == "images" else ["tokenizer_config.json"]
    for name in others:
        for how, data in contents.items():
            found[f"{name}: {how}"] = _with(model, bytes_of(f"evil/{name}", data), name)
    for name in (*others, "model.safetensors"):
        for target in SPECIAL:
            if target not in ("x", "a socket", "/proc/kmsg"):
                found[f"{name}: {target}"] = _with(model, special_file(f"evil/{name}", target), name)
    for how, data in _weights().items():
        found[f"model.safetensors: {how}"] = _with(model, bytes_of("evil/model.safetensors", data), "model.safetensors")
    found["weights of 3 GB of nothing"] = _with(model, _sparse, "model.safetensors")
    pickle = b"cposix\nsystem\n(S'touch pickled'\ntR."
    found["pytorch_model.bin: a pickle"] = _with(model, bytes_of("evil/pytorch_model.bin", pickle), "model.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../../../../etc/passwd", "b": "/dev/zero"}}
    written = bytes_of("evil/model.safetensors.index.json", json.dumps(index).encode())
    found["an index of files elsewhere"] = _with(model, written, "model.safetensors")
    return found


def _with(model: str, write: Write, without: str) -> Write:
    """A copy of a good model, one file of which is another."""

    def both(folder: Path) -> None:
        shutil.copytree(folder / model, folder / "evil")
        (folder / "evil" / without).unlink()
        write(folder)

    return both


def _changed(model: str, name: str, values: dict[str, Any]) -> Write:
    def write(folder: Path) -> None:
        shutil.copytree(folder / model, folder / "evil")
        path = folder / "evil" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return write


def _weights() -> dict[str, bytes]:
    def file(header: Any, data: bytes = b"") -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    return {
        "empty": b"",
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "a header of 90 MB": struct.pack("<Q", 90_000_000) + b" " * 90_000_000,
        "a header of deep lists": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "a tensor beyond its end": file({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        "a tensor of a shape that does not fit": file(
            {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "no tensors": file({}),
        "a pickle": b"cposix\nsystem\n(S'touch pickled'\ntR.",
    }


def _sparse(folder: Path) -> None:
    size = 3 << 30
    text = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(folder / "evil/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)


def _yaml(text: str) -> tuple[tuple[str, ...], Write]:
    return ("--config", "evil.yaml"), bytes_of("evil.yaml", text.encode("utf-8", "surrogatepass"))


def _none(folder: Path) -> None:
    pass


_MANY = "9" * 30
_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
_DEEP = "deepspeed:\n" + "".join(f"{' ' * (n + 1)}k{n}:\n" for n in range(3000))
_KEY_WORDS = f"""
data.image_size=1000000 data.image_size=1000000000 data.image_size=[1,1000000000] data.image_size=17 data.limit={_MANY}
data.max_pixels=1 data.test_fraction=nan data.source= data.label_key=\x1b[2J engine.threads=100000 engine.threads=0
engine.threads={_MANY} engine.accumulate=1000000000 engine.keep_checkpoints={_MANY} engine.checkpoint_seconds=nan
engine.checkpoint_seconds=inf engine.log_every={_MANY} pretrain.lr=nan pretrain.lr=inf pretrain.lr=-1 pretrain.lr=1e400
pretrain.mask_ratio=2 pretrain.mask_ratio=nan pretrain.batch_size={_MANY} pretrain.batch_size=1000000000000
pretrain.betas=[1,1] pretrain.betas=[] pretrain.eps=nan pretrain.weight_decay=inf seed={_MANY} seed=1e400 seed seed=
seed==1 = =1 zero.config=/dev/zero zero.config=/dev/stdin
"""
_LONG_WORDS = ("data.source=\n", "deepspeed=" + "[" * 100_000, "deepspeed={" + "a: {" * 3000, "x" * 100_000 + "=1")
_PLACES = """
train --out evil
train --out /dev/null
train --out /proc/here
train --out {long}
train --out {deep}
train --out ''
train --out run --data ''
eval --out evil
eval --out /dev/zero
eval --out {long}
eval --out ''
eval --out run --data /dev/zero
eval --out run --data {longer}
export --out evil --to to
export --out run --to evil
export --out run --to evil/to
export --out run --to /proc/to
export --out run --to ''
export --out run --to {long}
export --out run --to run
export --out run --to run/finetune/model
export --out run --to to --stage ../run/finetune
export --out run --to to --stage /dev/zero
cache info --out evil
cache info --out /dev/zero
cache verify --out run --sample {many}
study compare --out evil
study compare --out {long}
study compare --out run --seeds {many}
config show --config /dev/zero
config show --config evil
plan --devices {many}
plan --batch {many}
plan --memory 1e400
plan --model evil
plan --model /dev/zero
bench --out evil
bench --out /dev/zero
bench --out run --json nowhere/x.json
"""
CONFIGURATIONS: dict[str, tuple[tuple[str, ...], Write]] = {
    "YAML: aliases that multiply": _yaml(_BOMB + "deepspeed: {a: *a11}\n"),
    "YAML: aliases that multiply in deepspeed": _yaml(
        "deepspeed:\n" + "".join(f"  {line}\n" for line in _BOMB.splitlines())
    ),
    "YAML: an alias of itself": _yaml("deepspeed: &a\n  b: *a\n"),
    "YAML: a list of itself": _yaml("&a [*a]\n"),
    "YAML: deep flow lists": _yaml("deepspeed: " + "[" * 50_000),
    "YAML: deep flow maps": _yaml("deepspeed: " + "{a: " * 50_000),
    "YAML: deep blocks": _yaml(_DEEP),
    "YAML: an object of Python": _yaml("deepspeed: !!python/object/apply:os.system ['touch pickled']\n"),
    "YAML: keys of every kind": _yaml("1: 2\nnull: 3\n[a]: 4\n{b: c}: 5\n"),
    "YAML: a NUL in a path": _yaml('data:\n  source: "a\\0b"\n'),
    "YAML: a NUL in the model": _yaml('model: "a\\0b"\n'),
    "YAML: a NUL in out": _yaml('out: "a\\0b"\n'),
    "YAML: a lone surrogate": _yaml('data:\n  label_key: "\\ud800"\n'),
    "YAML: a list": _yaml("- a\n- b\n"),
    "YAML: two documents": _yaml("seed: 1\n---\nseed: 2\n"),
    "YAML: an unknown tag": _yaml("seed: !evil 1\n"),
    "YAML: a time": _yaml("seed: 2001-12-14t21:59:43.10-05:00\n"),
    "YAML: an impossible date": _yaml("seed: 2001-99-99\n"),
    "YAML: a number of 100,000 digits": _yaml("seed: " + "1" * 100_000 + "\n"),
    "YAML: empty": _yaml(""),
    "YAML: NULs": _yaml("\0" * 1000),
    "YAML: 100 MB": (("--config", "evil.yaml"), repeated("evil.yaml", b"# comment\n" * 100_000, 100)),
    **{
        f"YAML: {target}": (("--config", "evil.yaml"), special_file("evil.yaml", target))
        for target in SPECIAL
        if target not in ("x", "a socket")
    },
    **{f"key: {word[:60]}": ((word,), _none) for word in (*_KEY_WORDS.split(), *_LONG_WORDS)},
}
PLACES: dict[str, tuple[str, ...]] = {
    line: tuple(shlex.split(line.format(long="n" * 300, longer="n" * 5000, many="9" * 30, deep="a/" * 2500)))
    for line in _PLACES.strip().splitlines()
}
