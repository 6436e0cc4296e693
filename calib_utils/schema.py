"""What a stored measurement holds, and the invariants every table of it must satisfy.

Knows tables. Knows nothing of files or models.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from calib_utils.errors import ResultsError
from calib_utils.steps import REPAIRS

SCHEMA = 2
KEY = ["rule", "parameter", "temperature"]
COLUMNS = [
    "model",
    "task",
    *KEY,
    "validity",
    "diversity",
    "sequence_precision",
    "sequence_recall",
    "n_answers",
    "n_nodes",
]
ANSWER_COLUMNS = ["answer", "temperature", "log_p"]
LOSS_COLUMNS = [*KEY, "repair", "step", "validity_loss", "diversity_loss"]
FRONTIER_COLUMNS = ["sequence_precision", "sequence_recall"]
TABLE_COLUMNS = {
    "settings": COLUMNS,
    "answers": ANSWER_COLUMNS,
    "losses": LOSS_COLUMNS,
    "frontier": FRONTIER_COLUMNS,
}
_SLACK = 1e-9


@dataclass(frozen=True)
class Tables:
    """A measurement of one model on one task. All but `settings` may be empty.

    `settings`: a row per rule and temperature. `answers`: ln p of every answer under temperature
    alone, at chosen temperatures. `losses`: nats lost at each step, of validity and of diversity,
    per setting and repair (`steps.REPAIRS`). `frontier`: supported points of the precision-recall
    frontier over all adaptive rank cutoffs.
    """

    settings: pd.DataFrame
    answers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ANSWER_COLUMNS))
    losses: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=LOSS_COLUMNS))
    frontier: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=FRONTIER_COLUMNS))

    def check(self, where: str) -> None:
        """The invariants, checked on every read and write.

        Args:
            where: what the tables are of, for messages.

        Raises:
            ResultsError: naming the first row at fault.
        """
        for name, columns in TABLE_COLUMNS.items():
            table = getattr(self, name)
            if list(table.columns) != columns:
                raise ResultsError(
                    f"{where}: columns of {name} are {list(table.columns)}, expected {columns}"
                )
        if self.settings.empty:
            raise ResultsError(f"{where}: the settings table is empty")
        self._check_settings(where)
        self._check_answers(where)
        self._check_losses(where)
        self._check_frontier(where)

    def _check_settings(self, where: str) -> None:
        table = self.settings
        _require(table, ~table.duplicated(KEY), f"{where}: a setting occurs twice")
        _require(table, table.temperature > 0, f"{where}: temperature must be above 0")
        for column in ("validity", "sequence_precision", "sequence_recall"):
            inside = table[column].between(-_SLACK, 1 + _SLACK)
            _require(table, inside, f"{where}: {column} must lie in [0, 1]")
        in_range = table.diversity.between(1 / table.n_answers - _SLACK, 1 + _SLACK)
        _require(
            table,
            np.where(table.validity > 0, in_range, table.diversity.isna()),
            f"{where}: diversity must lie in [1/|V|, 1] where validity is above 0, and be NaN "
            "elsewhere",
        )
        # Looser cutoffs keep a superset, so more answers stay reachable.
        for name, loosens in (("top_k", True), ("top_p", True), ("min_p", False)):
            for _, group in table[table.rule == name].groupby("temperature"):
                recall = group.sort_values("parameter", ascending=loosens).sequence_recall
                if (recall.diff() < -_SLACK).any():
                    raise ResultsError(f"{where}: recall falls as {name} loosens")

    def _check_answers(self, where: str) -> None:
        answers, settings = self.answers, self.settings
        if (answers.groupby("temperature").size() != settings.n_answers.iloc[0]).any():
            raise ResultsError(f"{where}: answers are missing at some temperature")
        if (answers.log_p > _SLACK).any():
            raise ResultsError(f"{where}: a log-probability of an answer is above 0")
        mass = np.exp(answers.log_p.astype(float)).groupby(answers.temperature).sum()
        plain = settings[settings.rule == "none"].set_index("temperature").validity
        both = mass.index.intersection(plain.index)
        if not _same(mass[both], plain[both]):
            raise ResultsError(f"{where}: the answers' probabilities do not add up to the validity")

    def _check_losses(self, where: str) -> None:
        losses = self.losses
        if losses.empty:
            return
        if unknown := set(losses.repair) - set(REPAIRS):
            raise ResultsError(f"{where}: unknown repairs {sorted(unknown)} among the losses")
        below = losses[["validity_loss", "diversity_loss"]].min(axis=1) < -1e-7
        _require(losses, ~below, f"{where}: a loss, which is a divergence, is negative")
        own = losses[losses.repair == "none"].groupby(KEY, dropna=False, as_index=False)
        total = own[["validity_loss", "diversity_loss"]].sum(min_count=1)
        both = total.merge(self.settings, on=KEY)
        for loss, column in (("validity_loss", "validity"), ("diversity_loss", "diversity")):
            # A validity that underflows is 0 with no diversity, where its logarithm still has one.
            defined = both[loss].notna() & both[column].notna()
            if not _same(np.exp(-both[loss][defined]), both[column][defined]):
                raise ResultsError(f"{where}: the steps' losses do not add up to -ln {column}")
        if len(both) < len(total):
            raise ResultsError(f"{where}: there are losses of settings that have no row")

    def _check_frontier(self, where: str) -> None:
        points = self.frontier.astype(float)
        inside = points.apply(lambda column: column.between(-_SLACK, 1 + _SLACK)).all(axis=1)
        _require(points, inside, f"{where}: a frontier point lies outside [0, 1]")
        steps = points.diff().dropna()
        if (steps.sequence_precision > _SLACK).any() or (steps.sequence_recall < -_SLACK).any():
            raise ResultsError(f"{where}: the frontier is not ordered by falling precision")


def _same(one: pd.Series, other: pd.Series) -> bool:
    """Whether probabilities are the same, the smallest ones too, but for two passes' rounding."""
    return np.allclose(one, other, atol=1e-6) and np.allclose(one, other, 1e-2, atol=1e-300)


def _require(table: pd.DataFrame, good, what: str) -> None:
    good = np.asarray(good, dtype=bool)
    if not good.all():
        raise ResultsError(f"{what}; first at fault: {table[~good].iloc[0].to_dict()}")
