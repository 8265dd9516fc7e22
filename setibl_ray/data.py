"""`python -m setibl_ray.data synth | inject | simulate | pack | verify`: make a data set, or verify one.

Only what parsing needs is imported here; each command imports the rest, so that --help is quick.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from pydantic_settings import CliPositionalArg, CliSubCommand, SettingsConfigDict, get_subcommand

from setibl_ray import cli
from setibl_ray.core import terminal
from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.observations.injection_recipe import Bins, InjectionRecipe


class Flags(cli.Flags):
    """Flags of commands that write shards."""

    out: Path
    """Folder to write; it must not exist, or be empty."""
    processes: PositiveInt | None = None
    """Number of processes [one per core]."""


class Synth(Recipe, Flags):
    """Synthesise cadences with needles, interference and hard negatives."""

    def run(self) -> None:
        from setibl_ray.seti.making.synth import write_synthetic

        recipe = Recipe(**self.model_dump(exclude={"out", "processes"}))
        with _progress("synthesising", recipe.n_shards("train") + recipe.n_shards("test")) as step:
            path = write_synthetic(recipe, self.out, n_processes=self.processes, on_shard=step)
        _say_written(path)


class Pack(Flags):
    """Turn Kaggle's folder of .npy files into shards."""

    kaggle: Path
    """Folder with train/, test/ and train_labels.csv."""
    shards: PositiveInt = 20
    """Number of training shards."""
    test_shards: PositiveInt = 10
    """Number of test shards."""
    seed: int = 0
    """Seed that decides which shard a cadence goes to."""
    group_column: str | None = None
    """Column of train_labels.csv and sample_submission.csv that names groups."""
    df_hz: PositiveFloat = 2.7939677238464355
    """Width of a frequency bin, Hz."""
    dt_s: PositiveFloat = 1.0737418240
    """Length of a time bin, s."""
    robust: bool = False
    """Scale panels to sigmas by medians, so that bright lines hide nothing."""
    test_only: bool = False
    """Pack test/ only, which needs no labels."""

    def run(self) -> None:
        from setibl_ray.seti.making.pack import pack

        with _progress("packing", self.shards + self.test_shards) as step:
            path = pack(
                self.kaggle,
                self.out,
                n_shards=self.shards,
                n_test_shards=self.test_shards,
                seed=self.seed,
                group_column=self.group_column,
                say=terminal.say,
                df_hz=self.df_hz,
                dt_s=self.dt_s,
                robust=self.robust,
                test_only=self.test_only,
                n_processes=self.processes,
                on_shard=step,
            )
        _say_written(path)


class Inject(InjectionRecipe, Flags):
    """Cut windows out of observations and inject needles and look-alikes into them."""

    list: str
    """CSV with one line per observation: observation, session, band, file_1 … file_6."""

    def run(self) -> None:
        from setibl_ray.seti.observations.injection import inject

        recipe = InjectionRecipe(**self.model_dump(exclude={"list", "out", "processes"}))
        with _progress("injecting", recipe.shards) as step:
            path = inject(self.list, self.out, recipe, n_processes=self.processes, on_shard=step)
        _say_written(path)


class Simulate(cli.Flags):
    """Simulate an observation with interference and needles, as six .h5 files."""

    out: Path
    """Folder to write; it must not exist, or be empty."""
    seed: int = 0
    """Seed of all random numbers."""
    session: str = "session-1"
    """Name of the observation's session."""
    snr: Bins = ()
    """S/N of the needles, such as 8,10,15 [no needles]."""
    per_snr: PositiveInt = 12
    """Number of slow needles at each S/N, and of fast ones at each from 50."""

    def run(self) -> None:
        from setibl_ray.seti.observations.simulating import Sky, simulate

        snr = tuple(map(float, self.snr))
        sky = Sky(self.seed, self.session, snr=snr, per_snr=self.per_snr, tstart_mjd=60600.0 + self.seed)
        print(f"observation: {simulate(sky, self.out)}")


class Verify(cli.Flags):
    """Decode every record of a set, compare checksums and counts, and show its balance."""

    dir: CliPositionalArg[str]
    """Folder or URL (gs://, s3://)."""
    threads: PositiveInt | None = None
    """Shards read at once [one per core]."""

    def run(self) -> None:
        from setibl_ray.seti.formats.shards import list_shards
        from setibl_ray.seti.making.verify import balance_tables, verify

        with _progress("verifying", len(list_shards(self.dir, needs=None))) as step:
            report = verify(self.dir, threads=self.threads, on_shard=step)
        console = terminal.console()
        for table in balance_tables(report):
            if table.row_count:
                console.print(table)
        for line in (*report.notes, f"fingerprint {report.fingerprint}"):
            terminal.say(line, console)
        errors = terminal.console(stderr=True)
        for problem in report.problems:
            terminal.say(problem, errors)
        if report.problems:
            raise DataError(
                f"{self.dir}: {len(report.problems)} problems, listed above. Copy or make the set again."
            )
        n_records = sum(len(table) for table in report.tables.values())
        terminal.say(f"{len(report.shards)} shards, {n_records} records: sound", console)


class Data(cli.Command):
    """Make and check data sets."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.data")

    synth: CliSubCommand[Synth]
    """Simulate cadences."""
    inject: CliSubCommand[Inject]
    """Cut windows from telescope files and inject signals into them."""
    simulate: CliSubCommand[Simulate]
    """Simulate the telescope files of an observation."""
    pack: CliSubCommand[Pack]
    """Turn .npy files into shards."""
    verify: CliSubCommand[Verify]
    """Check every record of a set."""


def main(options: Data) -> int:
    command = get_subcommand(options, is_required=False)
    if not isinstance(command, Synth | Inject | Simulate | Pack | Verify):
        raise ConfigError("expected a command: synth, inject, simulate, pack or verify (see --help)")
    command.run()
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a known error is one line on stderr."""
    return cli.run(Data, main, _join_pairs(list(sys.argv[1:] if argv is None else argv)))


def _join_pairs(argv: list[str]) -> list[str]:
    """`--snr 30 100` as `--snr 30,100`, the one form that pydantic-settings reads."""
    number = re.compile(r"[-+.\d][\d.e+-]*")
    joined, i = [], 0
    while i < len(argv):
        pair = argv[i + 1 : i + 3]
        if argv[i] in ("--snr", "--hard-snr") and len(pair) == 2 and all(map(number.fullmatch, pair)):
            joined += [argv[i], ",".join(pair)]
            i += 3
        else:
            joined.append(argv[i])
            i += 1
    return joined


@contextmanager
def _progress(what: str, n_shards: int) -> Iterator[Callable[[Any], None]]:
    """A bar over shards, drawn on a terminal only."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    console = terminal.console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=n_shards)
        yield lambda _: progress.advance(task)


def _say_written(path: Path) -> None:
    from setibl_ray.seti.formats.shards import read_index

    index = read_index(path, needs="train" if any(path.glob("train*.tfrec")) else "test")
    needles = int(index.train["target"].sum())
    terminal.say(
        f"{path}: {len(index.shards)} shards, {len(index.train)} train ({needles} needles) and "
        f"{len(index.test)} test cadences, fingerprint {index.fingerprint[:16]}"
    )


if __name__ == "__main__":
    sys.exit(entry())
