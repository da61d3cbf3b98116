"""The arguments of the scripts, a file a verb. Heavy imports are inside functions: ``--help`` answers at once."""
