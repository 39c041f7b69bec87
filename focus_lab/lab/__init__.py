"""Orchestration: the only part that imports ray, mlflow and sqlalchemy."""
