"""Do labels fall into clusters by themselves? k-means on group-averaged features (fino.md section 6: OpenCell)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openfino.errors import OpenfinoError
from openfino.evaluation.classifiers import Matrix
from openfino.evaluation.metrics import Codes
from openfino.evaluation.splits import probe_generator

STARTS = 10


@dataclass(frozen=True)
class Clustering:
    """How well clusters that know no label agree with it.

    Attributes:
        ari: adjusted Rand index: 1 for the same partition, 0 on average for a random one.
        v_measure: harmonic mean of homogeneity (a cluster has one label) and completeness (a label has one cluster).
        clusters: of k-means: as many as there are labels.
        units: groups, or rows where they are not grouped, that were clustered.
        mixed: groups with more than one label; they count with their commonest.
    """

    ari: float
    v_measure: float
    clusters: int
    units: int
    mixed: int


def cluster_labels(
    features: Matrix, labels: Codes, groups: Codes | None = None, *, seed: int = 0
) -> Clustering:
    """Average features over groups, cluster the averages into as many clusters as there are labels, compare.

    k-means (Lloyd) from 10 k-means++ starts, the one with the least squared distance.

    Args:
        features: [n, D].
        labels: of the rows, int64 [n]; rows with -1 are left out.
        groups: what is averaged, for instance all images of a protein; rows with -1 are left out. When not given,
            every row is clustered by itself.
        seed: of the starts.

    Raises:
        OpenfinoError: if there are fewer than two labels, or not more units than labels.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, v_measure_score

    kept = labels >= 0 if groups is None else (labels >= 0) & (groups >= 0)
    points, truth, mixed = features[kept].astype(np.float64), labels[kept], 0
    if groups is not None:
        points, truth, mixed = group_means(points, truth, groups[kept])
    count = len(np.unique(truth))
    if count < 2 or len(points) <= count:
        raise OpenfinoError(
            f"clustering: {len(points)} groups or images with {count} different labels; two labels, and more groups "
            "or images than labels, are needed"
        )
    start = int(probe_generator(seed, "clustering").integers(2**31))
    found = KMeans(count, n_init=STARTS, random_state=start).fit_predict(points)
    return Clustering(
        float(adjusted_rand_score(truth, found)),
        float(v_measure_score(truth, found)),
        count,
        len(points),
        mixed,
    )


def group_means(
    features: NDArray[np.float64], labels: Codes, groups: Codes
) -> tuple[NDArray[np.float64], Codes, int]:
    """Mean feature and commonest label (the smaller at a tie) of every group, and how many groups have several.

    Args:
        features: [n, D]. labels: [n]. groups: [n].

    Returns:
        Features [g, D] and labels [g] in rising order of the groups, and the number of mixed groups.
    """
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), features.shape[1]))
    np.add.at(sums, members, features)
    values, codes = np.unique(labels, return_inverse=True)
    pairs, counts = np.unique(members * len(values) + codes, return_counts=True)
    owner = pairs // len(values)
    # Within a group the largest count comes first, the smaller code at a tie.
    order = np.lexsort((pairs, -counts, owner))
    first = np.unique(owner[order], return_index=True)[1]
    commonest: Codes = values[pairs[order[first]] % len(values)]
    return sums / sizes[:, None], commonest, int((np.bincount(owner) > 1).sum())
