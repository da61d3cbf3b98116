"""One finished run on disk, and many of them as a table."""
