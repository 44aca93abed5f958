"""Machine code: kernels are compiled once for a processor, and kept in a folder that can be deleted at any time."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from functools import cache
from pathlib import Path
from typing import Protocol

from topiarist.errors import TopiaristError
from topiarist.files import atomically, user_folder
from topiarist.sparse.machine import Machine, llvm_binding

DIGEST = 32
"""Bytes of the checksum before what is kept."""


class Kernel(Protocol):
    """What can be compiled: its name says all that its code depends on, but for the version of this package."""

    @property
    def name(self) -> str:
        """Of the function."""

    def ir(self) -> str:
        """Returns it as LLVM IR."""


class Code:
    """The kernels of one processor."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.compiled = 0
        self._addresses: dict[str, int] = {}
        llvm = llvm_binding()
        target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(jit=True)
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)

    def address(self, kernel: Kernel) -> int:
        """Returns where a kernel is; it is compiled where neither this process nor the folder has it.

        Raises:
            TopiaristError: as `Machine.machine_code`.
        """
        name = kernel.name
        if name not in self._addresses:
            llvm = llvm_binding()
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(self._object(kernel)))
            self._engine.finalize_object()
            self._addresses[name] = int(self._engine.get_function_address(name))
        return self._addresses[name]

    def _object(self, kernel: Kernel) -> bytes:
        key = hashlib.sha256(f"{_sources()} {self.machine.key} {kernel.name}".encode()).hexdigest()[:32]
        file = user_folder("kernels") / f"{kernel.name}-{key}"
        kept = _read(file)
        if kept is not None:
            return kept
        self.compiled += 1
        code = self.machine.machine_code(kernel.ir())
        try:
            atomically(file, lambda path: path.write_bytes(hashlib.sha256(code).digest() + code))
        except TopiaristError as error:
            warnings.warn(f"kernels are compiled anew next time: {error}, or set TOPIARIST_CACHE", stacklevel=2)
        return code


@cache
def code_of(machine: Machine) -> Code:
    """Returns the kernels of a processor, of which a process has one set."""
    return Code(machine)


def _read(file: Path) -> bytes | None:
    """Returns what was kept; nothing where it is absent, damaged, or may be another user's: it is going to be run."""
    try:
        kept = file.read_bytes() if all(map(_ours, (file.parent, file))) and file.is_file() else b""
    except OSError:
        return None
    digest, code = kept[:DIGEST], kept[DIGEST:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def _ours(path: Path) -> bool:
    """Returns whether only this user, or the system's, can have written there."""
    found = path.stat()
    return os.name != "posix" or (found.st_uid in (0, os.getuid()) and not found.st_mode & stat.S_IWOTH)


@cache
def _sources() -> str:
    """Returns a name for the code that writes kernels: another version of it compiles anew."""
    files = sorted((Path(__file__).parent / "kernels").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
