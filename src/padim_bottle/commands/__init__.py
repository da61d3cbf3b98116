"""The commands, a typed function a verb. Heavy imports are inside the functions: ``--help`` answers at once."""
