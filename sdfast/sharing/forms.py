"""The two forms of a graph in a file: ONNX for onnxruntime, and the program of torch.export."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from sdfast.errors import RunError, UserError
from sdfast.models.portable import Portable, Tensors

KEY = "sdfast"  # of what a file says of itself, JSON
_OPSET = 18  # what onnxruntime 1.14 and later run


class Form(ABC):
    """A form of file.

    Attributes:
        name: in sentences.
        needs: packages beside torch.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise a UserError where a package is missing that the form needs."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f'{self.name} needs {" and ".join(missing)}: pip install "sdfast[onnx]".')

    @abstractmethod
    def prepare(self, program: Any, model: Portable) -> Callable[[Path, str], None]:
        """What writes a traced program, with what it says of itself, to a path."""

    @abstractmethod
    def open(self, path: Path, model: Portable) -> Callable[[Tensors], Sequence[Tensor]]:
        """What computes the outputs from inputs, as another program would with the file."""


class Onnx(Form):
    """A graph of ONNX operators; weights of more than 1.5 GB lie in a file beside it."""

    name, needs = "ONNX", ("onnx", "onnxscript", "onnxruntime")

    @override
    def prepare(self, program: Any, model: Portable) -> Callable[[Path, str], None]:
        names: Any = {name: dict(axes) for name, axes in model.axes.items()}
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_OPSET,
                verbose=False,
                dynamic_shapes=names,
                input_names=list(model.axes),
                output_names=list(model.outputs),
            )
        assert made is not None

        def write(path: Path, about: str) -> None:
            made.model.metadata_props[KEY] = about
            made.save(path)

        return write

    @override
    def open(self, path: Path, model: Portable) -> Callable[[Tensors], Sequence[Tensor]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(inputs: Tensors) -> list[Tensor]:
            given = {name: tensor.numpy() for name, tensor in zip(model.axes, inputs, strict=True)}
            return [torch.from_numpy(each) for each in session.run(list(model.outputs), given)]

        return run


class Program(Form):
    """A program of torch.export, which torch loads without sdfast."""

    name = "torch.export"

    @override
    def prepare(self, program: Any, model: Portable) -> Callable[[Path, str], None]:
        return lambda path, about: torch.export.save(program, path, extra_files={KEY: about})

    @override
    def open(self, path: Path, model: Portable) -> Callable[[Tensors], Sequence[Tensor]]:
        module = torch.export.load(path).module()
        return lambda inputs: module(*inputs)


FORMS: dict[str, Form] = {"onnx": Onnx(), "torch.export": Program()}


def traced(model: Portable, example: Tensors) -> Any:
    """The program of a model, whose sizes may differ from the example's where `Portable.axes` says so.

    Raises:
        RunError: torch cannot trace it; with the first of what it says.
    """
    sizes = {"batch": torch.export.Dim("batch", min=1)}
    if model.longest is not None:
        sizes["length"] = torch.export.Dim("length", min=1, max=model.longest)
    shapes = {name: {at: sizes[axis] for at, axis in axes.items()} for name, axes in model.axes.items()}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model.module, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds
        raise RunError(f"torch.export cannot take this model: {first_line(error)}.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks of exporters on their own insides."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def first_line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def said_of(path: Path) -> dict[str, Any]:
    """What a file that was written here says of itself."""
    if path.suffix == ".onnx":
        import onnx

        found = {each.key: each.value for each in onnx.load(path, load_external_data=False).metadata_props}
    else:
        found = {KEY: ""}
        torch.export.load(path, extra_files=found)
    about: dict[str, Any] = json.loads(found[KEY])
    return about
