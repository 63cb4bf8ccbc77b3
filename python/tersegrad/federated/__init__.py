"""Federated learning without a framework: clients send small messages, a server adds what it can trust. Needs NumPy only."""

from .client import Client
from .layout import Layout
from .limits import Limits
from .server import Accepted, Server, apply, decode

__all__ = ["Accepted", "Client", "Layout", "Limits", "Server", "apply", "decode"]
