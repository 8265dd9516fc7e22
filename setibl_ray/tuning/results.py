"""What a sweep found: trials.csv, best.yaml, sweep.html, confirm.csv, and the same in a few lines of text."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import pandas as pd

from setibl_ray.config import Config
from setibl_ray.data.shards import DataIndex
from setibl_ray.randomness import stream_key
from setibl_ray.tuning.compare import Comparison, against_base, confirmed
from setibl_ray.tuning.ledger import DEFAULT, Ledger, Trial
from setibl_ray.tuning.search import study_of
from setibl_ray.tuning.space import Space, apply

SHOWN = 8


@dataclass(frozen=True)
class Results:
    """A sweep's outcome, complete or so far.

    Attributes:
      root: the sweep's folder.
      table: trials.csv.
      best: the best finished trial; None before one is finished.
      config: its config.
      against_base: the best against the base config on the same rows; None where the base is the best or is missing.
      confirmed: the same with other seeds, where that was asked for.
    """

    root: str
    table: pd.DataFrame
    best: Trial | None
    config: Config | None
    against_base: Comparison | None
    confirmed: Comparison | None

    def lines(self) -> list[str]:
        """At most 20 lines."""
        if self.best is None:
            return [f"no trial is finished; {self.root}/trials.csv says how far each came"]
        lines = ["trial  state     OOF AUC  " + "  ".join(self._names)]
        done = self.table[self.table["state"] == "done"].sort_values("auc", ascending=False, kind="stable")
        for row in done.head(SHOWN).to_dict("records"):
            values = [_shown(row[name]).rjust(len(name)) for name in self._names]
            if row["trial"] == DEFAULT:
                values = ["(the base config)"]
            lines.append(f"{row['trial']:5d}  {row['state']:8}  {row['auc']:.4f}   " + "  ".join(values))
        counts = self.table["state"].value_counts()
        lines.append(
            ", ".join(f"{count} {state}" for state, count in counts.items())
            + f"; {int(self.table['fold_epochs'].sum())} fold-epochs trained"
        )
        lines.append(self._verdict())
        if self.confirmed is not None:
            lines.append(f"With other seeds: {self.confirmed}.")
        lines.append(f"best config: {self.root}/best.yaml   page: {self.root}/sweep.html")
        return lines

    @property
    def _names(self) -> list[str]:
        fixed = (
            "trial",
            "state",
            "auc",
            "auc_low",
            "auc_high",
            "folds_done",
            "fold_epochs",
            "started_s",
            "ended_s",
            "message",
        )
        return [name for name in self.table if name not in fixed]

    def _verdict(self) -> str:
        if self.best is not None and self.best.number == DEFAULT:
            return "No finished trial is better than the base config."
        number = self.best.number if self.best else None
        if self.against_base is None:
            return f"Trial {number} is the best; the base config is not finished to compare with."
        return f"Best trial {number} against the base config: {self.against_base}."


def confirm_root(root: str, best: Trial) -> str:
    """The folder of the confirmation of `best`; another best has another."""
    return f"{root}/confirm/trial-{best.name}"


def confirm_seeds(base: Config, n_seeds: int) -> list[int]:
    """Seeds other than the sweep's own, the same each time they are asked for."""
    return [stream_key(base.seed, "confirm", i) % 2**32 for i in range(n_seeds)]


def write_results(ledger: Ledger, space: Space, base: Config, index: DataIndex) -> Results:
    """Compare what is finished and write the sweep's tables and page."""
    from setibl_ray.reporting import sweep_page

    table = ledger.table(space.names)
    ledger.folder.write_csv("trials.csv", table)
    best, config, against, again = ledger.best, None, None, None
    if best is not None:
        config = apply(base, best.values)
        ledger.folder.write("best.yaml", config.to_yaml())
        group = index.train["group"]
        default = ledger.trials.get(DEFAULT)
        if best.number != DEFAULT and default is not None and default.state == "done":
            n_tried = sum(trial.number != DEFAULT for trial in ledger.trials.values())
            against = against_base(_oof(ledger, best), _oof(ledger, default), group, n_tried)
            again = _confirmed(ledger, best, group)
    results = Results(ledger.root, table, best, config, against, again)
    content = sweep_page.Sweep(
        table=table,
        fields=[sweep_page.Searched(field.name, field.is_log, field.options) for field in space],
        base=space.default(base) or {},
        reports={trial.number: ledger.reports(trial) for trial in ledger.trials.values()},
        importance=_importance(ledger, space, base),
        best=None if best is None else best.number,
        lines=results.lines(),
    )
    ledger.folder.write("sweep.html", sweep_page.draw(content))
    return results


def _confirmed(ledger: Ledger, best: Trial, group: pd.Series) -> Comparison | None:
    again = Ledger(confirm_root(ledger.root, best))
    again.load()
    by_seed: dict[int, dict[bool, Trial]] = {}
    for trial in again.done:
        by_seed.setdefault(trial.values["seed"], {})[len(trial.values) > 1] = trial
    whole = {seed: pair for seed, pair in by_seed.items() if len(pair) == 2}
    if not whole:
        return None
    pairs = [(_oof(again, pair[True]), _oof(again, pair[False])) for pair in whole.values()]
    rows = [
        {"seed": seed, "auc_best": pair[True].auc, "auc_base": pair[False].auc}
        for seed, pair in whole.items()
    ]
    table = pd.DataFrame(rows).assign(difference=lambda t: t["auc_best"] - t["auc_base"])
    ledger.folder.write_csv("confirm.csv", table)
    return confirmed(pairs, [group] * len(pairs))


def _oof(ledger: Ledger, trial: Trial) -> pd.DataFrame:
    return ledger.run_folder(trial).read_csv("oof.csv")


def _importance(ledger: Ledger, space: Space, base: Config) -> dict[str, float]:
    """Field -> share of the finished trials' variance in AUC (fANOVA); empty where there are too few to say."""
    import optuna

    if len(ledger.done) < 4:
        return {}
    study = study_of(space, base, ledger.done, ledger.reports)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # all finished trials are equal, or stand at one point
            return {}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
