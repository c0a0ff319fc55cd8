"""What the layers of a training step keep for its backward pass, and need while they compute, in bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sdfast.models.flops import StepSpec
from sdfast.models.parameters import attention_parameters, embedding_parameters
from sdfast.models.vit import TransformerShape

FLOAT, INT64 = 4, 8  # bytes


@dataclass(frozen=True)
class Layer:
    """One layer's share of the memory, in bytes.

    Attributes:
        kept: for the backward pass.
        work: besides, while its backward pass computes.
        weights: name (the same where two passes share them) and size of the gradients that it gives.
        held: besides, from its forward pass to the end of the loss (a result in a variable).
        late: what of `kept` a checkpointed block does not keep, but make again when its backward pass begins.
        remakes: `late` of all the block's layers, in its last one.
    """

    kept: int
    work: int
    weights: tuple[str, int] = ("none", 0)
    held: int = 0
    late: int = 0
    remakes: int = 0


@dataclass(frozen=True)
class StepLayers:
    """The layers of a step, and how it keeps its numbers.

    Attributes:
        bf16: autocast to bfloat16.
        cuda: whether on a GPU.
        dropout: whether there is any.
        checkpointing: blocks keep only their input.
    """

    bf16: bool
    cuda: bool
    dropout: bool
    checkpointing: bool

    @property
    def product(self) -> int:
        """Bytes of a number that enters or leaves a matrix product."""
        return 2 if self.bf16 else FLOAT

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

    def weights(self, name: str, numbers: int, again: bool = False) -> tuple[str, int]:
        """`Layer.weights`; of weights that the step has used before, see `Layers.encoder`."""
        return name, (2 if again and self.bf16 else FLOAT) * numbers

    def given(self) -> tuple[int, int]:
        """Of the batch: held to the end of the loss, and needed while it is made."""
        raise NotImplementedError

    def of_the_step(self) -> list[Layer]:
        """In the order of the forward pass."""
        raise NotImplementedError

    def teacher(self) -> int:
        """Working space of a teacher that runs beside the student."""
        raise NotImplementedError


@dataclass(frozen=True)
class Layers(StepLayers):
    """The layers of a step on images: one method for each kind.

    Attributes:
        step: what is computed for an image.
        images: in a micro-batch.
        bf16, cuda, dropout, checkpointing: see `StepLayers`; there is no dropout but in `finetune`.
    """

    step: StepSpec
    images: int

    def given(self) -> tuple[int, int]:
        """Of the normalised pixels: held from then to the end of the loss, and needed while they are made."""
        shape = self.step.shape
        pixels = FLOAT * self.images * shape.channels * shape.image_size[0] * shape.image_size[1]
        return (2 if self.step.stage == "finetune" else 1) * pixels, 3 * pixels  # flipped ones are another tensor

    def of_the_step(self) -> list[Layer]:
        """In the order of the forward pass."""
        step = self.step
        if step.stage == "finetune":
            views = replace(self, images=self.images * step.views)
            passes = replace(views, images=views.images * step.passes)
            embedded = views.embedding(step.shape.patches, step.passes)
            return [embedded, *passes.encoder(0, step.all_tokens), *passes.head()]
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
        step, encoder, decoder = self.step, self.step.shape.encoder, self.step.shape.decoder
        stacks = [(encoder, step.all_tokens)] if step.live_teacher else []
        if step.matched == "predictions" and decoder is not None:
            stacks = [(encoder, 1 + step.visible), (decoder, step.all_tokens)]
        inside = [tokens * (FLOAT * stack.width + self.product * stack.mlp_width) for stack, tokens in stacks]
        return 2 * self.images * max(inside, default=0)

    def embedding(self, patches: int, passes: int = 1) -> Layer:
        """Of so many patches an image; keeps their pixels. More passes have noise added, which is held."""
        width, rows = self.step.shape.encoder.width, self.images * patches
        kept = self.product * rows * self.step.shape.patch_values
        kept += self.mask(passes * (rows + self.images), width, FLOAT)
        work, noise = 2 * FLOAT * passes * rows * width, (passes - 1) * FLOAT * rows * width
        return Layer(kept, work, ("embedding", FLOAT * embedding_parameters(self.step)), held=noise)

    def gather(self) -> Layer:
        """The masked view's tokens from the clean one's, which are kept, and which they are."""
        tokens = FLOAT * self.images * self.step.all_tokens * self.step.shape.encoder.width
        return Layer(tokens + INT64 * self.images * (1 + self.step.visible), 2 * tokens)

    def encoder(self, masked: int, clean: int, again: bool = False) -> list[Layer]:
        """Blocks and norm over the views' tokens together.

        Args:
            masked, clean: tokens of an image in each view; 0 for a view that is not there.
            again: whether the step has used these weights before. Autocast has its copies of them already, and adds up
                their gradients in bfloat16 until the first use has given its own.
        """
        step, shape = self.step, self.step.shape.encoder
        last = shape.depth if step.layer is None else step.layer  # block of the clean view
        asked = step.clean_queries if clean else 0
        layers: list[Layer] = []
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
        held = FLOAT * self.images * asked * shape.width
        return [*layers, self.norm("norm", shape.width, normed, held)] if normed else layers

    def block(
        self, name: str, shape: TransformerShape, views: list[int], inside: int, new: bool, again: bool = False
    ) -> list[Layer]:
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
        kept = FLOAT * self.images * inside * width + 2 * FLOAT * rows  # the norm's input and statistics
        kept += rows * (5 * product * width + FLOAT * shape.heads)  # its result, q, k, v, what comes out, the softmax
        if self.compiled:
            kept += 4 * INT64 * self.images * len(views) * new
        elif len(views) > 1:
            kept += rows * product * width  # the views' results side by side
        kept += self.copies(4 * width * width, again) + self.mask(rows, width, product)
        work = rows * (FLOAT + 4 * product) * width
        size = attention_parameters(shape, self.step.shape.qkv_bias)
        attention = Layer(kept, work, self.weights(f"{name} attention", size, again))
        copies = self.copies(4 * width * width + 2 * width * shape.mlp_width, again)
        given = FLOAT * self.images * inside * width
        return self.checkpointed([attention, *self.mlp(name, shape, rows, again)], given, copies)

    def checkpointed(self, block: list[Layer], given: int, copies: int) -> list[Layer]:
        """Of a block's layers, with checkpointing only what the block is `given` is kept.

        Autocast holds its `copies` of the weights to the end of the forward pass, and makes them again as well.
        """
        if not self.checkpointing:
            return block
        late = [block[0].kept - given, *(layer.kept for layer in block[1:])]
        block = [replace(layer, late=bytes_) for layer, bytes_ in zip(block, late, strict=True)]
        return [replace(block[0], held=block[0].held + copies), *block[1:-1], replace(block[-1], remakes=sum(late))]

    def mlp(self, name: str, shape: TransformerShape, rows: int, again: bool = False) -> list[Layer]:
        """The second half of a block; GELU keeps its input, or its slope, which is as large."""
        width, hidden = shape.width, rows * self.product * shape.mlp_width
        copies = self.copies(width * shape.mlp_width, again)
        kept = rows * (FLOAT * (width + 2) + self.product * width) + hidden + copies
        work = 2 * FLOAT * rows * width + hidden
        size = width * shape.mlp_width
        return [
            Layer(kept, work, self.weights(f"{name} MLP in", size + shape.mlp_width + 2 * width, again)),
            Layer(
                hidden + copies + self.mask(rows, width, self.product),
                work,
                self.weights(f"{name} MLP out", size + width, again),
            ),
        ]

    def first_query(self, name: str, shape: TransformerShape, tokens: int, inside: int, again: bool) -> list[Layer]:
        """A block with a query for the first of so many tokens; see `block` for the other arguments."""
        width, product, images = shape.width, self.product, self.images
        rows, matrix = images * tokens, width * width
        kept = FLOAT * images * inside * width + 2 * FLOAT * rows
        kept += FLOAT * rows * width  # the norm's result; autocast makes two copies of it instead
        kept += images * product * (2 * width + shape.heads * (2 * width + tokens))  # query, sums, softmax, result
        if self.bf16:
            kept += images * product * width + self.copies(3 * matrix) + self.copies(matrix, again or not inside)
        kept += self.mask(images, width, product)
        work = 3 * FLOAT * max(rows * width, matrix)  # of the tokens, then of the query's, key's and value's weights
        size = attention_parameters(shape, self.step.shape.qkv_bias)
        attention = Layer(kept, work, self.weights(f"{name} attention", size, again))
        copies = self.copies(4 * matrix + 2 * width * shape.mlp_width, again or not inside)
        given = FLOAT * images * inside * width
        block = [attention, *self.mlp(name, shape, images, again or not inside)]
        return self.checkpointed(block, given, copies)

    def some_queries(self, name: str, shape: TransformerShape, tokens: int, queries: int) -> list[Layer]:
        """A block with queries for some of an image's tokens."""
        width, product, images = shape.width, self.product, self.images
        rows, asking, matrix = images * tokens, images * queries, width * width
        kept = rows * (FLOAT * (width + 2) + 3 * product * width)  # the norm's input and result, keys and values
        kept += asking * (3 * product * width + FLOAT * shape.heads + INT64)  # what asks, queries, result, which
        if self.compiled:
            kept += 4 * INT64 * images
        else:
            kept += self.bf16 * FLOAT * rows * width + self.copies(4 * matrix)  # what asks is gathered in float32
        work = rows * (2 * FLOAT + 2 * product) * width + 6 * FLOAT * matrix
        size = attention_parameters(shape, self.step.shape.qkv_bias)
        attention = Layer(kept, work, self.weights(f"{name} attention", size))
        copies = self.copies(4 * matrix + 2 * width * shape.mlp_width)
        given = FLOAT * rows * width + INT64 * asking
        return self.checkpointed([attention, *self.mlp(name, shape, asking)], given, copies)

    def norm(self, name: str, width: int, tokens: int, held: int = 0) -> Layer:
        """Keeps its input and two numbers a token."""
        rows = self.images * tokens
        return Layer(FLOAT * rows * (width + 2), FLOAT * rows * width, self.weights(name, 2 * width), held)

    def decoder(self) -> list[Layer]:
        """Everything from the encoder's result to the predicted pixels, and their gradient, which the loss keeps."""
        step, shape, images, product = self.step, self.step.shape.decoder, self.images, self.product
        assert shape is not None
        width, seen, tokens, pixels = shape.width, images * (1 + step.visible), step.all_tokens, step.shape.patch_values
        into = step.shape.encoder.width * width
        kept = product * seen * step.shape.encoder.width + self.copies(into) + INT64 * images * step.shape.patches
        layers = [Layer(kept, 2 * FLOAT * images * tokens * width, self.weights("decoder in", into + 2 * width))]
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
        compared = product * images * (step.masked if step.masked_tail else step.shape.patches) * pixels
        kept += compared * ((step.stage == "pretrain" or step.mae) + (step.matched == "predictions"))
        work = prediction + 2 * FLOAT * rows * width
        layers.append(Layer(kept, work, self.weights("pixel head", (width + 1) * pixels), held=prediction))
        return layers

    def head(self) -> list[Layer]:
        """The classifier and its loss, or the gradient of the matched tokens, which the loss keeps."""
        step, width, images = self.step, self.step.shape.encoder.width, self.images
        if step.stage == "finetune":
            entering = self.product * (1 if self.bf16 else step.clean_queries) * width
            kept = images * (entering + FLOAT * step.classes + INT64) + self.copies(width * step.classes)
            work = FLOAT * images * step.clean_queries * width
            classifier = Layer(kept, work, self.weights("classifier", (width + 1) * step.classes))
            return [classifier, *self.projection()]
        if not step.clean_view:
            return []
        matched = {"cls": 1, "patch": step.shape.patches, "all": step.all_tokens}[step.tokens]
        return [Layer(FLOAT * images * matched * width, 0)]

    def projection(self) -> list[Layer]:
        """Of contrastive training: what is compared, and all pairs of it."""
        out, width, images = self.step.projection, self.step.shape.encoder.width, self.images
        if not out:
            return []
        kept = images * (self.product * 2 * width + FLOAT * 2 * out) + self.copies(width * (width + out))
        pairs = FLOAT * images * images
        size = (width + 1) * (width + out)
        return [Layer(kept + pairs, 3 * pairs, self.weights("projection", size))]
