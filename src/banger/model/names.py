"""Names of VMs, images and kernels: what is one, and how a readable one is made (SPEC §1).

Used by the CLI *and* the daemon, so it imports nothing but errors.py: not even `re` or `secrets`,
which would cost the CLI more than the check. Names are never normalised. Pure but for os.urandom.
"""

from __future__ import annotations

import os
from collections.abc import Container

from banger.errors import BangerError, ErrorCode

MAX_NAME_LENGTH = 63
"""A DNS label's limit (RFC 1035): `<name>.vm` must be a host name."""

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_RULE = f"a name is 1 to {MAX_NAME_LENGTH} of a-z, 0-9 and -, and neither begins nor ends with -"

_ADJECTIVES = (
    "amber able agile azure bold brave brief bright brisk calm clear clever cool coral cosy crisp "
    "daring deep dusty eager early easy fair fancy fast fine fleet fond free fresh gentle glad golden "
    "grand happy hardy honest icy jolly keen kind light lively loyal lucky mellow merry mild misty "
    "noble plain proud quick quiet rapid ready royal rustic shiny silent silver sleek smart snowy "
    "solid spry steady still sunny swift tidy vivid warm wise witty young"
)
_ANIMALS = (
    "adder alpaca badger bear beaver bison bobcat buzzard camel cobra condor coyote crane cricket "
    "crow deer dingo dolphin donkey dove eagle egret elk falcon ferret finch fox gecko gibbon goose "
    "hare hawk heron hornet ibex iguana jackal jay kestrel koala lark lemur lion lizard llama lynx "
    "magpie marten mink mole moose moth newt ocelot otter owl panda parrot pelican puffin puma quail "
    "rabbit raven robin salmon seal shrew sloth sparrow stoat swan tapir tern tiger toad trout viper "
    "walrus weasel whale wolf wombat yak zebra"
)


def name_fault(name: str) -> str | None:
    """What is wrong with this name, in one line; None when nothing is."""
    if not name:
        return "the name is empty"
    if len(name) > MAX_NAME_LENGTH:
        return f"the name is {len(name)} characters long, {MAX_NAME_LENGTH} are allowed"
    if not _LETTERS.issuperset(name):
        bad = next(letter for letter in name if letter not in _LETTERS)
        return f"the name {name!a} contains {bad!a}"
    if name[0] == "-" or name[-1] == "-":
        return f"the name {name!a} {'begins' if name[0] == '-' else 'ends'} with -"
    return None


def validate_name(name: str) -> str:
    """The name itself, unchanged; BangerError INVALID_ARGUMENT when it is not one."""
    fault = name_fault(name)
    if fault is not None:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, fault, hint=_RULE)
    return name


def generate_name(taken: Container[str]) -> str:
    """A readable name that is not in `taken`, such as calm-otter.

    After a few collisions a number is added, so that this always ends, whatever is taken.
    """
    for _ in range(16):
        name = _pair()
        if name not in taken:
            return name
    number = 2
    while True:
        name = f"{_pair()}-{number}"
        if name not in taken:
            return name
        number += 1


def _pair() -> str:
    adjectives, animals = _ADJECTIVES.split(), _ANIMALS.split()
    number, adjective = divmod(int.from_bytes(os.urandom(8), "big"), len(adjectives))
    return f"{adjectives[adjective]}-{animals[number % len(animals)]}"
