"""Bytes to scene graphs: JSON to one array of node and edge features, for training, checks and serving.

A graph is JSON:

    {"nodes": [{"name": "circle", "attributes": ["red", "big"], "position": [0.2, 0.5]}, {"name": "star"}],
     "edges": [{"source": 0, "target": 1, "relation": "left_of"}]}

A node is named, has attributes (words), a position (x and y, from 0 to 1) and `features` (numbers), each of
which may be missing; an edge names its nodes by their place or by their `id`. Words need no vocabulary:
each is hashed to places of a vector (Weinberger et al., "Feature Hashing for Large Scale Multitask
Learning", 2009). Serving runs this file verbatim in an environment of its own, so it imports the standard
library and numpy (1.26 and 2) only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_BYTES = 16 * 2**20
PRESENT = 1
"""The first column of a node's row: 1 where there is a node."""

_POSITION = 3  # whether there is one, x, y
_LARGEST = 3e38  # what float32 holds; NaN is not below it either
_HASHES = 2  # places a word: that two words share both is rare

Floats = npt.NDArray[np.float32]


class GraphDecodeError(ValueError):
    """Bytes that are not a scene graph, or one over a limit; the message says where."""


@dataclass(frozen=True)
class GraphSpec:
    """How a graph's bytes become the model's array; it is saved with the model.

    Attributes
    ----------
    nodes
        N, the most nodes that a graph may have.
    names, attributes, relations
        Columns that the words of each kind are hashed into.
    features
        Numbers that a node's `features` hold; 0 for none.
    """

    nodes: int
    names: int
    attributes: int
    relations: int
    features: int

    def __post_init__(self) -> None:
        if min(self.nodes, self.names, self.attributes, self.relations) < 1 or self.features < 0:
            raise ValueError("nodes, names, attributes and relations must be at least 1, features at least 0")

    @property
    def node_width(self) -> int:
        """Columns that tell of a node by itself; its edges follow."""
        return PRESENT + self.names + self.attributes + _POSITION + self.features

    @property
    def width(self) -> int:
        """X, the columns of a node's row: its own, then `relations` to each of the `nodes`."""
        return self.node_width + self.nodes * self.relations

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class Reader:
    """Modality `graph`: JSON bytes to an array; `spec` is `GraphSpec`'s dictionary."""

    tensor = "scene_graph"
    dtype = raw_dtype = "float32"
    pad = 0

    def __init__(self, spec: dict[str, Any], folder: Path | None = None) -> None:
        self.spec = GraphSpec(**spec)
        self.shape = self.raw_shape = [self.spec.nodes, self.spec.width]

    def raw(self, content: bytes) -> Floats:
        """float32 [nodes, width]; raises `GraphDecodeError`."""
        return encode_graph(parse_graph(content), self.spec)

    def finish(self, raw: Floats) -> Floats:
        """The rows are what the model takes."""
        return raw

    def read(self, contents: Sequence[bytes]) -> Floats:
        """JSON graphs to float32 [B, nodes, width]."""
        rows = [self.raw(content) for content in contents]
        return np.stack(rows) if rows else np.zeros((0, *self.shape), np.float32)


@dataclass(frozen=True)
class Node:
    """A checked node; `position` is empty where it has none."""

    name: str
    attributes: list[str]
    position: list[float]
    features: list[float]


@dataclass(frozen=True)
class Graph:
    """A checked graph; an edge is (source, target, relation) with the nodes' places."""

    nodes: list[Node]
    edges: list[tuple[int, int, str]]


def parse_graph(data: bytes) -> Graph:
    """Read and check a graph's JSON.

    Raises
    ------
    GraphDecodeError
        Not JSON of the form above, without nodes, over `MAX_BYTES`, or an edge to a node that is not there.
    """
    if not data:
        raise GraphDecodeError("graph is empty (0 bytes)")
    if len(data) > MAX_BYTES:
        raise GraphDecodeError(f"graph of {len(data)} bytes is over the limit of {MAX_BYTES}")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise GraphDecodeError(f"graph of {len(data)} bytes is not JSON: {error}") from None
    nodes = _objects(content, "nodes")
    edges = _objects(content, "edges", optional=True)
    if not nodes:
        raise GraphDecodeError("graph has no nodes")
    places: dict[Any, int] = {}
    for place, node in enumerate(nodes):
        identity = node.get("id", place)
        if not isinstance(identity, str | int) or isinstance(identity, bool) or identity in places:
            raise GraphDecodeError(f"nodes[{place}]: id {identity!r} is not text or a number of its own")
        places[identity] = place
    return Graph(
        [_node(node, place) for place, node in enumerate(nodes)],
        [_edge(edge, place, places) for place, edge in enumerate(edges)],
    )


