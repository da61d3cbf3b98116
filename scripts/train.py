"""Train and test one experiment: ``python scripts/train.py --config configs/padim_resnet18.yaml --seed 7``."""

from padim_bottle.commands.train import train_command

if __name__ == "__main__":
    raise SystemExit(train_command())
