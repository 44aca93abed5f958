"""Other libraries' models, saved and loaded: one file a library, imported only when it is used."""

from topiarist.integrations import huggingface

__all__ = ["huggingface"]
