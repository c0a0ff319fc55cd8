"""Hidden states, logits and losses equal those of transformers for the same weights, unpadded against padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from text_model_samples import BATCH, IDS, KINDS, LENGTHS, padded, unpadded

from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import Companions, load_classifier, load_mlm, save_classifier
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import Asking, Dropouts, TextView, first_tokens
from sdfast.models.blocks import use_attention
from sdfast.models.layout import write_state

TIGHT = {"rtol": 0.0, "atol": 1e-10}
NONE = Dropouts()
DRAWS = 2000


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_logits(kind: str, hugging_face: Any) -> None:
    theirs, path = hugging_face(f"{kind}ForMaskedLM")
    theirs.double()
    ours = load_mlm(str(path), dropouts=NONE).module.double()
    ids, mask = padded(BATCH, ours.shape.pad_id)
    output = theirs(ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(ours.encoder.embed(BATCH), unpadded(output.hidden_states[0], BATCH), **TIGHT)
    for layer in (1, 2) if ours.shape.pre_norm is None else (1,):  # the last is behind the last norm
        wanted = unpadded(output.hidden_states[layer], BATCH)
        torch.testing.assert_close(ours.encoder(BATCH, layer=layer), wanted, **TIGHT)
    encoded = ours.encoder(BATCH)
    torch.testing.assert_close(encoded, unpadded(output.hidden_states[-1], BATCH), **TIGHT)
    torch.testing.assert_close(ours.logits(encoded), unpadded(output.logits, BATCH), **TIGHT)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"])
def test_token_types(kind: str, hugging_face: Any) -> None:
    theirs, path = hugging_face(f"{kind}ForMaskedLM", type_vocab_size=3)
    theirs.double()
    ours = load_mlm(str(path), dropouts=NONE).module.double()
    types = torch.arange(len(IDS)) % 3
    ids, mask = padded(BATCH, ours.shape.pad_id)
    wide, _ = padded(TokenBatch(types, LENGTHS), 0)
    wanted = unpadded(theirs(ids, attention_mask=mask, token_type_ids=wide).logits, BATCH)
    encoded = ours.encoder.encode(TextView(ours.encoder.embed(BATCH, types), LENGTHS))[0]
    torch.testing.assert_close(ours.logits(encoded), wanted, **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_loss_and_gradients(kind: str, hugging_face: Any) -> None:
    """The head at the masked tokens alone is theirs at all tokens: the loss, and the gradient of every weight."""
    theirs, path = hugging_face(f"{kind}ForMaskedLM")
    theirs.double()
    ours = load_mlm(str(path), dropouts=NONE).module.double()
    rows = torch.tensor([0, 3, 9, 20, 21, 34])
    labels = torch.full_like(IDS, -100)
    labels[rows] = (IDS[rows] * 7) % 60
    ids, mask = padded(BATCH, ours.shape.pad_id)
    their_labels = padded(TokenBatch(labels, LENGTHS), -100)[0]
    output = theirs(ids, attention_mask=mask, labels=their_labels)
    wanted = output.loss
    if wanted.dtype == torch.float32:  # whatever the logits are
        wanted = F.cross_entropy(output.logits.flatten(0, 1), their_labels.flatten())
        torch.testing.assert_close(output.loss, wanted.float())
    asking = Asking(rows, torch.tensor([2, 0, 1, 2, 1]))
    loss = F.cross_entropy(ours.logits(ours.encoder(BATCH, asking)), labels[rows])
    torch.testing.assert_close(loss, wanted, **TIGHT)
    loss.backward()
    wanted.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    theirs_by_name = dict(theirs.named_parameters(remove_duplicate=False))
    mine_by_name = write_state(gradients, FAMILIES[ours.shape.kind].naming)
    assert mine_by_name.keys() <= theirs_by_name.keys() and len(mine_by_name) == len(list(theirs.parameters()))
    for name, gradient in mine_by_name.items():
        torch.testing.assert_close(
            gradient, theirs_by_name[name].grad, **TIGHT, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("kind", KINDS)
def test_classifier(kind: str, hugging_face: Any) -> None:
    theirs, path = hugging_face(f"{kind}ForSequenceClassification", num_labels=3)
    theirs.double()
    ours, _, names = load_classifier(path)
    ours.double().eval()
    assert names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    ids, mask = padded(BATCH, ours.shape.pad_id)
    wanted = theirs(ids, attention_mask=mask).logits
    for cls_tail in (True, False):
        torch.testing.assert_close(ours(BATCH, cls_tail), wanted, **TIGHT)


@pytest.mark.parametrize("attention", ["reference", "sdpa", "native"])
def test_backends_in_float32(attention: str, hugging_face: Any) -> None:
    theirs, path = hugging_face("RobertaForMaskedLM")
    ours = load_mlm(str(path), dropouts=NONE).module
    use_attention(ours, attention)
    ids, mask = padded(BATCH, 1)
    wanted = unpadded(theirs(ids, attention_mask=mask).logits, BATCH)
    torch.testing.assert_close(ours.logits(ours.encoder(BATCH)), wanted, rtol=1e-5, atol=2e-5)


# ---- views -----------------------------------------------------------------------------------------------------


def test_views_together_are_views_apart(hugging_face: Any) -> None:
    encoder = load_mlm(str(hugging_face("RobertaForMaskedLM")[1]), dropouts=NONE).module.double().encoder
    other = TokenBatch(IDS.flip(0), LENGTHS.flip(0))
    whole, turned = encoder(BATCH), encoder(other)
    asking = Asking(torch.tensor([1, 8, 9, 30]), torch.tensor([1, 0, 2, 1, 0]))
    first = first_tokens(other.lengths)
    assert first.rows.tolist() == [0, 3, 15, 27, 28]
    views = (
        TextView(encoder.embed(BATCH), BATCH.lengths, asking),
        TextView(encoder.embed(other), other.lengths, first),
        TextView(encoder.embed(BATCH), BATCH.lengths),
        TextView(encoder.embed(other), other.lengths, first, layer=1),
        TextView(encoder.embed(BATCH), BATCH.lengths, layer=1),
    )
    wanted = (
        whole[asking.rows],
        turned[first.rows],
        whole,
        encoder(other, layer=1)[first.rows],
        encoder(BATCH, None, 1),
    )
    for ours, plain in zip(encoder.encode(*views), wanted, strict=True):
        torch.testing.assert_close(ours, plain, **TIGHT)
    for view, plain in zip(views, wanted, strict=True):
        torch.testing.assert_close(encoder.encode(view)[0], plain, **TIGHT)


def test_a_sequence_alone_is_the_sequence_among_others(hugging_face: Any) -> None:
    encoder = load_mlm(str(hugging_face("BertForMaskedLM")[1]), dropouts=NONE).module.double().encoder
    together = encoder(BATCH).split(LENGTHS.tolist())
    for number in range(len(BATCH)):
        torch.testing.assert_close(encoder(BATCH[number : number + 1]), together[number], **TIGHT)


def test_too_long_a_text(hugging_face: Any) -> None:
    for kind, longest in (("Roberta", 38), ("Bert", 40)):
        encoder = load_mlm(str(hugging_face(f"{kind}ForMaskedLM", folder=kind)[1])).module.encoder
        encoder(TokenBatch(torch.full((longest,), 7), torch.tensor([longest])))
        with pytest.raises(UserError, match=f"a text has {longest + 1} tokens.* positions for {longest}: truncate it"):
            encoder(TokenBatch(torch.full((longest + 1,), 7), torch.tensor([longest + 1])))


# ---- dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Roberta", "Bert", "DistilBert", "Electra", "ModernBert", "EuroBert"])
def test_dropout_acts_where_theirs_does(kind: str, hugging_face: Any, tmp_path: Path) -> None:
    """The mean over draws is theirs within five standard errors; each kind alone, as both are given by the folder."""
    transformers = pytest.importorskip("transformers")
    module, _, _ = load_classifier(hugging_face(f"{kind}ForSequenceClassification", num_labels=2)[1])
    short = TokenBatch(IDS[:9], torch.tensor([4, 5]))
    ids, mask = padded(short, module.shape.pad_id)
    for number, rates in enumerate(((0.3, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 0.4))):
        dropouts, folder = Dropouts(*rates), tmp_path / str(number)
        save_classifier(module, folder, Companions(), ["oak", "elm"], dropouts)
        ours = load_classifier(folder)[0].train()
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).train()
        many, wide = TokenBatch(short.ids.repeat(DRAWS), short.lengths.repeat(DRAWS)), mask.repeat(DRAWS, 1)
        torch.manual_seed(0)
        with torch.no_grad():
            states = theirs.base_model(ids.repeat(DRAWS, 1), attention_mask=wide).last_hidden_state[wide.bool()]
            pairs = [(ours(many), theirs(ids.repeat(DRAWS, 1), attention_mask=wide).logits, 0.1)]
            pairs += [(ours.encoder(many), states, 0.02)] if number < 2 else []
        for mine, wanted, near in pairs:
            mine, wanted = mine.view(DRAWS, -1), wanted.view(DRAWS, -1)
            if kind == "EuroBert" and not dropouts.attention:  # it drops nothing but weights of the attention
                torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)
                continue
            error = (mine.var(dim=0) + wanted.var(dim=0)).div(DRAWS).sqrt()
            assert ((mine.mean(dim=0) - wanted.mean(dim=0)).abs() <= 5 * error).all(), dropouts
            assert mine.var(dim=0).mean() / wanted.var(dim=0).mean() == pytest.approx(1, abs=near), dropouts


def test_no_dropout_when_evaluated(hugging_face: Any) -> None:
    loaded = load_mlm(str(hugging_face("RobertaForMaskedLM")[1]))
    assert loaded.dropouts == Dropouts(0.1, 0.1, None)
    encoder = loaded.module.encoder
    assert not torch.equal(encoder(BATCH), encoder(BATCH))
    encoder.eval()
    assert torch.equal(encoder(BATCH), encoder(BATCH))
