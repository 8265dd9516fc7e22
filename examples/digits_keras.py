"""A Keras 3 network, here on its JAX backend.

python examples/digits_keras.py --epochs 8 --folds 5
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import pandas as pd
from pydantic import BaseModel
from sklearn.datasets import load_digits

from setibl_ray import Fitted, Needs, Rows, Score, Step, Task, Work, main


class Settings(BaseModel):
    epochs: int = 5
    learning_rate: float = 3e-3


class Digits(Task):
    """Cross-validate a small convolutional network on handwritten digits."""

    Settings = Settings
    score = Score("accuracy", lambda target, pred: (pred.argmax(1) == target).mean(), step="val_accuracy")

    def open(self, data: str, config: Settings) -> Rows:
        images, target = load_digits(return_X_y=True)
        table = pd.DataFrame({"id": [f"d{i}" for i in range(len(target))], "target": target})
        return Rows(table, table[:0][["id"]], "digits of scikit-learn", images.reshape(-1, 8, 8, 1) / 16)

    def needs(self, config: Settings, fold: int) -> Needs:
        return Needs(n_steps=config.epochs)

    def fit(self, work: Work):
        keras.utils.set_random_seed(work.config.seed)
        layers = keras.layers.Conv2D(16, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D()
        head = keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers, *head])
        optimizer = keras.optimizers.Adam(work.config.learning_rate)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        images, target = work.rows.content, work.rows.target
        held_out = images[work.valid], target[work.valid]
        for _ in range(work.config.epochs):
            done = model.fit(images[work.train], target[work.train], verbose=0, validation_data=held_out)
            yield Step({name: values[-1] for name, values in done.history.items()})
        yield Fitted(model.predict(held_out[0], verbose=0))


if __name__ == "__main__":
    sys.exit(main(Digits(), data="digits", split="stratified"))
