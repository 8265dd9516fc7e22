"""Coarse channels as the rows of a test set: what the core's runners, retries and placement need to know of a search.

A channel's result is a text; it travels among the facts of its prediction.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from setibl_ray.core.run.folder import sha256
from setibl_ray.core.task import Needs, Prediction, Work
from setibl_ray.seti.config import Config
from setibl_ray.seti.memory import fold_bytes
from setibl_ray.seti.observations.observation import Observation, channels_of
from setibl_ray.seti.search.channel import Score, search_channel, to_text
from setibl_ray.seti.search.settings import SearchSettings
from setibl_ray.seti.sizes import sizes
from setibl_ray.seti.task import CadenceTask

# Of a coarse channel's panels, at the peak: as read, conditioned and binned, and temporary arrays.
BYTES_A_VALUE = 24


Scorer: TypeAlias = Callable[[Config, Sequence[bytes]], Score]


class Searched(NamedTuple):
    """What every job of a search needs; `width` is that of a window in channels."""

    observations: Sequence[Observation]
    settings: SearchSettings
    width: int


class ChannelTask(CadenceTask):
    """`Rows.content` is a `Searched`; row i of the test set is channel i of `channels_of(observations)`.

    Args:
      content: as in `Rows.content`, for the estimate of memory.
      scorer: function, or its `module:name`, that turns (config, weights files) into one function of all folds.
    """

    clean = ""

    def __init__(self, content: Searched, scorer: Scorer | str) -> None:
        super().__init__()
        self._largest = max(
            6 * observation.n_times * max(channel.high - channel.low for channel in observation.channels)
            for observation in content.observations
        )
        self._scorer = scorer

    def needs(self, config: Config, fold: int) -> Needs:
        networks = max(
            fold_bytes(config, fold, "cpu", 1, sizes(config, fold, self.code)) for fold in range(config.folds)
        )
        return Needs(cpus=1, memory_bytes=networks + BYTES_A_VALUE * self._largest)

    def predict(self, work: Work) -> Prediction:
        observations, settings, width = work.rows.content
        units = list(channels_of(observations))
        # Needles are spread over the channels as evenly as whole numbers allow.
        recover = np.diff(np.arange(len(units) + 1) * settings.recover // len(units)).tolist()
        score = self._networks(work)
        texts = [
            to_text(search_channel(*units[row], score, settings, width=width, n_recover=recover[row]))
            for row in range(*work.span)
        ]
        return Prediction(np.zeros(len(texts), np.float32), facts={"texts": texts})

    def _networks(self, work: Work) -> Score:
        """Every fold's network, kept for the next channels that come to this process."""
        weights = [work.files[str(fold)] for fold in range(work.config.folds)]
        key = (self._scorer, work.config.to_yaml(), *map(sha256, weights))
        if key not in _built:
            _built.clear()
            scorer = pkgutil.resolve_name(self._scorer) if isinstance(self._scorer, str) else self._scorer
            _built[key] = scorer(work.config, weights)
        return _built[key]


_built: dict[tuple[Any, ...], Score] = {}
