"""From many runs to tables and pages."""
