"""Search parameters with Optuna: `python -m flows.sweep`, each trial a DVC experiment over the same graph.

A trial is `dvc exp run --temp` with some keys of `params.yaml` set, so that a result is found again by its
experiment's name (`dvc exp show`, `dvc exp apply NAME`) and its runs stand in MLflow. The search itself is
kept in `.polyweft/sweeps/`: one that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from flows.served import answer
from polyweft.config import RuntimeParams, Section, load_section, parse_section, read_yaml
from polyweft.errors import FlowError
from polyweft.workspace import state_folder

if TYPE_CHECKING:
    import optuna

SETTINGS = Path("flows/sweep.yaml")
STARTING_TRIALS = 4
"""Trials drawn at random before the sampler learns from them."""
TRIES = 2
"""For every trial that is asked for: a search of which half the trials fail stops."""
MEND = "Mend what the failed ones said, then give a larger --trials, or another --name to begin anew."


class Range(Section):
    """The values of one key: numbers between `low` and `high`, or `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: list[Any] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Range:
        numbers = self.low is not None and self.high is not None and self.low < self.high
        if numbers == (self.choices is not None) or (self.choices is not None and not self.choices):
            raise ValueError("give low and high, low the smaller, or a list of choices")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"low is {self.low}, but a logarithm needs more than 0")
        return self

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """A value for `trial`; whole numbers where both ends are whole and no logarithm is asked for."""
        if self.choices is not None:
            return trial.suggest_categorical(key, self.choices)
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            return trial.suggest_int(key, self.low, self.high)
        return float(f"{trial.suggest_float(key, self.low, self.high, log=self.log):.4g}")


class SweepParams(Section):
    """The file of a sweep."""

    trials: int = Field(ge=1, le=10_000)
    stage: str
    target: str
    direction: Literal["maximize", "minimize"]
    space: dict[str, Range] = Field(min_length=1)


def sweep(params: SweepParams, name: str, seed: int) -> optuna.Study:
    """Run the trials that the study `name` still lacks; gives the study.

    Raises
    ------
    FlowError
        No trial finished.
    """
    from prefect import flow, get_run_logger, task

    from flows import graph

    study = _study(params, name, seed)

    def run_trial() -> None:
        trial = study.ask()
        settings = {key: values.suggest(trial, key) for key, values in params.space.items()}
        experiment = f"{name}-{trial.number}"
        trial.set_user_attr("experiment", experiment)

        @task(name=experiment, task_run_name=experiment, persist_result=False)
        def one_trial() -> float:
            logger = get_run_logger()
            logger.info("%s", settings)
            graph.experiment(experiment, settings, params.stage, on_line=logger.info)
            report = graph.experiment_report(experiment, params.stage)
            if params.target not in report:
                raise FlowError(
                    f"{params.stage}'s report has no {params.target!r}; it has {', '.join(sorted(report))}."
                )
            return float(report[params.target])

        try:
            study.tell(trial, one_trial())
        except FlowError as error:
            study.tell(trial, state=_failed())
            get_run_logger().warning("%s: %s", experiment, error)
        except BaseException:
            study.tell(trial, state=_failed())
            raise

    @flow(name="polyweft-sweep", validate_parameters=False, persist_result=False)
    def polyweft_sweep() -> None:
        while len(_done(study)) < params.trials:
            if len(study.trials) >= TRIES * params.trials:
                break
            run_trial()

    polyweft_sweep()
    if not _done(study):
        raise FlowError(f"none of {name}'s {len(study.trials)} tries finished. {MEND}")
    return study


def table(study: optuna.Study, params: SweepParams) -> str:
    """The trials, best first, the command that takes the best one over, and what the search fell short by."""
    done = sorted(_done(study), key=lambda t: float(t.value or 0.0), reverse=params.direction == "maximize")
    rows = [["experiment", params.target, *params.space]]
    rows += [
        [t.user_attrs["experiment"], f"{t.value:.4f}", *(str(t.params[key]) for key in params.space)]
        for t in done
    ]
    rows = [[*row[:2], *(_short(cell) for cell in row[2:])] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  ".join(row).rstrip() for row in cells]
    best = done[0].user_attrs["experiment"]
    lines += ["", f"best: {best}    take it over: dvc exp apply {best}"]
    if len(done) < params.trials:
        lines += [
            f"{len(done)} of {params.trials} trials finished; stopped at {len(study.trials)} tries. {MEND}"
        ]
    return "\n".join(lines)


def _study(params: SweepParams, name: str, seed: int) -> optuna.Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = state_folder() / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / f"{name}.jsonl"))),
        study_name=name,
        direction=params.direction,
        load_if_exists=True,
    )
    # The generator is not kept with the study: from `seed` alone it would draw the first trials again.
    study.sampler = optuna.samplers.TPESampler(
        seed=seed + len(study.trials), n_startup_trials=STARTING_TRIALS
    )
    return study


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _failed() -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def main(arguments: list[str]) -> int:
    """Command line: 0 with a table, 1 with one message, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description=__doc__)
    parser.add_argument("--file", type=Path, default=SETTINGS, help=f"what to try ({SETTINGS})")
    parser.add_argument("--name", default="sweep", help="of the search; an ended one goes on (sweep)")
    parser.add_argument("--trials", type=int, help="instead of the file's number")
    given = parser.parse_args(arguments)

    def work() -> str:
        content = read_yaml(given.file)
        if given.trials is not None:
            content["trials"] = given.trials
        params = parse_section(SweepParams, "sweep", content, where=str(given.file))
        study = sweep(params, given.name, load_section(RuntimeParams, "runtime").seed)
        return table(study, params)

    return answer("sweep", work, after_stop=" Run it again to go on.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
