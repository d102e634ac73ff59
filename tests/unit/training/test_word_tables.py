"""What processes exchange of a word table's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyweft.models.text_bag import BagParams, TextBag
from polyweft.models.text_lstm import LstmParams, TextLstm
from polyweft.models.text_transformer import TextParams, TextTransformer
from polyweft.training.distributed import World
from polyweft.training.gradients import send_rows_of_word_tables

WORDS, END = 50, 49
CPU, GPU = World(0, 2, torch.device("cpu")), World(0, 2, torch.device("cuda", 0))
TOWERS = {
    "bag": lambda: TextBag(BagParams(width=8, hidden=8, features=8), vocabulary_size=WORDS, end_id=END),
    "lstm": lambda: TextLstm(LstmParams(width=8, hidden=8), vocabulary_size=WORDS, end_id=END),
    "transformer": lambda: TextTransformer(
        TextParams(width=16, layers=1, heads=2, dropout=0.0), vocabulary_size=WORDS, max_tokens=8, end_id=END
    ),
}


def _gradient(tower: nn.Module) -> Tensor:
    tower.zero_grad()
    tower(torch.tensor([[1, 7, 7, END], [1, 9, END, 0]])).square().sum().backward()
    (table,) = (value for value in tower.parameters() if value.shape[0] == WORDS)
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize("name", TOWERS)
def test_on_a_cpu_it_is_the_rows_of_the_batchs_words_and_nothing_is_lost(name: str) -> None:
    torch.manual_seed(5)
    tower = TOWERS[name]()
    whole = _gradient(tower)
    send_rows_of_word_tables(tower, CPU, compiled=False)
    rows = _gradient(tower)
    assert rows.is_sparse
    assert set(rows.coalesce().indices()[0].tolist()) <= {0, 1, 7, 9, END}
    torch.testing.assert_close(rows.to_dense(), whole)
    assert whole.abs().max() > 1e-5


@pytest.mark.parametrize(("world", "compiled"), [(GPU, False), (CPU, True)])
def test_where_rows_cannot_be_sent_it_is_the_whole_table(world: World, compiled: bool) -> None:
    tower = TOWERS["bag"]()
    send_rows_of_word_tables(tower, world, compiled=compiled)
    assert not _gradient(tower).is_sparse
