"""Train and test one experiment: ``python scripts/train.py --config configs/padim_resnet18.yaml --seed 7``."""

from door import enter

if __name__ == "__main__":
    enter("train")
