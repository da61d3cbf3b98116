"""Your own data module: photos that a table lists, instead of folders.

    python examples/own_data.py parts.csv --experiment my_table

parts.csv has the columns path (from the table's folder), defect ('good' or the defect's name) and split ('train' or
'test'). In a YAML of your own, where this file can be imported (PYTHONPATH=examples):

    data:
      class_path: own_data.PhotosOfATable
      init_args: {table: parts.csv}
"""

import json
import sys
from pathlib import Path

import pandas as pd
from anomalib.data.utils import Split

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.dataset import OrderedLoading, PhotoDataset
from padim_bottle.data.layout import LabelledImage


class PhotosOfATable(OrderedLoading):
    """Photos that a CSV file lists.

    Args:
        table: the CSV file, with the columns path, defect and split.
        train_batch_size: photos in a training batch.
        eval_batch_size: photos in a test batch.
        num_workers: processes that read photos.
    """

    def __init__(
        self, table: Path | str, train_batch_size: int = 8, eval_batch_size: int = 8, num_workers: int = 2
    ) -> None:
        super().__init__(train_batch_size=train_batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers)
        self.table = Path(table)
        self.category = self.table.stem

    def _setup(self, _stage: str | None = None) -> None:
        rows = pd.read_csv(self.table)
        photos = {
            split: [LabelledImage(self.table.parent / row.path, row.defect) for row in chosen.itertuples()]
            for split, chosen in rows.groupby("split")
        }
        self.train_data = PhotoDataset(photos["train"], Split.TRAIN)
        self.test_data = PhotoDataset(photos.get("test", []), Split.TEST)


def main() -> int:
    """Train and test on the photos of the table that is named; the other arguments are those of scripts/train.py."""
    data = {"class_path": "own_data.PhotosOfATable", "init_args": {"table": sys.argv[1]}}
    return run_verb("train", ["--data", json.dumps(data), *sys.argv[2:]])


if __name__ == "__main__":
    raise SystemExit(main())
