"""The detector, one concept a file."""
