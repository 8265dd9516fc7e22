import tempfile
from pathlib import Path
from types import MappingProxyType

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import example, given

from setibl_ray.core.config import load_yaml
from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.config import Augment, Config, Schedule, parse
from setibl_ray.seti.models import MODELS

configs = st.builds(
    lambda folds, epochs, sizes, batch, model, seed, strength, lr_max: {
        "folds": folds,
        "epochs": epochs,
        "image_size": sizes,
        "batch_size": batch * (folds if len(batch) > 1 else 1),
        "model": model,
        "seed": seed,
        "augment": {"strength": strength},
        "schedule": {"lr_max": lr_max},
    },
    st.integers(2, 9),
    st.integers(1, 50),
    st.tuples(st.integers(32, 999), st.integers(32, 999)),
    st.lists(st.integers(1, 64), min_size=1, max_size=1),
    st.sampled_from(list(MODELS)),
    st.integers(0, 2**32 - 1),
    st.floats(0, 10),
    st.none() | st.floats(1e-9, 1),
)


@given(configs)
def test_yaml_round_trip(values):
    config = parse(values)
    assert parse(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("spelt", [
    {"batch-size": 8, "augment": {"dropout-size": 0.1}, "schedule.lr-max": 0.5, "image-size": (91, 85)},
    {"batch_size": np.int64(8), "augment.dropout_size": 0.1, "schedule": {"lr_max": 0.5},
     "image_size": (np.int32(91), np.int64(85))},
    {"batch_size": (8,), "augment": MappingProxyType({"dropout_size": 0.1}), "schedule": {"lr-max": 0.5},
     "image_size": "91x85"},
])  # fmt: skip
def test_a_mapping_takes_every_spelling(spelt):
    plain = {
        "batch_size": 8,
        "augment": {"dropout_size": 0.1},
        "schedule": {"lr_max": 0.5},
        "image_size": "91x85",
    }
    assert parse(spelt) == parse(plain)


def test_sections_may_come_in_parts_but_no_field_twice():
    both = parse({"augment.shear": 1, "augment": {"flip": 0}, "augment.rotation": 2}).augment
    assert (both.shear, both.flip, both.rotation) == (1, 0, 2)
    for twice in (
        {"batch-size": 8, "batch_size": 8},
        {"augment.shear": 1, "augment": {"shear": 1}},
        {"augment": 1, "augment.shear": 1},
    ):
        with pytest.raises(ConfigError, match="appears twice"):
            parse(twice)


@pytest.mark.parametrize(("given", "message"), [
    ([("folds", 3)], "config: expected a Config or a mapping of its fields, got list"),
    ({3: 4}, "config: expected names of fields, got 3"),
    ({"augment": {None: 4}}, "config: expected names of fields, got None"),
    ({"augment.shear.x": 4}, "augment.shear: "),
    ({".": 4}, "unknown field"),
    ({"epochs": pd.DataFrame({"a": [1, 2]})}, "epochs"),
])  # fmt: skip
def test_what_is_no_config_is_said_in_a_line(given, message):
    with pytest.raises(ConfigError) as caught:
        parse(given)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.text("0123456789,.x-\n")
NAMES = st.sampled_from([*Config.model_fields, *Augment.model_fields, *Schedule.model_fields]) | st.text()


@given(
    st.dictionaries(NAMES, PLAIN | st.lists(PLAIN, max_size=6), max_size=3)
    | st.dictionaries(st.sampled_from(["augment", "schedule"]), st.dictionaries(NAMES, PLAIN, max_size=2))
)
def test_any_mapping_is_a_config_or_a_one_line_error(values):
    try:
        said = str(parse(values))
    except ConfigError as error:
        said = str(error)
    assert said
    assert len(said.splitlines()) == 1


@given(st.text(alphabet="afols:-,[]{}#&*!|>'\"%@?<~ \n\t0123456789._\x00é") | st.text())
@example("folds: 2001-13-45")
@example("folds: !!int many")
@example("[" * 400)
def test_any_text_is_a_mapping_or_a_one_line_error(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(text, "utf-8", "surrogatepass")
        said = str(path)
        try:
            assert isinstance(load_yaml(path), dict)
        except ConfigError as error:
            said = str(error)
        assert str(path) in said
        assert len(said.splitlines()) == 1


def test_scalars_hold_for_every_fold_and_lists_for_one_each():
    config = parse({"folds": 3, "batch_size": "16,32,64", "image_size": "91x85", "epochs": [1, 2, 3]})
    assert [config.for_fold(fold).batch_size for fold in range(3)] == [16, 32, 64]
    assert [config.for_fold(fold).epochs for fold in range(3)] == [1, 2, 3]
    assert {config.for_fold(fold).image_size for fold in range(3)} == {(91, 85)}


def test_a_config_of_version_0_1_0_means_what_it_meant():
    own = {"strength": 0.5, "height_shift": 8.0, "width_shift": 4.0, "flip": 0.5, "shear": 2.0}
    config = parse(Config.modernised({"image_size": ["91x80", "273x256"], "folds": 2, "augment": own}))
    assert config.augment.of_views.strength == config.augment.strength == 0.5
    assert (config.augment.height_shift, config.augment.width_shift) == (8 / 91, 4 / 80)
    assert (config.augment.flip, config.select) == (0.25, "held-out")
    assert parse(Config.modernised(config.model_dump())) == config


def test_defaults_are_those_of_the_original_notebook():
    config = Config()
    assert (config.folds, config.for_fold(0)) == (5, (12, 32, (273, 256), "efficientnet-b6", "plain"))
    assert (config.tta, config.label_smoothing, config.seed) == (11, 0.01, 42)
    augment = config.augment
    assert (augment.shear, augment.height_zoom, augment.width_shift) == (2.0, 1 / 8, 8 / 256)
    assert (augment.dropout_probability, augment.dropout_count, augment.dropout_size) == (0.5, 8, 0.05)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"fold": 3}, "unknown field 'fold'"),
        ({"augment": {"strenth": 1}}, "unknown field 'augment.strenth'"),
        ({"augment": {"width_shift": 8}}, "augment.width-shift: Input should be less than or equal to 1"),
        ({"folds": 1}, "folds: "),
        ({"image_size": "91"}, "image-size: expected HEIGHTxWIDTH"),
        ({"image_size": "8x8"}, "at least 32"),
        ({"model": "b0"}, "expected one of efficientnet-nano"),
        ({"epochs": "1,2"}, "epochs: expected 1 value or 5"),
        ({"fold_weights": "1,2"}, "fold-weights: expected 5 numbers, got 2"),
        ({"fold_weights": "0,0,0,0,0"}, "positive sum"),
        ({"fold_weights": "best"}, "expected equal, auc, or numbers"),
        ({"augment": {"strength": float("nan")}}, "augment.strength"),
        ({"schedule": {"lr_max": -1}}, "schedule.lr-max"),
    ],
)
def test_a_wrong_field_is_named(values, says):
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert says in str(caught.value)
