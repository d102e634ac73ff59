"""The schedule rises to its peak and falls to zero; vectors do not decay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyweft.training.optim import adamw, learning_rate


@given(peak=st.floats(1e-6, 1.0), warmup=st.integers(0, 50), extra=st.integers(1, 500))
def test_the_rate_stays_within_zero_and_its_peak(peak: float, warmup: int, extra: int) -> None:
    total = warmup + extra
    rates = [learning_rate(step, peak=peak, warmup=warmup, total=total) for step in range(total)]
    assert all(0.0 <= rate <= peak * (1 + 1e-9) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_norms_and_biases_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decays = {
        parameter.ndim: group["weight_decay"]
        for group in adamw(module, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.98]).param_groups
        for parameter in group["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}
