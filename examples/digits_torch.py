"""A PyTorch network on images: it reports every epoch, and goes on from the last one after a crash.

python examples/digits_torch.py --epochs 8 --folds 5      # on the digits that scikit-learn brings
python examples/digits_torch.py --devices-per-fold 0.2    # five folds share a GPU
"""

import io
import sys

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from sklearn.datasets import load_digits
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from torch.nn.functional import cross_entropy

from setibl_ray import Fitted, Needs, Rows, Score, Step, Task, Work, main


class Settings(BaseModel):
    epochs: int = 5
    learning_rate: float = 3e-3


class Digits(Task):
    """Cross-validate a small convolutional network on handwritten digits."""

    Settings = Settings
    score = Score(
        "accuracy", lambda target, pred: float((pred.argmax(1) == target).mean()), step="valid_accuracy"
    )

    def open(self, data: str, config: Settings) -> Rows:
        digits = load_digits()
        table = pd.DataFrame({"id": [f"d{i:04}" for i in range(len(digits.target))], "target": digits.target})
        return Rows(
            table, table[:0][["id"]], "digits of scikit-learn", digits.images.astype(np.float32)[:, None] / 16
        )

    def needs(self, config: Settings, fold: int) -> Needs:
        return Needs(n_steps=config.epochs)

    def fit(self, work: Work):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(work.place.cpus)
        torch.manual_seed(work.config.seed)
        layers = Conv2d(1, 16, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(16 * 4 * 4, 10)
        model = Sequential(*layers).to(device)
        optimizer = torch.optim.Adam(model.parameters(), work.config.learning_rate)
        if work.state:
            state = torch.load(io.BytesIO(work.state), weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        images, target = torch.tensor(work.rows.content).to(device), torch.tensor(work.rows.target).to(device)
        pred = model(images[work.valid]).softmax(1).detach().cpu().numpy()
        for epoch in range(work.step, work.config.epochs):
            order = np.random.default_rng((work.config.seed, work.fold, epoch)).permutation(work.train)
            for batch in np.array_split(order, len(order) // 64):
                optimizer.zero_grad()
                loss = cross_entropy(model(images[batch]), target[batch])
                loss.backward()
                optimizer.step()
            pred = model(images[work.valid]).softmax(1).detach().cpu().numpy()
            accuracy = self.score.of(work.rows.target[work.valid], pred)
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, state := io.BytesIO()
            )
            yield Step({"loss": float(loss.detach()), "valid_accuracy": accuracy}, state.getvalue())
        yield Fitted(pred)


if __name__ == "__main__":
    sys.exit(main(Digits(), data="digits", split="stratified"))
