"""The service's settings, from the environment (FOCUS_LAB_…) or the command line."""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where everything is, and what is allowed. Secrets come from the environment or files only."""

    model_config = SettingsConfigDict(
        env_prefix="FOCUS_LAB_", use_attribute_docstrings=True, frozen=True, extra="forbid"
    )

    home: Path = Path("runs")
    """Folder of results; with a cluster the same on every machine."""
    store: str | None = None
    """URL of the store; null for SQLite in `home`."""
    tracking_uri: str | None = Field(
        default=None, validation_alias=AliasChoices("tracking_uri", "MLFLOW_TRACKING_URI")
    )
    """MLflow tracking URI; null for a store in `home`."""
    mlflow_url: str | None = None
    """Address of MLflow's pages as browsers reach them."""
    policy: Path | None = None
    """YAML file of the policy: quotas, order, registered data sets and weights."""
    ray_dashboard: str | None = None
    """Address of the cluster's dashboard, http://HOST:PORT; null starts a cluster here."""
    ray_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("ray_token", "RAY_AUTH_TOKEN")
    )
    """The cluster's token."""
    ray_token_file: Path | None = None
    """File with the cluster's token, instead."""
    job_python: str = "python"
    """Interpreter of the cluster's head node."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    auth: bool = True
    """Whether requests need a token; without, everybody is an administrator."""
    allowed_hosts: list[str] = []
    """Further names by which browsers may reach the service."""
    dispatch: bool = True
    """Whether this process may dispatch."""
    max_body: int = Field(default=131_072, gt=0)
    """Largest body of a request, in bytes."""
    rate_per_s: float = Field(default=50.0, gt=0)
    """Requests a second of one user, or address, in the long run."""
    burst: int = Field(default=200, gt=0)
    """Requests at once."""
    max_streams: int = Field(default=1000, gt=0)
    """Open streams of events, and as many followed logs."""
    max_streams_per_user: int = Field(default=100, gt=0)
    """Of one user; where requests need no token, everybody is one user, and this does not count."""
