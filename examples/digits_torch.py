"""A PyTorch network on images: python examples/digits_torch.py --epochs 8 (--devices-per-fold 0.2 shares a GPU)"""

import io
import sys

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel
from sklearn.datasets import load_digits
from torch import nn

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
        return Rows(table, table[:0][["id"]], "digits of scikit-learn", images.reshape(-1, 1, 8, 8) / 16)

    def needs(self, config: Settings, fold: int) -> Needs:
        return Needs(n_steps=config.epochs)

    def fit(self, work: Work):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(work.place.cpus)
        torch.manual_seed(work.config.seed)
        torch.use_deterministic_algorithms(True, warn_only=True)  # the same bytes on a GPU, too
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        model = nn.Sequential(*layers).to(device)
        optimizer = torch.optim.SGD(model.parameters(), work.config.learning_rate * 30)
        if work.state:
            model.load_state_dict(torch.load(io.BytesIO(work.state), weights_only=True))
        images = torch.tensor(work.rows.content, dtype=torch.float32, device=device)
        target = torch.tensor(work.rows.target, device=device)
        for epoch in range(work.step, work.config.epochs):
            order = np.random.default_rng((work.config.seed, work.fold, epoch)).permutation(work.train)
            for batch in np.array_split(order, len(order) // 32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), target[batch]).backward()
                optimizer.step()
            pred = model(images[work.valid]).softmax(1).detach().cpu().numpy()
            torch.save(model.state_dict(), state := io.BytesIO())
            yield Step({"val_accuracy": self.score.of(work.rows.target[work.valid], pred)}, state.getvalue())
        yield Fitted(model(images[work.valid]).softmax(1).detach().cpu().numpy())


if __name__ == "__main__":
    sys.exit(main(Digits(), data="digits", split="stratified"))
