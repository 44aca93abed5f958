"""Files and names as every room needs them: atomic writes, YAML, checked fields, near names, optional packages."""

from topiarist.files.atomic import as_path, atomically, writable
from topiarist.files.fields import check_fields
from topiarist.files.gates import LEFT, file_beside, leave, left, read_left, write_left
from topiarist.files.imports import import_package
from topiarist.files.sentences import close_matches, one_line
from topiarist.files.yaml import from_yaml

__all__ = [
    "LEFT",
    "as_path",
    "atomically",
    "check_fields",
    "close_matches",
    "file_beside",
    "from_yaml",
    "import_package",
    "leave",
    "left",
    "one_line",
    "read_left",
    "writable",
    "write_left",
]
