"""The search space: what YAML may say, what is refused before anything starts, what is drawn."""

import numpy as np
import pytest

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.tuning.ledger import Trial
from setibl_ray.core.tuning.search import suggest
from setibl_ray.core.tuning.space import Field, apply, check_space, parse_space
from setibl_ray.seti.config import Config, parse
from setibl_ray.seti.task import CadenceTask

BASE = parse({"model": "efficientnet-nano", "weights": "none", "batch_size": 16, "folds": 3})


def test_yaml_gives_fields_by_their_flags_nested_or_dotted():
    space = parse_space(
        {
            "schedule.lr-max": {"loguniform": [1e-4, "1e-2"]},
            "augment": {"dropout_size": {"uniform": [0, 0.2]}, "dropout-count": {"randint": [1, 9]}},
            "model": {"choice": ["efficientnet-nano", "efficientnet-b0"]},
        },
        Config,
    )
    assert space.names == ["schedule.lr-max", "augment.dropout-size", "augment.dropout-count", "model"]
    assert parse_space(space.plain(), Config) == space
    rng = np.random.default_rng(0)
    for _ in range(50):
        config = apply(BASE, space.sample(rng))
        assert 1e-4 <= config.schedule.lr_max <= 1e-2
        assert 1 <= config.augment.dropout_count <= 8
    assert len(check_space(space, BASE)) > 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"augment.strenght": {"uniform": [0, 1]}}, "unknown field 'augment.strenght'"),
        ({"augment": {"strenght": {"uniform": [0, 1]}}}, "unknown field 'augment.strenght'"),
        ({"augment.strength": {"unifrom": [0, 1]}}, "expected one of uniform, "),
        ({"augment.strength": {"randn": [0, 1]}}, "no ends that could be checked"),
        ({"augment.strength": {"uniform": [0]}}, "uniform takes [lower, upper]; got [0]"),
        ({"augment.strength": {"uniform": [1, 0]}}, "needs its lower end below its upper"),
        ({"augment.strength": {"uniform": ["a", 1]}}, "takes finite numbers; got 'a'"),
        ({"augment.strength": {"choice": []}}, "choice takes a list; got []"),
        ({"augment.strength": 0.5}, "expected one distribution"),
        ({"schedule.lr-max": {"loguniform": [0, 1]}}, "schedule.lr-max: loguniform(0, 1)"),
        ({"folds": {"choice": [3, 5]}}, "folds cannot be searched"),
        ({"seed": {"randint": [0, 5]}}, "seed cannot be searched"),
        ({"augment": {"uniform": [0, 1]}}, "unknown field 'augment.uniform'"),
        ({}, "it searches no field"),
        ({"augment.strength": {"uniform": [0, 1]}, "augment": {"strength": {"uniform": [0, 1]}}}, "twice"),
    ],
)
def test_what_a_space_may_not_say(values, says):
    with pytest.raises(ConfigError) as caught:
        parse_space(values, Config)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"augment.dropout-size": {"uniform": [0, 1.5]}}, "can give 1.5, which the config refuses"),
        ({"augment.dropout-size": {"uniform": [-0.1, 0.5]}}, "can give -0.1"),
        ({"augment.dropout-count": {"uniform": [1, 4]}}, "augment.dropout-count"),  # draws are no integers
        ({"model": {"choice": ["efficientnet-nano", "efficientnet-b9"]}}, "efficientnet-b9"),
        ({"loss": {"grid_search": ["bce", "hinge"]}}, "can give 'hinge'"),
        ({"batch-size": {"randint": [0, 64]}}, "can give 0"),
    ],
)
def test_bounds_types_and_options_are_held_against_the_config(values, says):
    with pytest.raises(ConfigError) as caught:
        check_space(parse_space(values, Config), BASE)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [
        Field("f", "uniform", (0.0, 2.0)),
        Field("f", "quniform", (0.0, 2.0, 0.5)),
        Field("f", "loguniform", (1e-4, 1e-1)),
        Field("f", "qloguniform", (0.5, 8.0, 0.5)),
        Field("f", "randint", (1, 9)),
        Field("f", "qrandint", (2, 10, 2)),
        Field("f", "lograndint", (1, 100)),
        Field("f", "qlograndint", (4, 64, 4)),
        Field("f", "choice", ("a", None, 3)),
        Field("f", "grid_search", (1, 2)),
    ],
    ids=lambda field: field.kind,
)
def test_optuna_draws_from_the_same_set_as_tune(field):
    import optuna

    rng = np.random.default_rng(0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        asked = field.decode(study.ask({"f": field.distribution()}).params["f"])
        for value in (field.sample(rng), asked):
            assert -1e-9 <= field.place(value) <= 1 + 1e-9
            assert type(value) in (int, float, str, type(None))
        if field.options:
            assert asked in field.options
        elif field.kind.startswith("q"):
            steps = asked / field.arguments[2]
            assert steps == pytest.approx(round(steps))


def test_the_default_space_lies_around_the_config():
    space = parse_space(BASE.default_space(), Config)
    assert space.names == ["schedule.lr-max", "augment.dropout-size", "augment.strength"]
    peak = BASE.learning_rate(0, 1).peak
    assert space.fields[0].place(peak) == pytest.approx(0.5, abs=0.01)
    assert space.default(BASE) == {
        "schedule.lr-max": peak,
        "augment.dropout-size": 0.05,
        "augment.strength": BASE.augment.strength,
    }
    check_space(space, BASE)


@pytest.mark.parametrize(("value", "is_on_a_step"), [(0.25, True), (0.3, False), (2.0, True), (2.25, False)])
def test_a_base_between_the_steps_of_a_field_is_outside(value, is_on_a_step):
    space = parse_space({"augment.strength": {"quniform": [0, 2, 0.25]}}, Config)
    base = parse({"augment": {"strength": value}})
    assert (space.default(base) is not None) == is_on_a_step
    trial = Trial(0, {}, "done", 0.5)
    assert suggest("optuna", space, base, 1, [trial], CadenceTask.score, lambda trial: None)


def test_a_grid_has_every_combination():
    space = parse_space({"augment.strength": {"grid_search": [0, 1]}, "tta": {"choice": [1, 2, 3]}}, Config)
    assert len(space.grid()) == 6
    with pytest.raises(ConfigError, match="--search grid needs a list"):
        parse_space(BASE.default_space(), Config).grid()
