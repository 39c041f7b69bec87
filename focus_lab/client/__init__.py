"""The service's client, and the models that client and service speak in."""

from focus_lab.client.client import Client

__all__ = ["Client"]
