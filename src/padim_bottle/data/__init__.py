"""MVTec AD: fetching a category, checking it, reading its images, and the Lightning data module.

Nothing is imported here: ``download``, ``verify`` and ``images`` need neither torch nor anomalib.
"""
