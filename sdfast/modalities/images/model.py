"""A lean ViT encoder, MAE decoder and classifier: the arithmetic of Hugging Face's ViTMAE and ViT, in one file.

Equal to `transformers.ViTMAEForPreTraining` and `transformers.ViTForImageClassification` for the same weights (the
tests compare them). Weights travel to and from the Hugging Face layout without loss (`sdfast.models.layout`): the only
difference is that the query, key and value projections are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from sdfast.modalities.images.rotary import axial_turn
from sdfast.models.base import Classifier, Encoder, Layer, MaskedModel, Tokens, blocks_before
from sdfast.models.blocks import Block, Rows, TransformerShape, Turn, settled, take_tokens
from sdfast.models.compiled import Compilable, segment
from sdfast.models.weights import later
from sdfast.ops.attention import Group, Groups
from sdfast.ops.linear import Linear, linear
from sdfast.ops.norm import added_norm

Pool = Literal["cls", "mean", "mean_then_norm", "raw_mean"]
_BEFORE_NORM: tuple[Pool, ...] = ("mean_then_norm", "raw_mean")


@dataclass(frozen=True)
class ViTShape:
    """Everything that decides the architecture of a ViT or of a ViT with an MAE decoder.

    Attributes:
        image_size: height and width.
        patch_size: of a square patch.
        channels: of an image.
        encoder: its blocks.
        decoder: those of the MAE decoder, if there is one.
        norm_eps: of every norm; see `MAEDecoder` on its last one.
        qkv_bias: whether queries, keys and values have a bias.
        kind: the `model_type` that it is written as; `vit` for ViTMAE and ViT.
        cls: whether the first token is a CLS token.
        registers: further tokens before the patches, which nothing reads (Darcet et al., 2024).
        learned_positions: whether CLS and patches have position embeddings of their own.
        rotary: base of the rotary positions of patches in every block; None for none.
        pre_norm: a norm after the embeddings.
        patch_bias: whether the patch embedding has a bias.
        pool: what stands for the image: the CLS token or the mean of the patches' tokens, after the last norm; or their
            mean before it, which the norm follows or does not.
    """

    image_size: tuple[int, int]
    patch_size: int
    channels: int
    encoder: TransformerShape
    decoder: TransformerShape | None = None
    norm_eps: float = 1e-12
    qkv_bias: bool = True
    kind: str = later("vit")
    cls: bool = later(True)
    registers: int = later(0)
    learned_positions: bool = later(True)
    rotary: float | None = later(None)
    pre_norm: bool = later(False)
    patch_bias: bool = later(True)
    pool: Pool = later("cls")

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches: CLS and registers."""
        return self.cls + self.registers

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """Patches per image (L)."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Pixel values per patch (P)."""
        return self.patch_size * self.patch_size * self.channels

    @property
    def parameters(self) -> int:
        """How many numbers the encoder and, where there is one, the decoder have, positions included."""
        count = self._stack(self.encoder, self.patch_values)
        if self.decoder is None:
            return count
        return count + self._stack(self.decoder, self.encoder.width) + (self.decoder.width + 1) * self.patch_values

    def _stack(self, stack: TransformerShape, inputs: int) -> int:
        """Numbers of blocks, the layer into them, one further token, positions and the last norm."""
        return stack.depth * stack.block_parameters(self.qkv_bias) + stack.width * (inputs + self.patches + 5)


@dataclass(frozen=True)
class View:
    """What an encoder is given of some images: all their patches, or some; see `ViTEncoder.view`.

    Attributes:
        tokens: [B, N, D] from `ViTEncoder.embed`, CLS and registers first.
        valid: [B, N] bool, False at padding, which follows the valid tokens; None when there is none.
        cls_only: whether only the CLS token of the result is wanted, [B, D].
        layer: stop after so many blocks, before the final LayerNorm; None goes through all and the LayerNorm.
        turn: of the tokens, [B * N, d]; None without rotary positions.
        averaged: whether only the mean of the patches' tokens before the last norm is wanted, [B, D].
    """

    tokens: Tensor
    valid: Tensor | None = None
    cls_only: bool = False
    layer: int | None = None
    turn: Turn | None = None
    averaged: bool = False

    @property
    def group(self) -> Group:
        """The view's sequences, as attention takes them."""
        batch, count, _ = self.tokens.shape
        return Group(batch, count, count, self.valid)


