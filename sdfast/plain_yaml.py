"""YAML of a size that a person would write: what nests, repeats itself or multiplies by aliases is refused unread."""

from __future__ import annotations

from typing import Any

import yaml

_LEVELS = 32
_VALUES = 10_000  # after aliases have been followed


class _TooMuch(ValueError):
    """A document has more values, or deeper levels, than are read."""


class _Loader(yaml.SafeLoader):
    """Its scanner takes a time that grows with the square of open brackets, of which it has no limit."""

    def fetch_flow_collection_start(self, kind: Any) -> None:
        if self.flow_level > _LEVELS:
            raise _TooMuch("it is nested too deeply")
        super().fetch_flow_collection_start(kind)


def load_yaml(text: str) -> Any:
    """The value of a YAML document; anchors and aliases may be used.

    Raises:
        ValueError: it is not YAML, or of more than 10,000 values or 32 levels; the message is the end of a sentence.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            _check(node)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise _TooMuch("it is nested too deeply") from None
    except _TooMuch:
        raise
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # of the library, at a value of a kind
        raise ValueError(f"a value is none of its kind ({error})") from error


def _check(node: yaml.Node | None) -> None:
    """Walk the nodes level by level, each as often as aliases name it.

    Raises:
        _TooMuch: there are too many, or too many levels, as where one holds itself.
    """
    level, count = [node], 0
    for _ in range(_LEVELS):
        count += len(level)
        if count > _VALUES:
            raise _TooMuch(f"it has more than {_VALUES:,} values, aliases followed")
        level = [part for each in level if each is not None for part in _parts(each)]
        if not level:
            return
    raise _TooMuch("it is nested too deeply")


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
