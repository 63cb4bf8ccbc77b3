"""Federated training on handwritten digits, with compressed messages."""
