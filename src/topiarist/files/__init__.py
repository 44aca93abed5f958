"""Files and names as every room needs them: atomic writes, YAML, JSON and tensors, limits, checked fields."""

from topiarist.files.archives import ForeignObjectError, read_archive
from topiarist.files.atomic import as_path, atomically, remove_drafts, writable, write_text
from topiarist.files.caches import user_folder
from topiarist.files.documents import from_json, from_yaml, read_json, read_yaml, write_json
from topiarist.files.fields import check_fields, from_plain
from topiarist.files.gates import GATE, gate_buffers, gates_file, read_gates, register_gate, write_gates
from topiarist.files.imports import import_package
from topiarist.files.limits import ALLOWANCE, IN_IMAGES, IN_WEIGHTS, allowance, check_size
from topiarist.files.locks import locked, locked_file, waiting_lock
from topiarist.files.sentences import listed, one_line, shortened, shown, suggestion
from topiarist.files.tensors import read_safetensors, write_safetensors

__all__ = [
    "ALLOWANCE",
    "GATE",
    "IN_IMAGES",
    "IN_WEIGHTS",
    "ForeignObjectError",
    "allowance",
    "as_path",
    "atomically",
    "check_fields",
    "check_size",
    "from_json",
    "from_plain",
    "from_yaml",
    "gate_buffers",
    "gates_file",
    "import_package",
    "listed",
    "locked",
    "locked_file",
    "one_line",
    "read_archive",
    "read_gates",
    "read_json",
    "read_safetensors",
    "read_yaml",
    "register_gate",
    "remove_drafts",
    "shortened",
    "shown",
    "suggestion",
    "user_folder",
    "waiting_lock",
    "writable",
    "write_gates",
    "write_json",
    "write_safetensors",
    "write_text",
]
