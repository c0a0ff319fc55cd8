"""What Inductor makes of the compiled segments on an H100, without one: kernels, and the bytes that they move.

    python tests/models/compiled_code.py [SEGMENT ...] [--code FOLDER]

prints the figures of each segment at ViT-B/16, batch 64, in bfloat16, as JSON; `--code` writes the generated code too.
Segments are traced on the CPU with fake tensors (torch's autograd does not run on pretended GPUs), moved to `cuda`, and
lowered for a card that Inductor is told of. Matrix products and attention are calls of libraries, and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface, get_interface_for_device
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext, tracing
from torch._inductor import async_compile, graph, scheduler
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from sdfast.modalities.images.model import MAEDecoder, ViTEncoder, ViTShape
from sdfast.models.blocks import Block, PostNormBlock, TransformerShape, use_attention
from sdfast.ops import registry
from sdfast.ops.attention import Group, Groups, dispatch
from sdfast.ops.cpu_half import cpu_half
from sdfast.ops.linear import layer

BATCH, VISIBLE, PATCHES, TEXT_ROWS = 64, 49, 196, 64 * 128
ENCODER, DECODER = TransformerShape(768, 12, 12, 3072), TransformerShape(512, 8, 16, 2048)
SHAPE = ViTShape((224, 224), 16, 3, ENCODER, DECODER)
Graph = tuple[torch.fx.GraphModule, list[Any]]


def block(shape: TransformerShape) -> Block:
    return Block(shape, 1e-12, True)


def rows(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, requires_grad=True)


def pending(*size: int) -> Tensor:
    return rows(*size, dtype=torch.bfloat16)


def ids(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64)


BOTH = Groups((Group(BATCH, 1 + VISIBLE, 1 + VISIBLE), Group(BATCH, 1 + PATCHES, 1 + PATCHES)))
ALL = Groups((Group(BATCH, 1 + PATCHES, 1 + PATCHES),))
TOKENS, SEEN = (BATCH, 1 + PATCHES), BATCH * (2 + VISIBLE + PATCHES)
# A segment: its module, its method, and what it is given.
SEGMENTS: dict[str, Callable[[], tuple[nn.Module, str, list[Any]]]] = {
    "encoder block": lambda: (block(ENCODER), "carry", [rows(SEEN, 768), pending(SEEN, 768), BOTH]),
    "decoder block": lambda: (
        block(DECODER),
        "carry",
        [rows(BATCH * 197, 512), pending(BATCH * 197, 512), ALL],
    ),
    "encoder, first query": lambda: (block(ENCODER), "first_query", [rows(*TOKENS, 768), pending(*TOKENS, 768)]),
    "decoder, some queries": lambda: (
        block(DECODER),
        "some_queries",
        [rows(*TOKENS, 512), ids(BATCH, PATCHES - VISIBLE), pending(*TOKENS, 512)],
    ),
    "embedding": lambda: (ViTEncoder(SHAPE), "embed_both", [torch.empty(BATCH, 3, 224, 224), ids(BATCH, VISIBLE)]),
    "mask tokens": lambda: (MAEDecoder(SHAPE), "fill_in", [rows(BATCH, 1 + VISIBLE, 768), ids(BATCH, VISIBLE), None]),
    "pixels": lambda: (MAEDecoder(SHAPE), "predict", [rows(BATCH * (PATCHES - VISIBLE), 512)]),
    "text block": lambda: (
        PostNormBlock(ENCODER, 1e-12),
        "after_attention",
        [rows(TEXT_ROWS, 768, dtype=torch.bfloat16), rows(TEXT_ROWS, 768)],
    ),
}


def traced(module: nn.Module, method: str, given: list[Any]) -> dict[str, Graph]:
    """The graphs of a segment's forward and backward pass, on the CPU, with what they are given."""
    parameters = dict(module.named_parameters())
    graphs: dict[str, Graph] = {}

    class Segment(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *operands: Any) -> Any:
            return getattr(self.inner, method)(*operands)

    at = [number for number, operand in enumerate(given) if isinstance(operand, Tensor)]

    def function(*tensors: Tensor) -> Any:
        operands = list(given)
        for number, tensor in zip(at, tensors, strict=False):
            operands[number] = tensor
        values = {f"inner.{name}": value for name, value in zip(parameters, tensors[len(at) :], strict=True)}
        with torch.autocast("cpu", torch.bfloat16), cpu_half(False):
            return torch.func.functional_call(Segment(), values, tuple(operands))

    def keep(which: str) -> Callable[..., Any]:
        def compiler(module: torch.fx.GraphModule, example: list[Any]) -> torch.fx.GraphModule:
            graphs[which] = (module, example)
            return module

        return compiler

    inputs = [given[number] for number in at] + list(parameters.values())
    compiled = aot_function(
        function,
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    out = compiled(*inputs)
    outs = [out] if isinstance(out, Tensor) else list(out)
    wanted = [each for each in inputs if each.requires_grad]
    torch.autograd.grad(outs, wanted, [torch.empty_like(each) for each in outs], allow_unused=True)
    return graphs


def pretend_h100() -> None:
    """Have Inductor and Triton believe in an H100, for the rest of the process; nothing is run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = types.SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=85 << 30,
        warp_size=32,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
        L2_cache_size=50 << 20,
        gcnArchName="",
        uuid="0",
    )
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "get_device_name": properties.name,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "synchronize": None,
        "_lazy_init": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("_cuda_exchangeDevice", "_cuda_maybeExchangeDevice", "_cuda_getDevice", "_cuda_setDevice"):
        setattr(torch._C, name, lambda *_: 0)
    torch._subclasses.fake_tensor.init_gpu_context = lambda *_: None
    get_interface_for_device("cuda")
    answers |= {"get_compute_capability": 90, "raise_if_triton_unavailable": None, "is_triton_capable": True}
    answers["get_raw_stream"] = 0
    for interface in (CudaInterface, CudaInterface.Worker):
        for name, answer in answers.items():
            setattr(interface, name, staticmethod(lambda *_, answer=answer, **__: answer))
    driver._active = types.SimpleNamespace(  # type: ignore[attr-defined]
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
        get_current_stream=lambda *_: 0,
        is_active=lambda: True,
    )
    torch.utils._triton.has_triton.cache_clear()
    torch._inductor.config.compile_threads = 1
    torch._inductor.config.fx_graph_cache = False
    async_compile.AsyncCompile.triton = lambda *_, **__: types.SimpleNamespace(run=None)
    async_compile.AsyncCompile.wait = lambda *_: None


def lowered(made: Graph, backward: bool) -> tuple[list[tuple[str, int]], str]:
    """The kernels that Inductor generates for a graph on `cuda`, with the bytes each reads and writes; and the code."""
    module, example = made
    kernels: list[tuple[str, int]] = []
    codes: list[str] = []

    def generate(self: scheduler.Scheduler) -> Any:
        calls = scheduler.ExternKernelSchedulerNode, scheduler.NopKernelSchedulerNode
        operators = [str(getattr(node.node, "op_overload", "")) for node in self.nodes]
        ours = [
            node
            for node, operator in zip(self.nodes, operators, strict=True)
            if not isinstance(node, calls) or operator.startswith("sdfast.")
        ]
        kernels.extend((node.get_name(), node.get_read_write_buffers_sizes()) for node in ours)
        return original(self)

    original, save = scheduler.Scheduler.codegen, graph.GraphLowering.save_output_code
    scheduler.Scheduler.codegen = generate
    graph.GraphLowering.save_output_code = staticmethod(codes.append)
    mode = FakeTensorMode()
    with mode:
        there = [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda:0")
            if isinstance(each, Tensor)
            else each
            for each in example
        ]
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda:0")}
        for key in ("val", "tensor_meta", "example_value"):
            node.meta.pop(key, None)
    module.recompile()
    FakeTensorProp(module, mode).propagate(*there)
    try:
        with tracing(TracingContext(mode)), mode:
            compile_fx_inner(module, there, is_backward=backward, graph_id=0)
    finally:
        scheduler.Scheduler.codegen = original
        graph.GraphLowering.save_output_code = save
    return kernels, codes[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segments", nargs="*", metavar="SEGMENT", help=f"of {', '.join(SEGMENTS)}; all by default")
    parser.add_argument("--code", type=Path, metavar="FOLDER", help="write the generated code here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    layer._is_mixed = lambda x, weight: weight.requires_grad  # what a GPU would take, while tracing on a CPU
    layer.why_not = lambda op, backend, _: registry.why_not(op, backend, "cuda")
    dispatch.choose_backend = lambda *_: "varlen"
    Groups._once = lambda self, name, make: make()  # as within the compiler
    graphs = {}
    for name in options.segments or SEGMENTS:
        with FakeTensorMode():
            module, method, given = SEGMENTS[name]()
            use_attention(module, "varlen")
            graphs[name] = traced(module, method, given)
    pretend_h100()
    figures: dict[str, dict[str, Any]] = {}
    for name, passes in graphs.items():
        figures[name] = {}
        for which, made in passes.items():
            kernels, code = lowered(made, which == "backward")
            figures[name][which] = {"kernels": len(kernels), "MB": round(sum(size for _, size in kernels) / 1e6, 1)}
            if options.code is not None:
                options.code.mkdir(parents=True, exist_ok=True)
                (options.code / f"{name.replace(', ', '_').replace(' ', '_')}_{which}.py").write_text(code)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
