"""The loops of a kernel's machine code, from the text that cuobjdump makes of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

ENDS = ("EXIT", "RET", "KILL")

Edges = dict[int, list[int]]  # from a block's address to those of its successors


class Instruction(NamedTuple):
    address: int
    guarded: bool  # by a predicate
    operation: str  # without modifiers
    operands: str

    @property
    def target(self) -> int | None:
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def branches(self) -> bool:
        return self.operation in (*ENDS, "BRA", "BSYNC", "CALL")


Blocks = dict[int, list[Instruction]]  # by the address of the first instruction


def instructions(text: str) -> list[Instruction]:
    line = re.compile(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)(?:\.[\w.]*)?([^;]*);", re.MULTILINE
    )
    return [
        Instruction(int(address, 16), bool(guard), operation, operands.strip())
        for address, guard, operation, operands in line.findall(text)
    ]


def blocks_of(code: list[Instruction]) -> Blocks:
    """Runs of instructions that are entered at the first and left after the last alone."""
    leaders = {code[0].address}
    for at, instruction in enumerate(code):
        if instruction.operation in ("BRA", "BSSY", "CALL") and instruction.target is not None:
            leaders.add(instruction.target)
        if instruction.branches and at + 1 < len(code):
            leaders.add(code[at + 1].address)
    blocks: Blocks = {}
    for instruction in code:
        if instruction.address in leaders:
            first = instruction.address
            blocks[first] = []
        blocks[first].append(instruction)
    return blocks


def edges_of(blocks: Blocks) -> Edges:
    """Of the blocks that can be reached; a call counts as an instruction, and one that keeps no address to
    return to is a jump.

    BSYNC goes where the BSSY of its register said that lanes meet again.
    """
    following = dict(zip(blocks, list(blocks)[1:], strict=False))
    entry = next(iter(blocks))
    edges: Edges = {}
    pending: list[tuple[int, dict[str, int]]] = [(entry, {})]
    while pending:
        first, meetings = pending.pop()
        if first in edges:
            continue
        for instruction in blocks[first]:
            if instruction.operation == "BSSY":
                meetings = meetings | {instruction.operands.split(",")[0]: instruction.target}
        last, after = blocks[first][-1], following.get(first)
        returns = last.operation == "CALL" and any(i.target == after for i in blocks[first][:-1])
        ways = []
        if last.operation == "BRA" or (last.operation == "CALL" and not returns):
            ways.append(last.target)
        elif last.operation == "BSYNC":
            ways.append(meetings.get(last.operands, after))
        # "BRA P0, 0x10": a condition may stand among the operands.
        always = last.branches and not last.guarded and (last.operation != "BRA" or "," not in last.operands)
        if not always or returns:
            ways.append(after)
        edges[first] = [way for way in ways if way in blocks]
        pending += [(way, meetings) for way in edges[first]]
    return edges


def reverse_postorder(edges: Edges, entry: int) -> list[int]:
    order, seen = [], {entry}
    stack = [(entry, iter(edges[entry]))]
    while stack:
        block, ways = stack[-1]
        way = next((way for way in ways if way not in seen), None)
        if way is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(way)
            stack.append((way, iter(edges[way])))
    return order[::-1]


def predecessors(edges: Edges) -> Edges:
    found: Edges = {block: [] for block in edges}
    for block, ways in edges.items():
        for way in ways:
            found[way].append(block)
    return found


def dominators(edges: Edges, order: list[int]) -> dict[int, int]:
    """Of each block the nearest one that every way to it passes (Cooper, Harvey, Kennedy 2001)."""
    place = {block: at for at, block in enumerate(order)}
    before = predecessors(edges)
    nearest = {order[0]: order[0]}

    def meet(a: int, b: int) -> int:
        while a != b:
            if place[a] > place[b]:
                a = nearest[a]
            else:
                b = nearest[b]
        return a

    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [other for other in before[block] if other in nearest]
            new = known[0]
            for other in known[1:]:
                new = meet(new, other)
            changed |= nearest.get(block) != new
            nearest[block] = new
    return nearest


class Loop(NamedTuple):
    head: int
    blocks: frozenset[int]


def loops_of(edges: Edges) -> list[Loop]:
    """The natural loops: a block that an edge leads back to, which dominates it, and what lies between."""
    entry = next(iter(edges))
    nearest = dominators(edges, reverse_postorder(edges, entry))
    before = predecessors(edges)

    def dominates(a: int, b: int) -> bool:
        while b not in (a, entry):
            b = nearest[b]
        return a == b

    bodies: dict[int, set[int]] = {}
    for block, ways in edges.items():
        for head in ways:
            if not dominates(head, block):
                continue
            body = bodies.setdefault(head, {head})
            pending = [block]
            while pending:
                inside = pending.pop()
                if inside not in body:
                    body.add(inside)
                    pending += before[inside]
    return [Loop(head, frozenset(body)) for head, body in bodies.items()]


def counts(blocks: Blocks, chosen: Iterable[int]) -> Counter[str]:
    return Counter(instruction.operation for block in chosen for instruction in blocks[block])


def products_in(count: Counter[str], names: Iterable[str]) -> int:
    return sum(count[name] for name in names)


def kinds_of_products(count: Counter[str]) -> tuple[str, ...]:
    """What a loop is there for: products on tensor cores, where it has some."""
    return ("HMMA",) if count["HMMA"] else ("FFMA", "DFMA")


def main_loop(blocks: Blocks, loops: list[Loop]) -> Loop | None:
    """The innermost loop around the block with most products."""
    kinds = kinds_of_products(counts(blocks, blocks))
    inside = sorted({block for loop in loops for block in loop.blocks})
    fullest = max(inside, default=None, key=lambda block: products_in(counts(blocks, [block]), kinds))
    if fullest is None or not products_in(counts(blocks, [fullest]), kinds):
        return None
    return min((loop for loop in loops if fullest in loop.blocks), key=lambda loop: len(loop.blocks))


def shortest_round(blocks: Blocks, edges: Edges, loop: Loop) -> Counter[str]:
    """The instructions of the shortest of the ways once through a loop that take most of its products, and
    of those most of its asynchronous copies: a round with nothing special about it. Loops inside count once.
    """
    kinds = kinds_of_products(counts(blocks, loop.blocks))
    order = [block for block in reverse_postorder(edges, loop.head) if block in loop.blocks]
    place = {block: at for at, block in enumerate(order)}
    before = predecessors(edges)
    best: dict[int, tuple[tuple[int, int, int], int | None]] = {}
    for block in order:
        count = counts(blocks, [block])
        own = products_in(count, kinds), count["LDGSTS"], -len(blocks[block])
        ways = [
            (best[other][0], other) for other in before[block] if place.get(other, len(order)) < place[block]
        ]
        value, previous = max(ways, default=((0, 0, 0), None))
        best[block] = tuple(a + b for a, b in zip(value, own, strict=True)), previous
    block = max((best[other][0], other) for other in before[loop.head] if other in best)[1]
    way = []
    while block is not None:
        way.append(block)
        block = best[block][1]
    return counts(blocks, way)
