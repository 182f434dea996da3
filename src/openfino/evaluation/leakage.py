"""How well a factor can be told from frozen features, as they are or once another factor is erased.

A factor such as a plate often has values in the training split alone, so its readers cannot be scored on another
split: the images of the probe rows are cut in two halves by key. One half, the bank, is what readers and erasures are
fitted on; the other half is read. Two backbones, and features before and after an erasure, are read on the same rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage

from openfino.evaluation.classifiers import Matrix, knn_average, knn_predict, stratified_holdout
from openfino.evaluation.erasure import Eraser, fit_eraser
from openfino.evaluation.features import Features, Rows
from openfino.evaluation.linear_readers import read_classes, read_numbers
from openfino.evaluation.metrics import Codes, accuracy
from openfino.evaluation.results import METHODS, FactorReading, Method
from openfino.evaluation.splits import encode_column, probe_generator
from openfino.factors.encode import EncodedFactor, encode, fit_vocabulary
from openfino.factors.spec import FactorSpec


@dataclass(frozen=True)
class Known:
    """What a factor is on some rows.

    Attributes:
        target: discrete: classes, int64 [n]; otherwise numbers, float32 [n, t]. Meaningless where not valid.
        valid: bool [n].
        cyclic: whether the numbers are the sine and cosine of an angle.
    """

    target: Codes | Matrix
    valid: NDArray[np.bool_]
    cyclic: bool = False


def known_values(table: pl.DataFrame, spec: FactorSpec, rows: Rows) -> Known:
    """A factor of any kind on some rows of ``table``."""
    if spec.kind == "discrete":
        return _of_column(table[spec.columns[0]].gather(rows))
    # Fitted on the whole table, so that whether a column holds timestamps does not depend on the rows.
    return _of_factor(encode(table[rows.tolist()], spec, fit_vocabulary(table, spec)))


def erase(features: Features, target: Known, fitted: Rows) -> tuple[Features, int]:
    """Take a factor out of CLS and mean by LEACE.

    Each of the two has no covariance with the factor left, so their concatenation has none either.

    Args:
        features: frozen features [n].
        target: the factor on these rows.
        fitted: positions to fit on; those without a value are passed over.

    Returns:
        The features, and the dimensions taken out of CLS; unchanged where no row to fit on has a value.
    """
    fitted = fitted[target.valid[fitted]]
    if len(fitted) == 0:
        return features, 0
    cls = shrunk_eraser(features.cls[fitted], target.target[fitted])
    mean = shrunk_eraser(features.mean[fitted], target.target[fitted])
    changed = Features(
        features.rows, cls(features.cls), mean(features.mean), None, features.unreadable, features.causes
    )
    return changed, cls.dimensions


def read_factor(
    features: Features,
    values: pl.Series,
    *,
    k: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    methods: Sequence[Method] = METHODS,
    erased: Known | None = None,
) -> FactorReading:
    """Tell a discrete factor from frozen features: what erasing it should make impossible.

    One half of the rows of every value is the bank, the other half is read; a value with one row is left out.

    Args:
        features: frozen features [n].
        values: the factor's value of each of these rows, null where missing [n].
        k: neighbours.
        seed: of the halves.
        device: where the products of kNN are computed.
        methods: ``knn`` (on CLS) and ``linear`` (on CLS and mean).
        erased: another factor, or this one, on these rows: erased first, fitted on the bank.
    """
    return _read_classes(features, _of_column(values), k, seed, device, methods, erased)


def read_quantity(
    features: Features,
    factor: EncodedFactor,
    *,
    k: int = 20,
    seed: int = 0,
    device: torch.device | str = "cpu",
    methods: Sequence[Method] = METHODS,
    erased: Known | None = None,
) -> FactorReading:
    """Predict a continuous, cyclic or vector factor from frozen features.

    One half of the rows is the bank, the other half is read. R^2 = 1 - squared error / squared deviation from
    the mean of the rows that are read, each summed over rows and dimensions of the encoded target. A cyclic factor
    also gets the mean cosine of the angle between prediction and truth.

    Args:
        features: frozen features [n].
        factor: the factor of each of these rows, encoded [n, t].
        k, seed, device, methods, erased: as in :func:`read_factor`.
    """
    return _read_numbers(features, _of_factor(factor), k, seed, device, methods, erased)


def read_all(
    features: Features,
    table: pl.DataFrame,
    specs: Mapping[str, FactorSpec],
    *,
    k: int,
    seed: int,
    device: torch.device | str,
    methods: Sequence[Method],
    erased: FactorSpec | None = None,
) -> dict[str, FactorReading]:
    """The reading of each factor from the features of some rows of ``table``; see :func:`read_factor`."""
    taken_out = known_values(table, erased, features.rows) if erased is not None else None
    readings = {}
    for name, spec in specs.items():
        read = _read_classes if spec.kind == "discrete" else _read_numbers
        known = known_values(table, spec, features.rows)
        readings[name] = read(features, known, k, seed, device, methods, taken_out)
    return readings


def _of_column(values: pl.Series) -> Known:
    codes = encode_column(values)
    return Known(codes, codes >= 0)


def _of_factor(factor: EncodedFactor) -> Known:
    return Known(factor.values.numpy(), factor.valid.numpy(), factor.spec.kind == "cyclic")


def shrunk_eraser(features: Matrix, target: Codes | Matrix) -> Eraser:
    """LEACE with the shrinkage of Ledoit and Wolf: it has to hold on rows that it was not fitted on."""
    # Rows of one value have no spread, of which a share cannot be told.
    differ = len(features) > 1 and bool((features != features[0]).any())
    shrinkage = float(ledoit_wolf_shrinkage(features.astype(np.float64))) if differ else 0.0
    return fit_eraser(features, target, shrinkage=shrinkage)


def _read_classes(
    features: Features,
    known: Known,
    k: int,
    seed: int,
    device: torch.device | str,
    methods: Sequence[Method],
    erased: Known | None,
) -> FactorReading:
    codes: Codes = known.target.astype(np.int64)
    counts = np.bincount(codes[codes >= 0], minlength=1)
    usable = np.flatnonzero((codes >= 0) & (counts[codes] >= 2))
    if len(usable) == 0:
        return FactorReading(0, 0, len(features), None, None, None)
    read = stratified_holdout(codes[usable], 0.5, probe_generator(seed, "leakage"))
    bank, queries = usable[~read], usable[read]
    features = features if erased is None else erase(features, erased, bank)[0]
    found: dict[str, float] = {}
    errors: dict[str, float] = {}
    for method in methods:
        if method == "knn":
            answers = knn_predict(features.cls[bank], codes[bank], features.cls[queries], k=k, device=device)
        else:
            answers = read_classes(
                features.side_by_side(bank),
                codes[bank],
                features.side_by_side(queries),
                probe_generator(seed, "linear leakage"),
            )
        for measure, (value, error) in score_classes(codes[queries], answers).items():
            found[f"{method}_{measure}"], errors[f"{method}_{measure}"] = value, error
    present = len(np.unique(codes[usable]))
    return FactorReading(
        rows=len(queries),
        values=present,
        left_out=len(features) - len(usable),
        majority=float(np.mean(codes[queries] == np.bincount(codes[bank]).argmax())),
        chance=1 / present,
        **{"knn_accuracy": None, **found},
        errors=errors,
    )


def _read_numbers(
    features: Features,
    known: Known,
    k: int,
    seed: int,
    device: torch.device | str,
    methods: Sequence[Method],
    erased: Known | None,
) -> FactorReading:
    usable = np.flatnonzero(known.valid)
    if len(usable) < 2:
        return FactorReading(0, 0, len(features), None, None, None)
    targets: Matrix = known.target.astype(np.float32)
    read = stratified_holdout(np.zeros(len(usable), dtype=np.int64), 0.5, probe_generator(seed, "leakage"))
    bank, queries = usable[~read], usable[read]
    features = features if erased is None else erase(features, erased, bank)[0]
    truth = targets[queries].astype(np.float64)
    found: dict[str, float] = {}
    errors: dict[str, float] = {}
    for method in methods:
        if method == "knn":
            answers = knn_average(
                features.cls[bank], targets[bank], features.cls[queries], k=k, device=device
            ).astype(np.float64)
        else:
            answers = read_numbers(
                features.side_by_side(bank),
                targets[bank],
                features.side_by_side(queries),
                probe_generator(seed, "linear leakage"),
            )
        for measure, (value, error) in score_numbers(truth, answers, cyclic=known.cyclic).items():
            found[f"{method}_{measure}"], errors[f"{method}_{measure}"] = value, error
    if known.cyclic:
        middle = np.broadcast_to(targets[bank].mean(axis=0, dtype=np.float64), truth.shape)
        found["constant_cosine"] = float(_cosines(truth, middle).mean())
    return FactorReading(
        rows=len(queries),
        values=len(np.unique(targets[usable], axis=0)),
        left_out=len(features) - len(usable),
        knn_accuracy=None,
        majority=None,
        chance=None,
        **found,
        errors=errors,
    )


def score_classes(truth: Codes, answers: Codes) -> dict[str, tuple[float, float]]:
    """Accuracy, and its mean over values (``balanced``), each with its standard error.

    The error is binomial, with two successes and two failures added (Agresti and Coull): at 0 and 1 it is not 0. For
    ``balanced`` the rows count by their weights 1 / (rows of the value x values).

    Args:
        truth, answers: int64 [m], m >= 1.
    """
    right = truth == answers
    _, members, counts = np.unique(truth, return_inverse=True, return_counts=True)
    weights = 1 / (counts[members] * len(counts))
    balanced, total = float((weights * right).sum()), accuracy(truth, answers)

    def error(share: float, squared_weights: float) -> float:
        padded = (share * len(truth) + 2) / (len(truth) + 4)
        return math.sqrt(padded * (1 - padded) * squared_weights)

    return {
        "accuracy": (total, error(total, 1 / (len(truth) + 4))),
        "balanced": (balanced, error(balanced, float((weights**2).sum()))),
    }


def score_numbers(
    truth: NDArray[np.float64], answers: NDArray[np.float64], *, cyclic: bool
) -> dict[str, tuple[float, float]]:
    """R^2, and for a cyclic factor the mean cosine, each with its standard error.

    The error of R^2 is that of a bootstrap of the rows in the limit of many draws and rows: the root of the summed
    squared influence of each row. Where the rows do not differ there is no R^2.

    Args:
        truth, answers: float64 [m, t], m >= 1.
        cyclic: whether they are sine and cosine.
    """
    scores = {}
    if (truth != truth[0]).any():
        missed = ((truth - answers) ** 2).sum(axis=1)
        spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=1)
        left = missed.sum() / spread.sum()
        influence = (missed - left * spread) / spread.sum()
        scores["r2"] = float(1 - left), float(np.sqrt((influence**2).sum()))
    if cyclic:
        cosines = _cosines(truth, answers)
        scores["cosine"] = float(cosines.mean()), float(cosines.std() / math.sqrt(len(cosines)))
    return scores


def _cosines(truth: NDArray[np.float64], answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the angle between rows [m, 2] of two arrays; 0 where one of them has no direction."""
    lengths = np.linalg.norm(truth, axis=1) * np.linalg.norm(answers, axis=1)
    return (truth * answers).sum(axis=1) / np.where(lengths > 1e-12, lengths, np.inf)
