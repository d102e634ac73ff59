"""Samples of the machine have MLflow's names, come while the block runs, and end with it."""

from __future__ import annotations

import threading
import time

import psutil

from polyweft.training.system_metrics import process_megabytes, sample, sampled


def test_a_sample_has_mlflows_names_and_plausible_values() -> None:
    values = sample()
    assert {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/system_memory_usage_percentage",
    } <= set(values)
    total = psutil.virtual_memory().total / 1e6
    assert 0 < values["system/system_memory_usage_megabytes"] < total
    assert 50 < values["system/process_memory_usage_megabytes"] < total
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100


def test_memory_that_is_taken_shows() -> None:
    before = process_megabytes()
    taken = bytearray(b"x" * 60_000_000)
    assert 40 < process_megabytes() - before < 100
    del taken


def test_samples_come_until_the_block_ends() -> None:
    seen: list[tuple[dict[str, float], int]] = []
    with sampled(lambda values, step: seen.append((values, step)), seconds=0.05):
        time.sleep(0.4)
    count = len(seen)
    time.sleep(0.2)
    assert len(seen) == count >= 3
    assert [step for _, step in seen] == list(range(count))
    assert not any(thread.name == "system-metrics" for thread in threading.enumerate())


def test_without_a_log_nothing_is_started() -> None:
    with sampled(None):
        assert not any(thread.name == "system-metrics" for thread in threading.enumerate())
