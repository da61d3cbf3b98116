"""From a photo to a verdict, away from training."""
