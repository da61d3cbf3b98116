"""Judge photos with a fitted model: ``python scripts/predict.py --model results/padim_resnet18/seed_42 PHOTO...``."""

from door import enter

if __name__ == "__main__":
    enter("predict")
