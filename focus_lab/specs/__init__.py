"""What a user may ask for: pydantic models only, nothing heavy is imported."""
