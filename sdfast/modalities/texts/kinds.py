"""What the kinds of text models compute otherwise than BERT; what they are called is in `families`.

Facts on modules: transformers 5.23 (modeling_bert.py, modeling_roberta.py, modeling_distilbert.py,
modeling_electra.py, modeling_modernbert.py, modeling_eurobert.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Traits:
    """What of a model its sizes do not say.

    Attributes:
        activation: behind the classifier's dense layer.
        drops_first: the classifier drops before its dense layer, too.
        behind_padding: positions are counted from behind the padding id.
        drops_attention: the output projection of the attention has a dropout.
        norms_words: of a pre-norm model: there is a norm behind the embeddings, and none before the first attention.
        has_dense: of a pre-norm model: its heads are a dense layer, an activation and a norm; else a language model has
            none, and a classifier no norm.
        drops_states: of a pre-norm model: dropout acts elsewhere, too, than on the weights of the attention.
    """

    activation: Callable[[Tensor], Tensor] = torch.tanh
    drops_first: bool = False
    behind_padding: bool = False
    drops_attention: bool = True
    norms_words: bool = False
    has_dense: bool = False
    drops_states: bool = False


_ROBERTA = Traits(drops_first=True, behind_padding=True)
TRAITS: Mapping[str, Traits] = {
    "bert": Traits(),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Traits(activation=F.relu, drops_attention=False),
    "electra": Traits(activation=F.gelu, drops_first=True),
    "modernbert": Traits(norms_words=True, has_dense=True, drops_states=True),
    "eurobert": Traits(),
}
