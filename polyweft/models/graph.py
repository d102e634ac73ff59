"""Modality `graph`: message passing over a scene graph's nodes and edges, in plain PyTorch.

Takes arrays (B, N, X) as `polyweft.data.graph.Reader` gives them; a token is a node.
Shape suffixes: B rows, N nodes (M of the other end), X columns, R relation columns, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from polyweft.config import Section
from polyweft.data.graph import GraphSpec
from polyweft.data.graph import Reader as GraphReader


class Params(Section):
    """`model.encoders.graph`: the most nodes, columns for hashed words, and the network's width and depth."""

    nodes: int = Field(ge=1, le=256, description="of the largest graph; one with more is refused")
    names: int = Field(default=64, ge=4, le=4096, description="columns for the nodes' names")
    attributes: int = Field(default=64, ge=4, le=4096, description="columns for their attributes")
    relations: int = Field(default=32, ge=4, le=1024, description="columns for the edges' relations")
    features: int = Field(default=0, ge=0, le=4096, description="numbers that each node brings along")
    width: int = Field(ge=8, le=2048)
    layers: int = Field(default=2, ge=0, le=24, description="rounds of messages")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


def reader_spec(params: Params) -> dict[str, Any]:
    """The settings of the array that are saved with the model and that serving applies."""
    return GraphSpec(
        nodes=params.nodes,
        names=params.names,
        attributes=params.attributes,
        relations=params.relations,
        features=params.features,
    ).to_dict()


def build(params: Params, reader: GraphReader) -> nn.Module:
    """The encoder; it takes graphs float32 (B, N, X)."""
    return GraphEncoder(params, reader.spec)


class Messages(nn.Module):
    """One round of messages (Gilmer et al., 2017) with edge features, behind a LayerNorm and a residual.

    The message along an edge is GELU(source + target + relation), each through a Linear layer of its own.
    A node takes in the mean of the messages that come to it and, apart, of those that leave it.
    """

    def __init__(self, width: int, relations: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.source, self.target = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.relation = nn.Linear(relations, width, bias=False)
        self.update = nn.Sequential(
            nn.Linear(3 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x_BND: Tensor, edges_BNMR: Tensor, there_BNM1: Tensor) -> Tensor:
        """Nodes (B, N, D) to nodes (B, N, D); `there` is 1 where an edge leads from N to M."""
        h_BND = self.norm(x_BND)
        along_BNMD = self.source(h_BND)[:, :, None] + self.target(h_BND)[:, None] + self.relation(edges_BNMR)
        message_BNMD = functional.gelu(along_BNMD) * there_BNM1
        leave_BND = message_BNMD.sum(dim=2) / there_BNM1.sum(dim=2).clamp(min=1.0)
        come_BMD = message_BNMD.sum(dim=1) / there_BNM1.sum(dim=1).clamp(min=1.0)
        out: Tensor = x_BND + self.update(torch.cat([h_BND, leave_BND, come_BMD], dim=2))
        return out


class GraphEncoder(nn.Module):
    """A scene graph to one feature vector: the mean over its nodes after the rounds of messages.

    The order of the nodes does not matter.
    """

    def __init__(self, params: Params, spec: GraphSpec) -> None:
        super().__init__()
        self.nodes, self.node_width, self.relations = spec.nodes, spec.node_width, spec.relations
        self.inner = nn.Linear(spec.node_width, params.width)
        self.rounds = nn.ModuleList(
            Messages(params.width, spec.relations, params.dropout) for _ in range(params.layers)
        )
        self.norm = nn.LayerNorm(params.width)
        self.out_features = params.width

    def tokens(self, graph_BNX: Tensor) -> Tensor:
        """Graphs (B, N, X) to a vector a node (B, N, D), zero where there is no node."""
        edges_BNMR = graph_BNX[:, :, self.node_width :].reshape(-1, self.nodes, self.nodes, self.relations)
        there_BNM1 = (edges_BNMR != 0).any(dim=3, keepdim=True).to(graph_BNX.dtype)
        x_BND = self.inner(graph_BNX[:, :, : self.node_width])
        for layer in self.rounds:
            x_BND = layer(x_BND, edges_BNMR, there_BNM1)
        out: Tensor = self.norm(x_BND) * graph_BNX[:, :, :1]
        return out

    def forward(self, graph_BNX: Tensor) -> Tensor:
        """Graphs (B, N, X) to features (B, D)."""
        present_BN1 = graph_BNX[:, :, :1]
        out: Tensor = self.tokens(graph_BNX).sum(dim=1) / present_BN1.sum(dim=1).clamp(min=1.0)
        return out
