"""How much memory a training step needs: peak bytes of one step, predicted layer by layer from sizes alone.

Counted are the tensors that torch's allocator holds at the worst moment: parameters, AdamW's two moments, the gradients
made so far, the batch, what the layers keep for the backward pass, and the working space of the layer at work. Not
counted: what the process holds besides (Python, libraries, cuBLAS) and what an allocator keeps in reserve. A step that
is compiled keeps less than is predicted here.

The walk is that of the step: forward through the layers, each leaving behind what it keeps (`_Layer.kept`); backward
from the last to the first, each giving its own back and leaving gradients, with `_Layer.work` on top while it computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdfast.models.flops import StepSpec
from sdfast.models.vit import TransformerShape, ViTShape

_FLOAT, _INT64 = 4, 8  # bytes


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step.

    Attributes:
        parameters: of the model, and of a live teacher.
        optimizer: AdamW's moments.
        inputs: the uint8 images of the batch, and a bank in the device's memory.
        kept: what the layers keep for the backward pass, when the forward pass ends.
        peak: all of it at the worst moment, gradients and working space included.
    """

    parameters: int
    optimizer: int
    inputs: int
    kept: int
    peak: int


@dataclass(frozen=True)
class _Layer:
    """One layer's share of the memory, in bytes.

    Attributes:
        kept: for the backward pass.
        work: besides, while its backward pass computes.
        weights: name (the same where two passes share them) and size of the gradients that it gives.
        held: besides, from its forward pass to the end of the loss (a result in a variable).
        before: besides, just before its forward pass (a teacher's turn).
    """

    kept: int
    work: int
    weights: tuple[str, int]
    held: int = 0
    before: int = 0


