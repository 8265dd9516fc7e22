"""A scikit-learn estimator on a CSV with the columns id, target, group and numbers: regression, folds by group.

python examples/forest.py --trees 300                                # on a table that scikit-learn brings
python examples/forest.py --data patients.csv --folds 4
python examples/forest.py sweep --trials 8 --space space.yaml        # leaf: {lograndint: [1, 100]}
python examples/forest.py predict runs/… --data new.csv
"""

import hashlib
import io
import sys

import joblib
import pandas as pd
from pydantic import BaseModel
from sklearn.datasets import load_diabetes
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.metrics import root_mean_squared_error

from setibl_ray import Fitted, Rows, Score, Task, Work, main


class Settings(BaseModel):
    trees: int = 100
    leaf: int = 5
    """Least rows of a leaf."""


class Forest(Task):
    """Cross-validate a forest of randomised trees on a table of numbers."""

    Settings = Settings
    score = Score("rmse", root_mean_squared_error, "minimize")

    def open(self, data: str, config: Settings) -> Rows:
        if data == "diabetes":
            table = load_diabetes(as_frame=True, scaled=False).frame
            table = table.assign(id=[f"p{i}" for i in table.index], group=table["age"].astype(str))
        else:
            table = pd.read_csv(data, dtype={"id": str, "group": str})
        inputs = table.drop(columns=["id", "target", "group"], errors="ignore").to_numpy(float)
        train, test = (table, table[:0]) if "target" in table else (table[:0], table)
        fingerprint = hashlib.sha256(table.to_csv().encode()).hexdigest()
        train = train.reindex(columns=["id", "target", "group"])
        return Rows(train, test[["id"]], fingerprint, inputs, root=data)

    def fit(self, work: Work):
        trees, leaf = work.config.trees, work.config.leaf
        forest = ExtraTreesRegressor(trees, min_samples_leaf=leaf, random_state=work.config.seed)
        forest.fit(work.rows.content[work.train], work.rows.target[work.train])
        joblib.dump(forest, artifact := io.BytesIO())
        yield Fitted(forest.predict(work.rows.content[work.valid]), artifact.getvalue())

    def predict(self, work: Work):
        forest = joblib.load(io.BytesIO(work.artifact))  # a pickle: of runs that you trust
        return forest.predict(work.rows.content[slice(*work.span)])


if __name__ == "__main__":
    sys.exit(main(Forest(), data="diabetes", split="group"))
