"""Files for runtimes: written by one of torch's exporters, and compared with torch before they are kept."""

from topiarist.deploy.exports.files import Exported, export, format_names, target_of

__all__ = ["Exported", "export", "format_names", "target_of"]