def step_memory(
    step: StepSpec,
    batch: int,
    *,
    bf16: bool = False,
    dropout: bool = False,
    bank: int = 0,
    accumulate: int = 1,
    cuda: bool = False,
    threads: int = 1,
) -> StepMemory:
    """Predict the memory of one training step after the first.

    Args:
        step: what is computed for an image.
        batch: images per optimiser step.
        bf16: autocast to bfloat16; parameters, residuals and norms stay float32.
        dropout: of `finetune`, whether there is any.
        bank: bytes of a teacher bank in the device's memory.
        accumulate: micro-batches of an optimiser step.
        cuda: a dropout mask has one byte an element there, a float's elsewhere.
        threads: of a CPU, each of which has its own sum of the patch embedding's gradient.
    """
    shape = step.shape
    images = -(-batch // accumulate)
    sizes = _Sizes(images, 2 if bf16 else _FLOAT, bf16, cuda, min(threads, images))
    layers = _layers(step, sizes, dropout)
    image = shape.channels * shape.image_size[0] * shape.image_size[1]
    pixels = images * image
    trained = _FLOAT * trained_parameters(step)
    fixed = _FLOAT * _positions(step) if step.stage != "finetune" else 0
    if step.live_teacher:
        fixed += _FLOAT * encoder_parameters(shape)
    if step.stage == "distill" and not step.mae:
        fixed += _FLOAT * _decoder_parameters(shape)
    inputs = batch * image + bank
    standing = trained + fixed + 2 * trained + inputs
    gradients: dict[str, int] = {} if accumulate == 1 else {"all": trained}
    before = sum(gradients.values())

    normalising = 3 * _FLOAT * pixels
    # Normalised pixels are among what the layers keep, unless autocast keeps copies; flipped ones are another tensor.
    held = _FLOAT * pixels * (bf16 + (step.stage == "finetune"))
    kept, moments = 0, [normalising]
    for layer in layers:
        moments.append(kept + held + layer.before)
        kept, held = kept + layer.kept, held + layer.held
    whole = kept
    moments.append(kept + held)
    moments = [moment + before for moment in moments]
    for layer in reversed(layers):
        name, size = layer.weights
        if accumulate == 1:
            gradients[name] = max(size, gradients.get(name, 0))
        moments.append(kept + layer.work + sum(gradients.values()))
        kept -= layer.kept
    return StepMemory(trained + fixed, 2 * trained, inputs, whole, standing + max(*moments, trained))


@dataclass(frozen=True)
class _View:
    """Tokens of one view of an image, and how many of them the last block has queries for."""

    tokens: int
    queries: int
    clean: bool = False


@dataclass(frozen=True)
class _Sizes:
    """Images at a time, bytes of an activation that enters or leaves a matrix product, threads that have one."""

    images: int
    product: int
    bf16: bool
    cuda: bool
    threads: int

    def copies(self, weights: int) -> int:
        """Autocast keeps weights in bfloat16 for the backward pass."""
        return 2 * weights if self.bf16 else 0


def _layers(step: StepSpec, sizes: _Sizes, dropout: bool) -> list[_Layer]:
    """The step's layers in the order of the forward pass."""
    masked = [_View(1 + step.visible, 1 + step.visible)] if step.masked_view else []
    clean = [_View(step.all_tokens, step.clean_queries, clean=True)] if step.clean_view else []
    decoder = _decoder(step, sizes) if step.masked_view else []
    if step.packed or not masked or not clean:
        return _encoder(step, sizes, masked + clean, dropout) + decoder
    return _encoder(step, sizes, masked, dropout) + decoder + _encoder(step, sizes, clean, dropout, again=True)


def _encoder(step: StepSpec, sizes: _Sizes, views: list[_View], dropout: bool, again: bool = False) -> list[_Layer]:
    """Patch embedding, blocks and norm of one pass, and what the clean view's tokens are used for.

    Args:
        views: whose rows are one tensor.
        again: whether the step has used these weights before. Autocast then has its copies of them already, and adds up
            their gradients in bfloat16 until the first use has given its own.
        step, sizes, dropout: see `_layers`.
    """
    shape, images, width = step.shape, sizes.images, step.shape.encoder.width
    sees_all = any(view.clean for view in views)
    embedded = images * (shape.patches if sees_all or not step.packed else step.visible)
    matrix = width * shape.patch_values
    kept = 0 if again and not sizes.bf16 else sizes.product * embedded * shape.patch_values  # the pixels
    kept += 0 if again else sizes.copies(matrix)
    work, before, more, held = _FLOAT * embedded * width, 0, 0, 0
    if not sizes.bf16 and not sizes.cuda:
        work += 4 * _FLOAT * matrix * sizes.threads  # measured: oneDNN's sums, padded in the channels
    for view in views:
        if not view.clean:
            kept += _INT64 * images * shape.patches  # which patches are visible
            if embedded == images * shape.patches:
                kept += _FLOAT * embedded * width  # the tokens that they are gathered from
            continue
        rows, out = images * view.tokens, _FLOAT * images * view.queries * width
        if dropout:
            kept += rows * width * (1 if sizes.cuda else _FLOAT)
        if step.live_teacher:
            before = 2 * rows * (_FLOAT * width + sizes.product * shape.encoder.mlp_width)
        held = out
        matched = {"cls": 1, "patch": shape.patches, "all": step.all_tokens}[step.tokens]
        more = _FLOAT * images * width * matched  # the loss keeps its gradient
        if step.stage == "finetune":
            more = sizes.product * images * width if sizes.bf16 else out  # the classifier's input, or what it is of
            more += _FLOAT * images * step.classes + sizes.copies(width * step.classes)
    gradient = 2 if again and sizes.bf16 else _FLOAT
    layers = [_Layer(kept, work, ("embedding", gradient * _embedding_parameters(step)), before=before)]
    layers += _blocks("encoder", shape.encoder, views, step, sizes, dropout, again)
    outputs = images * sum(view.queries for view in views)
    layers.append(_norm("norm", width, outputs, sizes, more=more, held=held))
    return layers


def _decoder(step: StepSpec, sizes: _Sizes) -> list[_Layer]:
    shape, images = step.shape, sizes.images
    decoder, width = shape.decoder, shape.encoder.width
    assert decoder is not None
    seen, rows, predicted = images * (1 + step.visible), images * step.all_tokens, images * step.predicted
    entering = sizes.product * seen * width + sizes.copies(width * decoder.width)
    weights = (width + 2) * decoder.width * _FLOAT  # bias and mask token
    layers = [_Layer(entering, 2 * _FLOAT * rows * decoder.width, ("decoder in", weights))]
    layers += _blocks("decoder", decoder, [_View(step.all_tokens, step.predicted)], step, sizes)
    layers.append(_norm("decoder norm", decoder.width, predicted, sizes))
    kept = sizes.product * predicted * decoder.width + sizes.copies(decoder.width * shape.patch_values)
    kept += sizes.product * images * (step.masked if step.masked_tail else shape.patches) * shape.patch_values
    prediction = sizes.product * predicted * shape.patch_values
    weights = (decoder.width + 1) * shape.patch_values * _FLOAT
    work = prediction + 2 * _FLOAT * predicted * decoder.width
    layers.append(_Layer(kept, work, ("pixel head", weights), held=prediction))
    return layers


def _norm(name: str, width: int, rows: int, sizes: _Sizes, more: int = 0, held: int = 0) -> _Layer:
    """A LayerNorm keeps its input and two float32 statistics a row."""
    return _Layer(_FLOAT * rows * (width + 2) + more, _FLOAT * rows * width, (name, 2 * width * _FLOAT), held)


def _blocks(
    name: str,
    shape: TransformerShape,
    views: list[_View],
    step: StepSpec,
    sizes: _Sizes,
    dropout: bool = False,
    again: bool = False,
) -> list[_Layer]:
    """A stack of blocks over the rows of some views."""
    gradient = 2 if again and sizes.bf16 else _FLOAT
    width, mlp_width, product, images = shape.width, shape.mlp_width, sizes.product, sizes.images
    weights = {
        "attention": _attention_parameters(shape, step.shape.qkv_bias),
        "MLP in": width * mlp_width + mlp_width + 2 * width,
        "MLP out": width * mlp_width + width,
    }
    layers = []
    for number in range(shape.depth):
        work = [0, 0, 0]
        kept = [0 if again else sizes.copies(matrix) for matrix in (4 * width * width, *(width * mlp_width,) * 2)]
        for view in views:
            rows, query_rows = images * view.tokens, images * view.tokens
            if number == shape.depth - 1:
                query_rows = images * view.queries
            normed = _FLOAT * (width + 2) + product * width  # a norm's input, its statistics, what it hands on
            masks = width * (1 if sizes.cuda else product) if dropout else 0
            kept[0] += rows * (normed + 2 * product * width)  # and keys and values
            kept[0] += query_rows * (2 * product * width + _FLOAT * shape.heads + masks)  # queries, result, softmax
            if len(views) > 1:  # the results of their attention are put side by side
                kept[0] += query_rows * product * width
            kept[1] += query_rows * (normed + product * mlp_width)  # before GELU
            kept[2] += query_rows * (product * mlp_width + masks)  # after it
            work[0] += 2 * rows * (_FLOAT + product) * width
            work[1] += query_rows * (2 * _FLOAT * width + product * mlp_width)
            work[2] += query_rows * (2 * _FLOAT * width + product * mlp_width)
        for part, (of, size) in enumerate(weights.items()):
            layers.append(_Layer(kept[part], work[part], (f"{name} {number} {of}", gradient * size)))
    return layers


def trained_parameters(step: StepSpec) -> int:
    """Numbers that the step trains."""
    shape = step.shape
    count = encoder_parameters(shape)
    if step.stage == "finetune":
        return count + (shape.encoder.width + 1) * step.classes
    count -= shape.encoder.width * (1 + shape.patches)  # positions are fixed
    if step.masked_view:
        assert shape.decoder is not None
        count += _decoder_parameters(shape) - shape.decoder.width * (1 + shape.patches)
    return count


def encoder_parameters(shape: ViTShape) -> int:
    """Numbers in an encoder, positions included."""
    encoder = shape.encoder
    around = encoder.width * (shape.patch_values + 1 + 1 + 1 + shape.patches + 2)  # patches, CLS, positions, norm
    return around + encoder.depth * _block_parameters(encoder, shape.qkv_bias)


def _decoder_parameters(shape: ViTShape) -> int:
    decoder = shape.decoder
    assert decoder is not None
    inside = decoder.depth * _block_parameters(decoder, shape.qkv_bias)
    into = decoder.width * (shape.encoder.width + 1 + 1 + 1 + shape.patches + 2)  # mask token, positions, norm
    return into + inside + (decoder.width + 1) * shape.patch_values


def _positions(step: StepSpec) -> int:
    shape = step.shape
    decoder = shape.decoder.width if shape.decoder is not None and step.masked_view else 0
    return (1 + shape.patches) * (shape.encoder.width + decoder)


def _block_parameters(shape: TransformerShape, qkv_bias: bool) -> int:
    mlp = 2 * shape.width * shape.mlp_width + shape.mlp_width + 3 * shape.width  # and the norm before it
    return _attention_parameters(shape, qkv_bias) + mlp


def _attention_parameters(shape: TransformerShape, qkv_bias: bool) -> int:
    return shape.width * (4 * shape.width + 1 + (3 if qkv_bias else 0) + 2)  # and the norm before it


def _embedding_parameters(step: StepSpec) -> int:
    """Numbers of the patch embedding, the CLS token and, where they are trained, the positions."""
    shape = step.shape
    rows = shape.patch_values + 2 + (1 + shape.patches if step.stage == "finetune" else 0)
    return shape.encoder.width * rows
