"""The processor that kernels are written for: how wide its vectors are, and machine code for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from topiarist.errors import TopiaristError
from topiarist.files import import_package, one_line

EXTRA = "sparse"
REGISTERS = {4: 32, 8: 16, 16: 32}
"""Vector registers by the number of floats in one: NEON, AVX2, AVX-512."""


@dataclass(frozen=True)
class Machine:
    """A processor.

    Attributes:
        cpu: its name, as LLVM has it.
        features: what it can do, as LLVM has it.
        lanes: floats of a vector.
        triple: processor and system; empty for this one's.
    """

    cpu: str
    features: str
    lanes: int
    triple: str = ""

    @property
    def registers(self) -> int:
        """Returns the number of vector registers."""
        return REGISTERS[self.lanes] if self.fuses else 16

    @property
    def fuses(self) -> bool:
        """Returns whether the processor has a fused multiply-add."""
        return self.lanes != 4 or "neon" in self.features

    @property
    def key(self) -> str:
        """Returns what machine code depends on."""
        llvm = llvm_binding()
        return f"{self.triple} {self.cpu} {self.features} {self.lanes} llvm {llvm.llvm_version_info}"

    def machine_code(self, text: str) -> bytes:
        """Compiles a kernel's LLVM IR to an object file.

        Raises:
            TopiaristError: LLVM does not take it.
        """
        llvm = llvm_binding()
        try:
            module = llvm.parse_assembly(text)
            module.verify()
            target = llvm.Target.from_triple(self.triple or llvm.get_process_triple())
            machine = target.create_target_machine(cpu=self.cpu, features=self.features, opt=3, jit=True)
            return bytes(machine.emit_object(module))
        except RuntimeError as error:
            processor = self.cpu or "this processor"
            raise TopiaristError(
                f"LLVM cannot compile a kernel for {processor} ({one_line(error)}): run the network in torch"
            ) from error


@cache
def llvm_binding() -> Any:
    """Returns llvmlite's binding, ready for this processor.

    Raises:
        TopiaristError: llvmlite is missing; the sentence says what to install.
    """
    import_package("llvmlite", EXTRA)
    llvm = import_package("llvmlite.binding", EXTRA)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


@cache
def host() -> Machine:
    """Returns the processor at hand.

    Raises:
        TopiaristError: as `llvm_binding`.
    """
    llvm = llvm_binding()
    found = llvm.get_host_cpu_features()
    lanes = 16 if found.get("avx512f") else 8 if found.get("avx2") and found.get("fma") else 4
    return Machine(llvm.get_host_cpu_name(), found.flatten(), lanes)


def without(*features: str) -> Machine:
    """Returns the processor at hand with features switched off, such as ``avx512f``."""
    this = host()
    kept = [part for part in this.features.split(",") if not part[1:].startswith(features)]
    lanes = 4 if any(name.startswith(("avx2", "fma")) for name in features) else min(this.lanes, 8)
    return Machine("", ",".join(kept), lanes)