def encode_graph(graph: Graph, spec: GraphSpec) -> Floats:
    """A graph as float32 [nodes, width]; the rows behind its last node are zero.

    A row holds 1, its name's and its attributes' hashed words, whether it has a position, x, y, its
    features, and then for each of the `nodes` the hashed words of the relations that lead there.
    """
    if len(graph.nodes) > spec.nodes:
        raise GraphDecodeError(f"graph has {len(graph.nodes)} nodes; the model takes {spec.nodes} at most")
    out = np.zeros((spec.nodes, spec.width), np.float32)
    for row, node in zip(out, graph.nodes, strict=False):
        row[0] = 1.0
        at = PRESENT
        _add_word(row[at : at + spec.names], node.name)
        at += spec.names
        for word in node.attributes:
            _add_word(row[at : at + spec.attributes], word)
        at += spec.attributes
        if node.position:
            row[at : at + _POSITION] = [1.0, *node.position]
        at += _POSITION
        if len(node.features) not in (0, spec.features):
            raise GraphDecodeError(
                f"a node has {len(node.features)} features; the model takes {spec.features}"
            )
        row[at : at + len(node.features)] = node.features
    for source, target, relation in graph.edges:
        at = spec.node_width + target * spec.relations
        _add_word(out[source, at : at + spec.relations], relation)
    return out


def _add_word(columns: Floats, word: str) -> None:
    if word:
        for place in _places(word, len(columns)):
            columns[place] += 1.0 / _HASHES


@lru_cache(maxsize=65536)
def _places(word: str, columns: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(word.strip().lower().encode("utf-8"), digest_size=8 * _HASHES).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "big") % columns for i in range(_HASHES))


def _objects(content: Any, key: str, *, optional: bool = False) -> list[dict[str, Any]]:
    entries = content.get(key, [] if optional else None) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise GraphDecodeError(
            f'graph must be an object with "nodes" and "edges": `{key}` is no list of objects'
        )
    return entries


def _node(node: dict[str, Any], place: int) -> Node:
    name, attributes = node.get("name", ""), node.get("attributes", [])
    if isinstance(attributes, dict):
        attributes = [f"{key}={value}" for key, value in sorted(attributes.items())]
    if not isinstance(name, str) or not isinstance(attributes, list):
        raise GraphDecodeError(f"nodes[{place}]: name must be text, and attributes a list of words")
    if not all(isinstance(word, str) for word in attributes):
        raise GraphDecodeError(f"nodes[{place}]: attributes holds {attributes!r}; expected words")
    position = _numbers(node.get("position"), f"nodes[{place}].position")
    if len(position) not in (0, 2):
        raise GraphDecodeError(f"nodes[{place}]: position is {position}; expected x and y")
    features = _numbers(node.get("features"), f"nodes[{place}].features")
    return Node(_checked(name, place), [_checked(word, place) for word in attributes], position, features)


def _checked(word: str, place: int) -> str:
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        raise GraphDecodeError(f"graph holds a word with half of a character, at entry {place}") from None
    return word


def _numbers(value: Any, where: str) -> list[float]:
    numbers = [] if value is None else value
    if not isinstance(numbers, list) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < _LARGEST for one in numbers
    ):
        raise GraphDecodeError(f"{where} is {str(value)[:80]}; expected a list of finite numbers")
    return [float(one) for one in numbers]


def _edge(edge: dict[str, Any], place: int, places: dict[Any, int]) -> tuple[int, int, str]:
    ends = []
    for key in ("source", "target"):
        end = edge.get(key)
        if not isinstance(end, str | int) or isinstance(end, bool) or end not in places:
            raise GraphDecodeError(f"edges[{place}]: {key} is {end!r}, and no node is called so")
        ends.append(places[end])
    relation = edge.get("relation", "")
    if not isinstance(relation, str):
        raise GraphDecodeError(f"edges[{place}]: relation is {relation!r}; expected a word")
    # An edge without a word is an edge all the same.
    return ends[0], ends[1], _checked(relation, place) or "related"
