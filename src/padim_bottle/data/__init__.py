"""Photos on disk -> batches: reading, finding and verifying, downloading, drawing, and the Lightning data modules.

Nothing is imported here: ``images``, ``digest``, ``layout`` and ``download`` need neither torch nor anomalib.
"""
