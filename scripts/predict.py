"""Judge photos with a fitted model: ``python scripts/predict.py --model results/padim_resnet18/seed_42 PHOTO...``."""

from padim_bottle.commands.predict import predict_command

if __name__ == "__main__":
    raise SystemExit(predict_command())
