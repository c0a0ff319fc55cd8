"""What the kinds of text models compute otherwise than BERT; what they are called is in `families`.

Facts on modules: transformers 5.23 (modeling_bert.py, modeling_roberta.py, modeling_distilbert.py,
modeling_electra.py).
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
    """

    activation: Callable[[Tensor], Tensor] = torch.tanh
    drops_first: bool = False
    behind_padding: bool = False
    drops_attention: bool = True


_ROBERTA = Traits(drops_first=True, behind_padding=True)
TRAITS: Mapping[str, Traits] = {
    "bert": Traits(),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Traits(activation=F.relu, drops_attention=False),
    "electra": Traits(activation=F.gelu, drops_first=True),
}
