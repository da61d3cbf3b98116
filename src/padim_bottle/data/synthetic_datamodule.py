"""Synthetic bottles as a data module, for the demo and the tests: no download, and never mistaken for MVTec AD."""

from pathlib import Path

from padim_bottle.data.mvtec import MVTecAD, check_at_least
from padim_bottle.data.synthetic import MIN_SIZE, write_bottles


class SyntheticBottles(MVTecAD):
    """Bottles drawn by ``padim_bottle.data.synthetic``, written once and then read like MVTec AD.

    Args:
        root: folder to write them to.
        size: height and width of the images in pixels.
        train_good: number of good training images.
        test_good: number of good test images.
        test_per_defect: number of test images of each of the three kinds of defect.
        data_seed: decides what the bottles look like; the experiment's own seed does not.
        train_batch_size: images in a training batch.
        eval_batch_size: images in a test batch.
        num_workers: processes that read images; 0 reads in the main process, which is quickest for a few.
    """

    title = "synthetic bottles"
    synthetic = True

    def __init__(
        self,
        root: Path | str = "datasets/synthetic",
        size: int = 256,
        train_good: int = 40,
        test_good: int = 12,
        test_per_defect: int = 6,
        data_seed: int = 0,
        train_batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int | None = 0,
    ) -> None:
        counts = {"train_good": train_good, "test_good": test_good, "test_per_defect": test_per_defect}
        check_at_least(MIN_SIZE, size=size)
        check_at_least(0, data_seed=data_seed, **counts)
        # A folder of its own for each choice of parameters, so that none is taken for another.
        spelled = f"{size}px-{train_good}-{test_good}-{test_per_defect}-seed{data_seed}"
        super().__init__(
            root=Path(root) / spelled,
            category="bottle",
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            verify=False,
            download=False,
        )
        self.parameters = {"size": size, "seed": data_seed, **counts}

    def prepare_data(self) -> None:
        """Draw the bottles if they are not there yet, and set ``fingerprint``."""
        write_bottles(self.root, self.category, **self.parameters)
        super().prepare_data()
