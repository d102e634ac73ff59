"""Scene graphs become one array; what is no graph is refused with the place of the fault."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.graph import GraphDecodeError, GraphSpec, Reader, parse_graph

SPEC = GraphSpec(nodes=4, names=32, attributes=32, relations=16, features=2)


def packed(nodes: Any, edges: Any = (), **more: Any) -> bytes:
    return json.dumps({"nodes": nodes, "edges": list(edges), **more}).encode()


def test_a_node_is_its_words_its_place_and_its_numbers() -> None:
    node = {"name": "circle", "attributes": ["red", "big"], "position": [0.25, 0.5], "features": [3.0, -1.0]}
    row = Reader(SPEC.to_dict()).raw(packed([node]))[0]
    assert row[0] == 1.0
    assert row[1:33].sum() == 1.0
    assert row[33:65].sum() == 2.0
    assert row[65:70].tolist() == [1.0, 0.25, 0.5, 3.0, -1.0]
    assert not row[70:].any()


def test_rows_behind_the_last_node_are_zero_and_edges_stand_at_their_source() -> None:
    nodes = [{"name": "a", "id": "x"}, {"name": "b", "id": "y"}, {"name": "c", "id": 7}]
    edges = [{"source": "x", "target": 7, "relation": "on"}, {"source": "y", "target": "x"}]
    array = Reader(SPEC.to_dict()).raw(packed(nodes, edges))
    assert not array[3].any()
    links = array[:, SPEC.node_width :].reshape(4, 4, 16).sum(axis=2)
    assert np.argwhere(links).tolist() == [[0, 2], [1, 0]]  # an edge without a word is an edge all the same
    assert np.unique(links).tolist() == [0.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="abcdefgh", min_size=1, max_size=4), min_size=1, max_size=4), st.randoms())
def test_moving_the_nodes_moves_their_rows_alone(names: list[str], random: Any) -> None:
    reader = Reader(SPEC.to_dict())
    order = random.sample(range(len(names)), len(names))
    edges = [{"source": f"n{i}", "target": f"n{(i + 1) % len(names)}", "relation": "r"} for i in order]
    nodes = [{"id": f"n{i}", "name": name} for i, name in enumerate(names)]
    one = reader.raw(packed(nodes, edges))
    two = reader.raw(packed([nodes[i] for i in order], edges))
    width = SPEC.node_width
    np.testing.assert_array_equal(one[order, :width], two[: len(names), :width])
    links = [array[:, width:].reshape(4, 4, 16)[: len(names), : len(names)] for array in (one, two)]
    np.testing.assert_array_equal(links[0][np.ix_(order, order)], links[1])


def test_the_same_word_gives_the_same_columns_whatever_its_case() -> None:
    reader = Reader(SPEC.to_dict())
    np.testing.assert_array_equal(*reader.read([packed([{"name": name}]) for name in ("Circle", " circle")]))
    rows = reader.read([packed([{"name": f"word {n}"}]) for n in range(60)])[:, 0]
    assert len(np.unique(rows, axis=0)) > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "no list of objects"),
        (b'{"nodes": [1]}', "`nodes` is no list of objects"),
        (packed([]), "has no nodes"),
        (packed([{"name": 1}]), r"nodes\[0\]: name"),
        (packed([{}, {"attributes": [1]}]), r"nodes\[1\]: attributes"),
        (packed([{"position": [1.0]}]), "expected x and y"),
        (packed([{"position": [1.0, "b"]}]), "finite numbers"),
        (b'{"nodes": [{"position": [NaN, 1]}]}', "finite numbers"),
        (b'{"nodes": [{"features": [1e999]}]}', "finite numbers"),
        (packed([{"features": [10**400]}]), "finite numbers"),
        (packed([{"features": [1.0]}]), "has 1 features; the model takes 2"),
        (packed([{}] * 5), "has 5 nodes; the model takes 4 at most"),
        (packed([{"id": "a"}, {"id": "a"}]), "of its own"),
        (packed([{}], [{"source": 0, "target": 1}]), r"edges\[0\]: target is 1"),
        (packed([{}], [{"source": True, "target": 0}]), r"edges\[0\]: source"),
        (packed([{}], [{"source": 0, "target": 0, "relation": 3}]), "expected a word"),
        (b'{"nodes": [{"name": "\\ud800"}]}', "half of a character"),
    ],
)
def test_what_is_no_graph_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(GraphDecodeError, match=message):
        Reader(SPEC.to_dict()).raw(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("name", "id", "attributes", "position", "features"), JSON)
        ),
        max_size=3,
    ),
    st.lists(st.fixed_dictionaries({"source": JSON, "target": JSON, "relation": JSON}), max_size=2),
)
def test_any_json_is_a_graph_or_refused(nodes: list[Any], edges: list[Any]) -> None:
    content = packed(nodes, edges)
    try:
        graph = parse_graph(content)
    except GraphDecodeError:
        return
    assert len(graph.nodes) == len(nodes)
    assert len(graph.edges) == len(edges)