class ViTEncoder(Encoder, Compilable):
    """Patch embedding, CLS token, registers, positions, blocks and the final norm."""

    static = True

    def __init__(self, shape: ViTShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        width, patch, style = shape.encoder.width, shape.patch_size, shape.encoder.style
        if shape.cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if shape.registers:
            self.registers = nn.Parameter(torch.zeros(1, shape.registers, width))
        if shape.learned_positions:
            self.position_embeddings = nn.Parameter(torch.zeros(1, shape.cls + shape.patches, width))
        self.patch_embed = nn.Conv2d(shape.channels, width, patch, stride=patch, bias=shape.patch_bias)
        if shape.pre_norm:
            self.pre_norm = style.make_norm(width, shape.norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(shape.encoder, shape.norm_eps, shape.qkv_bias, dropout) for _ in range(shape.encoder.depth)
        )
        self.norm = style.make_norm(width, shape.norm_eps)

    def forward(self, pixels: Tensor, visible_ids: Tensor | None = None, visible_valid: Tensor | None = None) -> Tensor:
        """Encode images, whole or only their visible patches.

        Args:
            pixels: [B, C, H, W] normalised.
            visible_ids: [B, K] int64 patch numbers to keep, in the order the tokens shall have; None keeps all.
            visible_valid: [B, K] bool, False where `visible_ids` is padding (rows with fewer visible patches).

        Returns:
            [B, prefix + K, D] (K = L without `visible_ids`): CLS, registers, patches, after the final norm.
        """
        return self.encode(self.view(self.embed(pixels, visible_ids), visible_ids, visible_valid))[0]

    @segment()
    def embed(self, pixels: Tensor, patch_ids: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Tokens before the first block; only those patches are embedded that are asked for.

        Args:
            pixels: [B, C, H, W] normalised.
            patch_ids: [B, K] int64 patch numbers, in the order the tokens shall have; None for all in image order.
            noise: [B, L, D], with `patch_ids` None: the images come once more, with it added to their patch embeddings,
                which then carry no gradient.

        Returns:
            [B, prefix + K, D] (K = L without `patch_ids`), or [2B, prefix + L, D] with `noise`: CLS, registers, then
            the patches, positions added.
        """
        patches, shape = patches_of(pixels, self.patch_embed.kernel_size), self.shape
        positions = self.position_embeddings[:, shape.cls :] if shape.learned_positions else None
        if patch_ids is not None:
            patches = take_tokens(patches, patch_ids)
            if positions is not None:
                positions = take_tokens(positions.expand(patches.shape[0], -1, -1), patch_ids)
        batch, count, _ = patches.shape
        embedded = linear(patches.flatten(0, 1), self.patch_embed.weight.flatten(1), self.patch_embed.bias)
        embedded = embedded.view(batch, count, embedded.shape[-1])
        if noise is not None:
            embedded = torch.cat((embedded, embedded.detach() + noise))
        prefix = [each.expand(embedded.shape[0], -1, -1).to(embedded.dtype) for each in self._prefix()]
        tokens = torch.cat((*prefix, embedded if positions is None else embedded + positions), dim=1)
        return self.dropout(self.pre_norm(tokens) if shape.pre_norm else tokens)

    def _prefix(self) -> list[Tensor]:
        """What stands before the patches: [1, 1, D] and [1, registers, D]."""
        found = []
        if self.shape.cls:
            places = self.shape.learned_positions
            found.append(self.cls_token + self.position_embeddings[:, :1] if places else self.cls_token)
        if self.shape.registers:
            found.append(self.registers)
        return found

    @segment()
    def embed_both(self, pixels: Tensor, patch_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`embed` of some patches, [B, prefix + K, D], and of all, [B, prefix + L, D], which embeds each once."""
        whole = self.embed(pixels)
        return take_tokens(whole, _with_prefix(patch_ids, self.shape.prefix)), whole

    def view(
        self,
        tokens: Tensor,
        patch_ids: Tensor | None = None,
        valid: Tensor | None = None,
        cls_only: bool = False,
        layer: int | None = None,
        pooled: bool = False,
    ) -> View:
        """What `encode` is given of tokens that `embed` made.

        Args:
            tokens: [B, prefix + K, D].
            patch_ids: [B, K] int64, the patches that they are of; None for all.
            valid: [B, K] bool, False where `patch_ids` is padding.
            cls_only: whether of the result only the CLS token is wanted; without effect where that does not stand for
                the image.
            layer: see `View`.
            pooled: whether of the result only what stands for the image is wanted.
        """
        prefix, turn = self.shape.prefix, None
        if valid is not None:
            valid = F.pad(valid, (prefix, 0), value=True)
        if self.shape.rotary is not None:
            head = self.shape.encoder.width // self.shape.encoder.heads
            table = axial_turn(self.shape.grid, head, self.shape.rotary, prefix, tokens)
            if patch_ids is None:
                turn = Turn(*(each.expand(tokens.shape[0], -1, -1).flatten(0, 1) for each in table))
            else:
                turn = Turn(*(each[_with_prefix(patch_ids, prefix)].flatten(0, 1) for each in table))
        pool = self.shape.pool
        return View(tokens, valid, cls_only and pool == "cls", layer, turn, pooled and pool in _BEFORE_NORM)

    @override
    def features(self, inputs: Tensor, tokens: Tokens, layer: Layer = "last") -> Tensor:
        """Images [B, C, H, W], normalised -> [B, D] or [B, N, D]."""
        pooled = tokens == "cls"
        view = self.view(self.embed(inputs), cls_only=pooled, layer=blocks_before(layer), pooled=pooled)
        return self.select(self.encode(view)[0], tokens)

    def select(self, encoded: Tensor, tokens: Tokens) -> Tensor:
        """The tokens that are matched, of what `encode` gave, which may be [B, D] already: see `select_tokens`."""
        return encoded if encoded.dim() == 2 else select_tokens(encoded, tokens, self.shape.prefix, self.shape.pool)

    def encode(self, *views: View) -> list[Tensor]:
        """Send views through the blocks together: their tokens are rows of one matrix in every linear layer and norm.

        Returns:
            for each view [B, N, D]; or [B, D] where only the CLS token is wanted, for which its last block computes
            nothing for the other tokens, or only the mean before the last norm.
        """
        going = {number: Rows(view.tokens.flatten(0, 1)) for number, view in enumerate(views)}  # of views that go on
        ended: dict[int, Tensor] = {}
        rows, groups, turn = _together(views, going)
        for depth, block in enumerate((cast(Block, block) for block in self.blocks), 1):
            ending = [number for number in going if depth == (views[number].layer or len(self.blocks))]
            if ending:
                going = dict(zip(going, _apart(rows, groups), strict=True))
            for number in ending:
                if (view := views[number]).cls_only:
                    ended[number] = block.run(block.first_query, *_shaped(going.pop(number), view.tokens), view.turn)
            if not going:
                break
            if ending:
                rows, groups, turn = _together(views, going)
            rows = block.advance(rows, groups, turn)
            if any(number in going for number in ending):
                going = dict(zip(going, _apart(rows, groups), strict=True))
                for number in ending:
                    if number in going:
                        ended[number] = settled(*_shaped(going.pop(number), views[number].tokens))
                if not going:
                    break
                rows, groups, turn = _together(views, going)
        return [self._normed(ended[number], view) for number, view in enumerate(views)]

    def _normed(self, x: Tensor, view: View) -> Tensor:
        """What `encode` gives for a view, of what its last block gave."""
        if view.averaged:
            x = x[:, self.shape.prefix :].mean(dim=1)
            if self.shape.pool == "raw_mean":
                return x
        return x if view.layer is not None else self.norm(x)


def _together(views: Sequence[View], going: dict[int, Rows]) -> tuple[Rows, Groups, Turn | None]:
    """The rows of some views as one matrix (those of one view are not copied), their sequences and their turn."""
    groups = Groups(tuple(views[number].group for number in going))
    turns = [turn for number in going if (turn := views[number].turn) is not None]
    turn = (
        Turn(*(torch.cat(each) if len(each) > 1 else each[0] for each in zip(*turns, strict=True))) if turns else None
    )
    first, *others = going.values()
    if not others:
        return first, groups, turn
    x = torch.cat([first.x, *(rows.x for rows in others)])
    pending = [rows.pending for rows in going.values() if rows.pending is not None]
    return Rows(x, torch.cat(pending) if pending else None), groups, turn


def _apart(rows: Rows, groups: Groups) -> list[Rows]:
    """The rows of each group, apart."""
    sizes = groups.query_sizes
    pending = [None] * len(sizes) if rows.pending is None else rows.pending.split(sizes)
    return [Rows(*each) for each in zip(rows.x.split(sizes), pending, strict=True)]


def _shaped(rows: Rows, tokens: Tensor) -> Rows:
    """Rows of a view as [B, N, D]."""
    return Rows(rows.x.view_as(tokens), None if rows.pending is None else rows.pending.view_as(tokens))


def select_tokens(encoded: Tensor, tokens: Tokens, prefix: int = 1, pool: Pool = "cls") -> Tensor:
    """Pick the matched tokens of an encoder's output.

    Args:
        encoded: [B, prefix + L, D]: CLS, registers, then the patches in image order.
        tokens: see `Encoder.features`.
        prefix: how many tokens come before the patches.
        pool: what `cls` is.

    Returns:
        [B, D] for `cls`, [B, L, D] for `patch` and [B, prefix + L, D] for `all`, which are views.
    """
    if tokens == "cls":
        return encoded[:, 0] if pool == "cls" else encoded[:, prefix:].mean(dim=1)
    return encoded[:, prefix:] if tokens == "patch" else encoded


def _with_prefix(patch_ids: Tensor, prefix: int) -> Tensor:
    """Places of patches [B, K] among all tokens, those before the patches first: [B, prefix + K]."""
    first = torch.arange(prefix, device=patch_ids.device).expand(len(patch_ids), -1)
    return torch.cat((first, patch_ids + prefix), dim=1)


class MAEDecoder(Compilable):
    """The light decoder of MAE (He et al., 2022): fills in mask tokens and predicts the pixels of every patch.

    All its norms have the epsilon of the shape, as in transformers 5.17 to 5.23 (1e-12 of `facebook/vit-mae-base`) and
    in facebookresearch/mae (1e-6). In transformers 4.17, which the paper's code pins, the last one has 1e-5, and no key
    of a `config.json` says so; that moves the loss by 1e-6 to 1e-5 of it.
    """

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        if shape.decoder is None:
            raise ValueError("MAEDecoder needs a ViTShape with a decoder")
        width = shape.decoder.width
        self.cls, self.prefix = int(shape.cls), shape.prefix
        self.embed = Linear(shape.encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.cls + shape.patches, width))
        self.blocks = nn.ModuleList(
            Block(shape.decoder, shape.norm_eps, shape.qkv_bias) for _ in range(shape.decoder.depth)
        )
        self.norm = nn.LayerNorm(width, eps=shape.norm_eps)
        self.pred = Linear(width, shape.patch_values)

    def forward(
        self,
        encoded: Tensor,
        visible_ids: Tensor,
        visible_valid: Tensor | None = None,
        masked_ids: Tensor | None = None,
    ) -> Tensor:
        """Predict patches from the encoded visible ones.

        Args:
            encoded: [B, prefix + K, D] from the encoder: CLS, registers, then the visible patches.
            visible_ids: [B, K] int64, where those patches lie.
            visible_valid: [B, K] bool, False where `visible_ids` is padding.
            masked_ids: [B, M] int64, the patches to predict: the last block computes nothing for the others; None
                predicts all.

        Returns:
            [B, L, P] pixel predictions in patch order, or [B, M, P]; channel fastest within a patch.
        """
        x = self.fill_in(encoded, visible_ids, visible_valid)
        shape = x.shape
        groups, rows = Groups((Group(shape[0], shape[1], shape[1]),)), Rows(x.flatten(0, 1))
        blocks = [cast(Block, block) for block in self.blocks]
        tail = blocks.pop() if blocks and masked_ids is not None else None
        for block in blocks:
            rows = block.advance(rows, groups)
        if masked_ids is None:
            return self.predict(settled(*rows)).view(shape[0], shape[1], -1)[:, self.cls :]
        shaped, asking = _shaped(rows, x), masked_ids + self.cls  # CLS is token 0
        if tail is None:
            asked = take_tokens(settled(*shaped), asking).flatten(0, 1)
        else:
            asked = tail.run(tail.some_queries, shaped.x, asking, shaped.pending)
        return self.predict(asked).view(shape[0], masked_ids.shape[1], -1)

    @segment()
    def fill_in(self, encoded: Tensor, visible_ids: Tensor, visible_valid: Tensor | None) -> Tensor:
        """The decoder's tokens before its first block, CLS (if any) and patches: see `forward` -> [B, cls + L, D]."""
        if self.prefix > self.cls:
            encoded = torch.cat((encoded[:, : self.cls], encoded[:, self.prefix :]), dim=1)  # registers have no part
        batch, cls = encoded.shape[0], self.cls
        x = self.embed(encoded.flatten(0, 1)).view(batch, encoded.shape[1], -1)
        patches = self.position_embeddings.shape[1] - cls
        # One row more than patches: padding is scattered there and cut off.
        target = visible_ids if visible_valid is None else visible_ids.masked_fill(~visible_valid, patches)
        full = self.mask_token.to(x.dtype).expand(batch, patches + 1, -1)
        full = full.scatter(1, target.unsqueeze(-1).expand(-1, -1, x.shape[-1]), x[:, cls:])[:, :patches]
        return torch.cat((x[:, :cls], full), dim=1) + self.position_embeddings

    @segment()
    def predict(self, rows: Tensor) -> Tensor:
        """Pixels of some tokens after the last block, [T, D] -> [T, P]."""
        return self.pred(added_norm(self.norm, rows)[1])


def patches_of(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, C, H, W] -> [B, L, C * h * w]: the patches in image order, each as a convolution's weight is laid out."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // size[0], width // size[1]
    patches = pixels.view(batch, channels, rows, size[0], columns, size[1]).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows * columns, -1)


