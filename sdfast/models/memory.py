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
    """

    kept: int
    work: int
    weights: tuple[str, int] = ("none", 0)
    held: int = 0


def step_memory(
    step: StepSpec,
    batch: int,
    *,
    bf16: bool = False,
    dropout: bool = False,
    bank: int = 0,
    accumulate: int = 1,
    cuda: bool = False,
) -> StepMemory:
    """Predict the memory of one training step after the first.

    Args:
        step: what is computed for an image.
        batch: images per optimiser step.
        bf16: autocast to bfloat16; parameters, residuals and norms stay float32.
        dropout: of `finetune`, whether there is any.
        bank: bytes of a teacher bank in the device's memory.
        accumulate: micro-batches of an optimiser step.
        cuda: whether on a GPU; the attention counted there is `sdpa`, and float32 on a CPU is the compiled core's.
    """
    shape = step.shape
    layers = _Layers(step, -(-batch // accumulate), bf16, cuda, dropout)
    image = shape.channels * shape.image_size[0] * shape.image_size[1]
    trained, parameters = _FLOAT * trained_parameters(step), _FLOAT * _all_parameters(step)
    inputs = batch * image + bank
    standing = parameters + 2 * trained + inputs
    gradients: dict[str, int] = {} if accumulate == 1 else {"all": trained}
    pixels = _FLOAT * layers.images * image
    held = (2 if step.stage == "finetune" else 1) * pixels  # flipped ones are another tensor
    moments, kept = [3 * pixels], 0  # while they are normalised
    walk = layers.of_the_step()
    for layer in walk:
        kept, held = kept + layer.kept, held + layer.held
    moments.append(kept + held + layers.teacher())
    whole = kept
    moments = [moment + sum(gradients.values()) for moment in moments]
    for layer in reversed(walk):
        name, size = layer.weights
        added = size if name in gradients or accumulate > 1 else 0  # made beside what it is added to
        if accumulate == 1:
            gradients[name] = max(size, gradients.get(name, 0))
        moments.append(kept + layer.work + sum(gradients.values()) + added)
        kept -= layer.kept
    return StepMemory(parameters, 2 * trained, inputs, whole, standing + max(*moments, trained))


@dataclass(frozen=True)
class _Layers:
    """The layers of a step: one method for each kind."""

    step: StepSpec
    images: int
    bf16: bool
    cuda: bool
    dropout: bool

    @property
    def product(self) -> int:
        """Bytes of a number that enters or leaves a matrix product."""
        return 2 if self.bf16 else _FLOAT

    @property
    def compiled(self) -> bool:
        """Whether attention is the compiled core's: all sequences at once, and where each lies is kept."""
        return not self.bf16 and not self.cuda

    def copies(self, weights: int, again: bool = False) -> int:
        """Autocast keeps weights in bfloat16 for the backward pass, once for all passes."""
        return 2 * weights if self.bf16 and not again else 0

    def mask(self, rows: int, width: int, number: int) -> int:
        """Of dropout; a byte an element on a GPU, a number elsewhere."""
        return rows * width * (1 if self.cuda else number) if self.dropout else 0

    def of_the_step(self) -> list[_Layer]:
        """In the order of the forward pass."""
        step = self.step
        masked = 1 + step.visible if step.masked_view else 0
        clean = step.all_tokens if step.clean_view else 0
        if masked and clean and step.packed:
            layers = [self.embedding(step.shape.patches), self.gather(), *self.encoder(masked, clean)]
        else:
            layers = [self.embedding(step.shape.patches)] if clean else []
            layers += [self.embedding(step.visible), *self.encoder(masked, 0)] if masked else []
            layers += self.encoder(0, clean, again=bool(masked)) if clean else []
        layers += self.decoder() if masked else []
        return [*layers, *self.head()]

    def teacher(self) -> int:
        """Working space of a live teacher: the residual, a norm's result and the MLP's, before and after GELU."""
        if not self.step.live_teacher:
            return 0
        encoder = self.step.shape.encoder
        rows = self.images * self.step.all_tokens
        return 2 * rows * (_FLOAT * encoder.width + self.product * encoder.mlp_width)

    def embedding(self, patches: int) -> _Layer:
        """Of so many patches an image; keeps their pixels."""
        width, rows = self.step.shape.encoder.width, self.images * patches
        kept = self.product * rows * self.step.shape.patch_values + self.mask(rows + self.images, width, _FLOAT)
        gradients = _FLOAT * _embedding_parameters(self.step)
        return _Layer(kept, 2 * _FLOAT * rows * width, ("embedding", gradients))

    def gather(self) -> _Layer:
        """The masked view's tokens from the clean one's, which are kept, and which they are."""
        tokens = _FLOAT * self.images * self.step.all_tokens * self.step.shape.encoder.width
        return _Layer(tokens + _INT64 * self.images * (1 + self.step.visible), 2 * tokens)

    def encoder(self, masked: int, clean: int, again: bool = False) -> list[_Layer]:
        """Blocks and norm over the views' tokens together.

        Args:
            masked, clean: tokens of an image in each view; 0 for a view that is not there.
            again: whether the step has used these weights before. Autocast has its copies of them already, and adds up
                their gradients in bfloat16 until the first use has given its own.
        """
        step, shape = self.step, self.step.shape.encoder
        last = shape.depth if step.layer is None else step.layer  # block of the clean view
        asked = step.clean_queries if clean else 0
        layers: list[_Layer] = []
        inside = masked + clean  # tokens in the matrix that a block is given
        for number in range(1, shape.depth + 1):
            name, ending = f"encoder {number}", clean > 0 and number == last
            if ending and asked == 1:
                layers += self.first_query(name, shape, clean, 0 if masked else inside, again)
                clean = 0
            if masked + clean:
                new = number in (1, last, last + 1, shape.depth)  # other sequences than in the block before
                layers += self.block(name, shape, [n for n in (masked, clean) if n], inside, new, again)
                inside = masked + clean
            if ending:
                clean = 0
            if not masked + clean:
                break
        normed = masked + (asked if step.layer is None else 0)
        held = _FLOAT * self.images * asked * shape.width
        return [*layers, self.norm("norm", shape.width, normed, held)] if normed else layers

    def block(
        self, name: str, shape: TransformerShape, views: list[int], inside: int, new: bool, again: bool = False
    ) -> list[_Layer]:
        """A block over all tokens of some views, given as rows of a matrix that may hold others besides.

        Args:
            name: of its weights.
            shape: of the stack.
            views: tokens of an image in each.
            inside: tokens of an image in that matrix.
            new: whether the sequences are other ones than in the block before.
            again: see `encoder`.
        """
        width, product, rows = shape.width, self.product, self.images * sum(views)
        kept = _FLOAT * self.images * inside * width + 2 * _FLOAT * rows  # the norm's input and statistics
        kept += rows * (5 * product * width + _FLOAT * shape.heads)  # its result, q, k, v, what comes out, the softmax
        if self.compiled:
            kept += 4 * _INT64 * self.images * len(views) * new
        elif len(views) > 1:
            kept += rows * product * width  # the views' results side by side
        kept += self.copies(4 * width * width, again) + self.mask(rows, width, product)
        work = rows * (_FLOAT + 4 * product) * width
        size = _attention_parameters(shape, self.step.shape.qkv_bias)
        attention = _Layer(kept, work, self.weights(f"{name} attention", size, again))
        return [attention, *self.mlp(name, shape, rows, again)]

    def mlp(self, name: str, shape: TransformerShape, rows: int, again: bool = False) -> list[_Layer]:
        """The second half of a block; GELU keeps its input, or its slope, which is as large."""
        width, hidden = shape.width, rows * self.product * shape.mlp_width
        copies = self.copies(width * shape.mlp_width, again)
        kept = rows * (_FLOAT * (width + 2) + self.product * width) + hidden + copies
        work = 2 * _FLOAT * rows * width + hidden
        size = width * shape.mlp_width
        return [
            _Layer(kept, work, self.weights(f"{name} MLP in", size + shape.mlp_width + 2 * width, again)),
            _Layer(
                hidden + copies + self.mask(rows, width, self.product),
                work,
                self.weights(f"{name} MLP out", size + width, again),
            ),
        ]

    def first_query(self, name: str, shape: TransformerShape, tokens: int, inside: int, again: bool) -> list[_Layer]:
        """A block with a query for the first of so many tokens; see `block` for the other arguments."""
        width, product, images = shape.width, self.product, self.images
        rows, matrix = images * tokens, width * width
        kept = _FLOAT * images * inside * width + 2 * _FLOAT * rows
        kept += _FLOAT * rows * width  # the norm's result; autocast makes two copies of it instead
        kept += images * product * (2 * width + shape.heads * (2 * width + tokens))  # query, sums, softmax, result
        if self.bf16:
            kept += images * product * width + self.copies(3 * matrix) + self.copies(matrix, again or not inside)
        kept += self.mask(images, width, product)
        work = 3 * _FLOAT * max(rows * width, matrix)  # of the tokens, then of the query's, key's and value's weights
        size = _attention_parameters(shape, self.step.shape.qkv_bias)
        attention = _Layer(kept, work, self.weights(f"{name} attention", size, again))
        return [attention, *self.mlp(name, shape, images, again or not inside)]

    def some_queries(self, name: str, shape: TransformerShape, tokens: int, queries: int) -> list[_Layer]:
        """A block with queries for some of an image's tokens."""
        width, product, images = shape.width, self.product, self.images
        rows, asking, matrix = images * tokens, images * queries, width * width
        kept = rows * (_FLOAT * (width + 2) + 3 * product * width)  # the norm's input and result, keys and values
        kept += asking * (3 * product * width + _FLOAT * shape.heads + _INT64)  # what asks, queries, result, which
        if self.compiled:
            kept += 4 * _INT64 * images
        else:
            kept += self.bf16 * _FLOAT * rows * width + self.copies(4 * matrix)  # what asks is gathered in float32
        work = rows * (2 * _FLOAT + 2 * product) * width + 6 * _FLOAT * matrix
        size = _attention_parameters(shape, self.step.shape.qkv_bias)
        attention = _Layer(kept, work, self.weights(f"{name} attention", size))
        return [attention, *self.mlp(name, shape, asking)]

    def norm(self, name: str, width: int, tokens: int, held: int = 0) -> _Layer:
        """Keeps its input and two numbers a token."""
        rows = self.images * tokens
        return _Layer(_FLOAT * rows * (width + 2), _FLOAT * rows * width, self.weights(name, 2 * width), held)

    def decoder(self) -> list[_Layer]:
        """Everything from the encoder's result to the predicted pixels, and their gradient, which the loss keeps."""
        step, shape, images, product = self.step, self.step.shape.decoder, self.images, self.product
        assert shape is not None
        width, seen, tokens, pixels = shape.width, images * (1 + step.visible), step.all_tokens, step.shape.patch_values
        into = step.shape.encoder.width * width
        kept = product * seen * step.shape.encoder.width + self.copies(into) + _INT64 * images * step.shape.patches
        layers = [_Layer(kept, 2 * _FLOAT * images * tokens * width, self.weights("decoder in", into + 2 * width))]
        for number in range(1, shape.depth + 1):
            name = f"decoder {number}"
            if number == shape.depth and step.masked_tail:
                layers += self.some_queries(name, shape, tokens, step.predicted)
            else:
                layers += self.block(name, shape, [tokens], tokens, number == 1)
        layers.append(self.norm("decoder norm", width, step.predicted))
        rows = images * step.predicted
        prediction = product * rows * pixels
        kept = product * rows * width + self.copies(width * pixels)
        kept += product * images * (step.masked if step.masked_tail else step.shape.patches) * pixels
        work = prediction + 2 * _FLOAT * rows * width
        layers.append(_Layer(kept, work, self.weights("pixel head", (width + 1) * pixels), held=prediction))
        return layers

    def head(self) -> list[_Layer]:
        """The classifier and its loss, or the gradient of the matched tokens, which the loss keeps."""
        step, width, images = self.step, self.step.shape.encoder.width, self.images
        if step.stage == "finetune":
            entering = self.product * (1 if self.bf16 else step.clean_queries) * width
            kept = images * (entering + _FLOAT * step.classes + _INT64) + self.copies(width * step.classes)
            work = _FLOAT * images * step.clean_queries * width
            return [_Layer(kept, work, self.weights("classifier", (width + 1) * step.classes))]
        if not step.clean_view:
            return []
        matched = {"cls": 1, "patch": step.shape.patches, "all": step.all_tokens}[step.tokens]
        return [_Layer(_FLOAT * images * matched * width, 0)]

    def weights(self, name: str, numbers: int, again: bool = False) -> tuple[str, int]:
        """`_Layer.weights`."""
        return name, (2 if again and self.bf16 else _FLOAT) * numbers


