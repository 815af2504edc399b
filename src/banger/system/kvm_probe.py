"""A tiny guest that tells whether /dev/kvm runs stock kernels. A program, run by system/kvm alone.

Some hosts offer a KVM that works by para-virtualisation: the API is whole, but ring 0 of an ordinary
guest is interpreted, at about half a microsecond an instruction, and a stock kernel never gets
anywhere. So the guest here does in 64-bit ring 0 what kernels do (own descriptor tables, interrupt flag,
a fault and its return, page-table switches), then runs a counted loop that is timed from outside.
Runs with `python -I -S`; the standard library only. Prints one JSON object; leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import sys
import time

# linux/kvm.h; the sizes of the structs are the x86 ABI's.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
EXIT_IO = 2

MEMORY = 1 << 21
CODE, GDT, IDT, STACK, TABLES = 0x1000, 0x2000, 0x2100, 0x9000, 0x10000
LOOP_INSTRUCTIONS = 40_000
# Assembled by hand from the comment at each line; origin CODE.
PROGRAM = bytes.fromhex(
    "668cc8a8037550"  # mov ax,cs; test al,3; jnz bad: do we run in ring 0, and see that we do?
    "0f01142563100000"  # lgdt [gdtr]
    "0f011c256d100000"  # lidt [idtr]
    "68020200009dfa"  # push 0x202; popfq; cli
    "9c58a9000200007530"  # pushfq; pop rax; test eax,0x200; jnz bad: is the interrupt flag ours?
    "0f0b"  # ud2: a fault, through our own table, and back
    "0f20dbb964000000"  # mov rbx,cr3; mov ecx,100
    "0f22dbffc975f9"  # mov cr3,rbx; dec ecx; jnz: page-table switches
    "be03000000"  # mov esi,3: three rounds
    "b053e6f1"  # out 0xf1,'S'
    "b9204e0000ffc975fc"  # mov ecx,20000; dec ecx; jnz: the timed loop
    "b045e6f1"  # out 0xf1,'E'
    "ffce75eb"  # dec esi; jnz
    "b044e6f1f4"  # out 0xf1,'D'; hlt
    "b042e6f1f4"  # bad: out 0xf1,'B'; hlt
    "488304240248cf"  # ud: add qword [rsp],2; iretq
    "17000020000000000000"  # gdtr
    "6f000021000000000000"  # idtr
)
UD_HANDLER = 0x105C


def _guest_memory() -> mmap.mmap:
    memory = mmap.mmap(-1, MEMORY)
    memory[CODE : CODE + len(PROGRAM)] = PROGRAM
    memory[GDT : GDT + 24] = struct.pack("<3Q", 0, 0x00209B0000000000, 0x0000930000000000)
    memory[IDT + 96 : IDT + 112] = struct.pack("<HHBBHIQ", UD_HANDLER, 8, 0, 0x8E, 0, 0, 0)[:16]
    # one 2 MiB page, mapped one to one
    for table, entry in ((0, TABLES + 0x1007), (0x1000, TABLES + 0x2007), (0x2000, 0x83)):
        memory[TABLES + table : TABLES + table + 8] = struct.pack("<Q", entry)
    return memory


def _long_mode(sregs: bytearray) -> None:
    """struct kvm_sregs for 64-bit ring 0: flat segments, paging on."""

    def segment(selector: int, kind: int, *, code: bool) -> bytes:
        return struct.pack(
            "<QIHBBBBBBBBBB", 0, 0xFFFFFFFF, selector, kind, 1, 0, int(not code), 1, int(code), 1, 0, 0, 0
        )

    sregs[0:24] = segment(8, 11, code=True)
    for index in range(1, 6):
        sregs[24 * index : 24 * index + 24] = segment(16, 3, code=False)
    cr0, cr4, efer = 0x80050033, 0x20, 0xD00
    struct.pack_into("<6Q", sregs, 24 * 8 + 32, cr0, 0, TABLES, cr4, 0, efer)


def probe(device: str) -> dict[str, object]:
    """ok, and ns_per_instruction (best of three rounds); or what failed."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, KVM_GET_API_VERSION, 0)
    if version != 12:
        return {"ok": False, "reason": f"its API version is {version}, not 12"}
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    # three pages that Intel's KVM wants for real mode; the address does not fit fcntl.ioctl's int
    libc.ioctl(vm, KVM_SET_TSS_ADDR, ctypes.c_ulong(0xFFFBD000))
    memory = _guest_memory()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, MEMORY, address))
    cpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(cpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
    sregs = bytearray(312)
    fcntl.ioctl(cpu, KVM_GET_SREGS, sregs)
    _long_mode(sregs)
    fcntl.ioctl(cpu, KVM_SET_SREGS, bytes(sregs))
    registers = [0] * 18
    registers[6], registers[16], registers[17] = STACK, CODE, 2  # rsp, rip, rflags
    fcntl.ioctl(cpu, KVM_SET_REGS, struct.pack("<18Q", *registers))
    best = float("inf")
    while True:
        started = time.perf_counter_ns()
        fcntl.ioctl(cpu, KVM_RUN, 0)
        spent = time.perf_counter_ns() - started
        reason = struct.unpack_from("<I", run, 8)[0]
        if reason != EXIT_IO:
            return {"ok": False, "reason": f"a 64-bit guest stopped with exit {reason}"}
        said = run[struct.unpack_from("<Q", run, 40)[0]]
        if said == ord("E"):
            best = min(best, spent / LOOP_INSTRUCTIONS)
        elif said == ord("B"):
            return {"ok": False, "reason": "a guest's ring 0 is not like a processor's"}
        elif said == ord("D"):
            return {"ok": True, "ns_per_instruction": round(best, 3)}


def main() -> None:
    try:
        result = probe(sys.argv[1])
    except OSError as error:
        result = {"ok": False, "reason": f"a guest could not be set up: {error}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
