"""The service: FastAPI over the lab. It never imports torch: drivers run elsewhere."""