class MaskedAutoencoder(MaskedModel):
    """A ViT encoder with an MAE decoder. Position embeddings are fixed, as in ViTMAE."""

    shape: ViTShape
    encoder: ViTEncoder

    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape)
        self.decoder = MAEDecoder(shape)
        if shape.learned_positions:
            self.encoder.position_embeddings.requires_grad_(False)
        self.decoder.position_embeddings.requires_grad_(False)


class ViTClassifier(Classifier):
    """A ViT encoder with one linear layer on what stands for the image (fidelity: the CLS token after the final
    LayerNorm, no pooler; see `ViTShape.pool`).

    Position embeddings are trainable here and dropout acts after the embeddings, the attention projections and the
    MLPs, as in `transformers.ViTForImageClassification`.
    """

    shape: ViTShape
    encoder: ViTEncoder

    def __init__(self, shape: ViTShape, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = ViTEncoder(shape, dropout)
        self.classifier = nn.Linear(shape.encoder.width, classes)
        if shape.pool == "raw_mean":  # CLIP's, whose last norm nothing reads
            self.encoder.norm.requires_grad_(False)

    def forward(self, pixels: Tensor, cls_tail: bool = True, noise: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            pixels: [B, C, H, W] normalised.
            cls_tail: the last block computes nothing for tokens other than CLS, where that stands for the image.
            noise: see `ViTEncoder.embed`.

        Returns:
            [B, classes] logits; with `noise` [2B, classes], those of the noised images after the others.
        """
        return self.classifier(self.standard(self.states(self.encoder.embed(pixels, noise=noise), cls_tail)))

    def states(self, tokens: Tensor, cls_tail: bool = True) -> Tensor:
        """What the classifier is given: tokens [B, N, D] from `ViTEncoder.embed` -> [B, D]."""
        view = self.encoder.view(tokens, cls_only=cls_tail, pooled=True)
        return self.encoder.select(self.encoder.encode(view)[0], "cls")
