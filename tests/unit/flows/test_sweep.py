"""A sweep draws values inside its ranges, keeps its trials on disk, and lists them best first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import optuna
import prefect
import pytest

from flows import graph, sweep
from polyweft.config import parse_section
from polyweft.errors import ConfigError, FlowError

SPACE = {
    "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "train.batch_size": {"choices": [16, 32]},
}


def params(**changes: Any) -> sweep.SweepParams:
    content = {"trials": 2, "stage": "train", "target": "score", "direction": "maximize", "space": SPACE}
    return parse_section(sweep.SweepParams, "sweep", {**content, **changes}, where="a test")


def tell(study: optuna.Study, name: str, value: float) -> None:
    trial = study.ask()
    for key, values in params().space.items():
        drawn = values.suggest(trial, key)
        assert drawn in (16, 32) if key == "train.batch_size" else 1e-4 <= drawn <= 1e-2
    trial.set_user_attr("experiment", name)
    study.tell(trial, value)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    return sweep._study(params(), "search", seed=1)


def test_trials_are_there_again_after_the_process_ended(study: optuna.Study) -> None:
    tell(study, "search-0", 0.5)
    tell(study, "search-1", 0.7)
    again = sweep._study(params(), "search", seed=1)
    assert [trial.value for trial in sweep._done(again)] == [0.5, 0.7]


def test_a_search_that_goes_on_tries_what_it_has_not_tried(study: optuna.Study) -> None:
    tell(study, "search-0", 0.5)
    tell(study, "search-1", 0.7)
    again = sweep._study(params(), "search", seed=1)
    tell(again, "search-2", 0.6)
    rates = [trial.params["train.lr"] for trial in again.trials]
    assert len(set(rates)) == 3, rates


@pytest.mark.parametrize(("direction", "best"), [("maximize", "search-1"), ("minimize", "search-0")])
def test_the_table_has_the_best_first_and_says_how_to_take_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str, best: str
) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    asked = params(direction=direction)
    study = sweep._study(asked, "search", seed=1)
    tell(study, "search-0", 0.5)
    tell(study, "search-1", 0.7)
    lines = sweep.table(study, asked).splitlines()
    assert lines[0].split() == ["experiment", "score", "train.lr", "train.batch_size"]
    assert lines[1].startswith(best)
    assert lines[-1] == f"best: {best}    take it over: dvc exp apply {best}"
    assert [line for line in lines if line != line.rstrip()] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 1.0, "high": 0.1},
        {"low": 1.0},
        {"choices": []},
        {"low": 0.0, "high": 1.0, "choices": [1]},
        {"low": 0.0, "high": 1.0, "log": True},
    ],
    ids=["turned round", "half", "no choice", "both", "logarithm of 0"],
)
def test_a_range_of_neither_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"a list of choices|a logarithm needs more than 0"):
        params(space={"train.lr": wrong})


def test_between_whole_numbers_whole_numbers_are_drawn(study: optuna.Study) -> None:
    asked = params(space={"train.epochs": {"low": 2, "high": 4}}).space["train.epochs"]
    drawn = {asked.suggest(study.ask(), "train.epochs") for _ in range(12)}
    assert drawn <= {2, 3, 4}
    assert all(isinstance(value, int) for value in drawn)


def test_a_search_that_fell_short_says_by_how_much(study: optuna.Study) -> None:
    tell(study, "search-0", 0.5)
    for _ in range(5):
        study.tell(study.ask(), state=sweep._failed())
    said = sweep.table(study, params(trials=3)).splitlines()[-1]
    assert said.startswith("1 of 3 trials finished; stopped at 6 tries.")
    assert "--trials" in said
    whole = sweep.table(study, params(trials=1)).splitlines()[-1]
    assert whole.startswith("best: search-0"), "with as many as were asked for there is nothing to say"


def test_a_search_of_which_no_trial_finishes_stops_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))

    def as_it_is(work: Any = None, **_: Any) -> Any:
        return work or as_it_is

    tried = []

    def fail(name: str, *_: Any, **__: Any) -> None:
        tried.append(name)
        raise FlowError("the loss is not finite. Lower train.lr.")

    monkeypatch.setattr(prefect, "flow", as_it_is)  # a server of seconds decides nothing here
    monkeypatch.setattr(prefect, "task", as_it_is)
    monkeypatch.setattr(prefect, "get_run_logger", lambda: logging.getLogger("a test"))
    monkeypatch.setattr(graph, "experiment", fail)
    for _ in range(2):  # the second time there is nothing left to try
        with pytest.raises(FlowError, match=r"none of search's 4 tries finished\. .*--trials"):
            sweep.sweep(params(), "search", seed=1)
    assert tried == ["search-0", "search-1", "search-2", "search-3"]
