"""From a batch of images to an anomaly map, a score and a threshold."""
