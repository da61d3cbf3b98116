"""Judge photos in a program of your own: a fitted model, and photos as NumPy arrays from wherever they come.

    python examples/judge_a_photo.py results/my_part/seed_42 photo.png

The model may also be one that scripts/export.py wrote.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from padim_bottle.predict.predictor import ImagePrediction, Predictor, load_predictor


def look(predictor: Predictor, photo: np.ndarray) -> ImagePrediction:
    """Judge one photo (height, width, 3), RGB, uint8, such as a camera delivers."""
    (prediction,) = predictor.predict([photo])
    return prediction


def where(prediction: ImagePrediction) -> tuple[float, float]:
    """Return the oddest place of a photo, as shares of its height and width."""
    row, column = np.unravel_index(prediction.anomaly_map.argmax(), prediction.anomaly_map.shape)
    height, width = prediction.anomaly_map.shape
    return (row + 0.5) / height, (column + 0.5) / width


def main() -> None:
    """Judge the photo that is named by the model that is named."""
    predictor = load_predictor(Path(sys.argv[1]))
    prediction = look(predictor, np.asarray(Image.open(sys.argv[2]).convert("RGB")))
    print("anomalous" if prediction.anomalous else "good", f"(score {prediction.score:.2f}, p = {prediction.p_value})")
    print("oddest at {:.0%} of the height and {:.0%} of the width".format(*where(prediction)))


if __name__ == "__main__":
    main()