def trained_parameters(step: StepSpec) -> int:
    """Numbers that the step trains."""
    shape = step.shape
    count = encoder_parameters(shape)
    if step.stage == "finetune":
        return count + (shape.encoder.width + 1) * step.classes
    count -= shape.encoder.width * (1 + shape.patches)  # positions are fixed
    if step.masked_view:
        assert shape.decoder is not None
        return count + _decoder_parameters(shape) - shape.decoder.width * (1 + shape.patches)
    if step.layer is not None:  # nothing after the matched layer
        unused = (shape.encoder.depth - step.layer) * _block_parameters(shape.encoder, shape.qkv_bias)
        count -= unused + 2 * shape.encoder.width
    return count


def encoder_parameters(shape: ViTShape) -> int:
    """Numbers in an encoder, positions included."""
    encoder = shape.encoder
    around = encoder.width * (shape.patch_values + 1 + 1 + 1 + shape.patches + 2)  # patches, CLS, positions, norm
    return around + encoder.depth * _block_parameters(encoder, shape.qkv_bias)


def _all_parameters(step: StepSpec) -> int:
    """Numbers of the model, trained or not, and of a live teacher."""
    encoder = encoder_parameters(step.shape)
    if step.stage == "finetune":
        return encoder + (step.shape.encoder.width + 1) * step.classes
    return encoder * (2 if step.live_teacher else 1) + _decoder_parameters(step.shape)


def _decoder_parameters(shape: ViTShape) -> int:
    decoder = shape.decoder
    assert decoder is not None
    inside = decoder.depth * _block_parameters(decoder, shape.qkv_bias)
    into = decoder.width * (shape.encoder.width + 1 + 1 + 1 + shape.patches + 2)  # mask token, positions, norm
    return into + inside + (decoder.width + 1) * shape.patch_values


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
