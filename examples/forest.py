"""A scikit-learn estimator on a CSV: regression, folds by group.

python examples/forest.py                                     # on a table that scikit-learn brings
python examples/forest.py --data patients.csv --trees 300     # columns: id, target, group and numbers
python examples/forest.py sweep --trials 8 --out sweeps/forest
python examples/forest.py predict runs/… --data new.csv
"""

import hashlib
import io
import sys

import joblib
import numpy as np
import pandas as pd
from pydantic import BaseModel
from sklearn.datasets import load_diabetes
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.metrics import root_mean_squared_error

from setibl_ray import Fitted, Rows, Score, Task, Work, main


class Settings(BaseModel):
    trees: int = 100
    """Trees of the forest."""
    leaf: int = 5
    """Rows that a leaf holds at least."""


class Forest(Task):
    """Cross-validate a forest of randomised trees on a table of numbers."""

    Settings = Settings
    score = Score("rmse", root_mean_squared_error, "minimize")

    def open(self, data: str, config: Settings) -> Rows:
        if data == "diabetes":
            table = load_diabetes(as_frame=True, scaled=False).frame
            table = table.assign(
                id=[f"p{i:03}" for i in range(len(table))], group=table["age"].floordiv(5).astype(str)
            )
        else:
            table = pd.read_csv(data, dtype={"id": str, "group": str})
        inputs = table.drop(columns=["id", "target", "group"], errors="ignore")
        train, test = (table, table[:0]) if "target" in table else (table[:0].assign(target=0.0), table)
        digest = hashlib.sha256(table.to_csv().encode()).hexdigest()
        return Rows(
            train[["id", "target", "group"]], test[["id"]], digest, inputs.to_numpy(np.float64), root=data
        )

    def fit(self, work: Work):
        forest = ExtraTreesRegressor(
            work.config.trees, min_samples_leaf=work.config.leaf, random_state=work.config.seed
        )
        forest.fit(work.rows.content[work.train], work.rows.target[work.train])
        joblib.dump(forest, artifact := io.BytesIO())
        yield Fitted(forest.predict(work.rows.content[work.valid]), artifact.getvalue())

    def predict(self, work: Work):
        return joblib.load(io.BytesIO(work.artifact)).predict(work.rows.content[slice(*work.span)])


if __name__ == "__main__":
    sys.exit(main(Forest(), data="diabetes", split="group"))
