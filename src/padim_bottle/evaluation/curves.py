"""ROC, precision-recall, per-region- and per-image-overlap curves, and the areas under them, exact on raw scores.

As a threshold falls, nothing but false positives is added between the scores of two *defective* samples:
ROC and PRO curves run straight there, and precision only falls. So it is enough to sort the normal scores
once and to count, for each distinct defective score, how many of them lie at or above it. Tied scores make
one point. Counts of several sets of normal samples add up, so that every defect type has its own curve
from the same sort.

Why not anomalib's own metrics: its AUROC and AUPR pass scores outside [0, 1] through a sigmoid, which
saturates (raw PaDiM scores all become 1), and each of them sorts all pixels anew. On scores scaled to [0, 1] the
values agree to anomalib's float32 precision. Its AUPIMO takes 300,000 thresholds by default; the two agree to some
thousandths an image, because anomalib starts at the false positive rate nearest to 1e-5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy import ndimage
from scipy.integrate import trapezoid

FPR_LIMIT = 0.3
"""AUPRO integrates up to this false positive rate (Bergmann et al., IJCV 2021, and anomalib's default)."""
PIMO_FPR_BOUNDS = (1e-5, 1e-4)
"""AUPIMO integrates between these (Bertoldo et al., BMVC 2024, and anomalib's default)."""


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """Counts at every distinct score of a defective sample, in ascending order of the score.

    thresholds: (T,) the distinct scores.
    true_positives, false_positives: (T,) defective and normal samples with score >= threshold.
    false_positives_above: (T,) normal samples with score > threshold.
    positives, negatives: how many samples are defective and normal, both at least 1.
    overlap: (T,) mean over ground-truth regions of the share of the region with score >= threshold,
        or None where samples are images.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    false_positives_above: np.ndarray
    positives: int
    negatives: int
    overlap: np.ndarray | None = None

    @property
    def auroc(self) -> float:
        """Area under the ROC curve: the chance that a defective sample outranks a normal one, ties half."""
        beaten = self.negatives - (self.false_positives + self.false_positives_above) / 2
        return float(self._tied() @ beaten / (self.positives * self.negatives))

    @property
    def average_precision(self) -> float:
        """Step-wise area under the precision-recall curve, as scikit-learn's and as anomalib's AUPR."""
        precision = self.true_positives / (self.true_positives + self.false_positives)
        return float(self._tied() @ precision / self.positives)

    @property
    def f1_max(self) -> tuple[float, float]:
        """The largest F1 score and the lowest threshold (score >= threshold) that reaches it."""
        f1 = self._f1()
        best = int(np.argmax(f1))
        return float(f1[best]), float(self.thresholds[best])

    @property
    def f1_above_best(self) -> float:
        """The F1 score at the threshold of ``f1_max`` where only score > threshold counts."""
        best = int(np.argmax(self._f1()))
        hits = int(self.true_positives[best] - self._tied()[best])
        return 2 * hits / (hits + int(self.false_positives_above[best]) + self.positives)

    def aupro(self, fpr_limit: float = FPR_LIMIT) -> float:
        """Area under the per-region overlap over the false positive rate in [0, fpr_limit], over fpr_limit.

        Defined in Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.
        fpr_limit lies in (0, 1].
        """
        if self.overlap is None:
            raise ValueError("this curve was traced without regions: give their overlap_weights")
        # Each threshold makes two corners: just above it, and at it.
        alarms = np.stack([self.false_positives, self.false_positives_above], axis=1)
        overlap = np.stack([self.overlap, np.append(self.overlap[1:], 0.0)], axis=1)
        fpr = np.concatenate([[0.0], alarms.ravel()[::-1] / self.negatives, [1.0]])
        pro = np.concatenate([[0.0], overlap.ravel()[::-1], [1.0]])

        cut = int(np.searchsorted(fpr, fpr_limit))  # fpr[cut - 1] < fpr_limit <= fpr[cut]
        slope = (pro[cut] - pro[cut - 1]) / (fpr[cut] - fpr[cut - 1])
        fpr[cut], pro[cut] = fpr_limit, pro[cut - 1] + slope * (fpr_limit - fpr[cut - 1])
        return float(trapezoid(pro[: cut + 1], fpr[: cut + 1]) / fpr_limit)

    def _f1(self) -> np.ndarray:
        return 2 * self.true_positives / (self.true_positives + self.false_positives + self.positives)

    def _tied(self) -> np.ndarray:
        """Return how many defective samples (T,) have exactly the score of each threshold."""
        return -np.diff(self.true_positives, append=0)


def trace_curve(
    negatives: Sequence[np.ndarray],
    positives: np.ndarray,
    overlap_weights: np.ndarray | None = None,
) -> Curve | None:
    """Trace the curve of defective against normal scores; None unless there are both.

    negatives: arrays of normal scores, **each sorted ascending**; together they are the normal samples.
    positives: (P,) scores of the defective samples, in any order.
    overlap_weights: (P,) what each defective pixel adds to the mean region overlap, see region_weights;
        the curve divides them by their sum, so weights of several sets of regions may be concatenated.
    """
    total = sum(len(scores) for scores in negatives)
    if not total or not len(positives):
        return None
    order = np.argsort(positives)
    ascending = positives[order]
    first = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
    thresholds = ascending[first]
    below = np.sum([np.searchsorted(scores, thresholds, side="left") for scores in negatives], axis=0)
    not_above = np.sum([np.searchsorted(scores, thresholds, side="right") for scores in negatives], axis=0)
    overlap = None
    if overlap_weights is not None:
        reached = np.cumsum(overlap_weights[order][::-1], dtype=np.float64)[::-1]
        overlap = reached[first] / reached[0]
    return Curve(
        thresholds=thresholds,
        true_positives=len(ascending) - first,
        false_positives=total - below,
        false_positives_above=total - not_above,
        positives=len(ascending),
        negatives=total,
        overlap=overlap,
    )


def region_weights(masks: np.ndarray) -> np.ndarray:
    """Give each defective pixel of masks (N, H, W), in C order, one over the size of its region: (P,).

    A region is an 8-connected component of one mask, as anomalib's (OpenCV's default on the CPU, a 3 x 3
    maximum on the GPU). The weights of a region sum to 1, so those of all of them to the number of regions.
    """
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # within an image, never from one image to the next
    labels, _ = ndimage.label(masks, structure=neighbours)
    region = labels[masks]
    return 1.0 / np.bincount(region)[region] if len(region) else np.empty(0)


def aupimo(
    good: np.ndarray, maps: np.ndarray, masks: np.ndarray, fpr_bounds: tuple[float, float] = PIMO_FPR_BOUNDS
) -> np.ndarray | None:
    """Return the area under the per-image overlap of each defective image, between 0 and 1: (N,).

    The mean recall of an image's defect at the thresholds at which few pixels of *good* images exceed them: the
    false positive rate runs from fpr_bounds[0] to fpr_bounds[1] on a logarithmic axis. Defined in Bertoldo et al.,
    "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance", BMVC 2024.

    good: (G, H, W) raw maps of good images; equal in size, so that the mean of their rates is the rate of all
        their pixels.
    maps, masks: (N, H, W) raw maps of defective images, and where their defects are, none of them empty.
    Returns None where the good images have too few pixels for the lower bound: fewer than 1 / fpr_bounds[0].
    """
    if good.size * fpr_bounds[0] < 1:
        return None
    count = int(np.ceil(good.size * fpr_bounds[1]))
    highest = np.sort(np.partition(good, good.size - count, axis=None)[good.size - count :])[::-1]
    weights = _weights(count, good.size, fpr_bounds)
    return np.array([recall @ weights for recall in _recalls(highest, maps, masks)])


def aupimo_interval(
    good: np.ndarray,
    maps: np.ndarray,
    masks: np.ndarray,
    fpr_bounds: tuple[float, float] = PIMO_FPR_BOUNDS,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return between what limits the mean of ``aupimo`` lies with other good images: a percentile bootstrap of them.

    The thresholds rest on the few highest pixels of the good images, so that a single image may decide. The defective
    images stay as they are. Arguments and ``None`` as of ``aupimo``.
    """
    if good.size * fpr_bounds[0] < 1 or len(good) < 2 or not len(maps):
        return None
    count = int(np.ceil(good.size * fpr_bounds[1]))
    pixels = good.reshape(len(good), -1)
    # Of an image no more than so many can be among the highest of all.
    first = max(0, pixels.shape[1] - count)
    highest = np.partition(pixels, first, axis=1)[:, first:]
    order = np.argsort(-highest, axis=None)
    # A pixel counts by its place among all of these, so that the mean recall at each is computed once.
    place = np.empty(highest.shape, dtype=np.int64)
    place.flat[order] = np.arange(order.size)
    recall = np.zeros(order.size)
    for of_image in _recalls(highest.ravel()[order], maps, masks):
        recall += of_image / len(maps)
    weights = _weights(count, good.size, fpr_bounds)
    drawn = np.random.default_rng(seed).integers(len(good), size=(resamples, len(good)))
    means = [recall[np.sort(np.partition(place[chosen], count - 1, axis=None)[:count])] @ weights for chosen in drawn]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _weights(count: int, pixels: int, fpr_bounds: tuple[float, float]) -> np.ndarray:
    """Return what the recall at each of the highest of so many pixels of good images adds to the area, (count,)."""
    lower, upper = fpr_bounds
    # As a threshold falls past the k-th highest good pixel, the rate rises from (k - 1) / pixels to k / pixels.
    rates = np.clip(np.arange(count + 1) / pixels, lower, upper)
    return np.diff(np.log(rates)) / np.log(upper / lower)


def _recalls(highest: np.ndarray, maps: np.ndarray, masks: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the share of each image's defect that lies above each of the highest good pixels (T,), ties half."""
    for anomaly_map, mask in zip(maps, masks, strict=True):
        defect = np.sort(anomaly_map[mask])
        missed = np.searchsorted(defect, highest, side="left") + np.searchsorted(defect, highest, side="right")
        yield 1 - missed / (2 * len(defect))
