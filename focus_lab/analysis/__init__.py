"""From results to answers: pure functions over records, and the report page."""
