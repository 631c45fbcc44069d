"""Faults to plant into the small operators, and which check must notice each."""

from __future__ import annotations

from mutations import Mutations

FILE = "elementwise.cu"
BOUNDS = "global bounds"

bits = Mutations("mask bits", rebuilt=("elementwise",), tests="elementwise and pack_mask_bits")
keep = Mutations("dropout_keep", rebuilt=("elementwise",), tests="elementwise and dropout_keep")

MUTATIONS = [
    bits.fault("words beyond the last", FILE, "if (at >= p.words_in_all) return;", "", BOUNDS),
    bits.fault("keys beyond the last", FILE, "min64(first + 64, p.Lk)", "first + 64", BOUNDS),
    bits.fault("all blocks on the first words", FILE, "thread_item(), words", "threadIdx.x, words", "race"),
    bits.wrong(
        "no block for the last items", FILE, "blocks_of_threads(p.words_in_all)", "p.words_in_all / 256"
    ),
    bits.wrong("all words of the first row", FILE, "at / words_in_row * p.Lk", "0"),
    bits.wrong("words that overlap", FILE, "at % words_in_row * 64", "at % words_in_row * 32"),
    bits.wrong("the last key alone", FILE, "word |= ", "word = "),
    bits.wrong("bits of 32 keys", FILE, "<< (j - first)", "<< (j - first) % 32"),
    bits.wrong("bits one place up", FILE, "j = first; j <", "j = first + 1; j <"),
    bits.fault("all words in one place", FILE, "p.words[at] = word;", "p.words[0] = word;", "race"),
    bits.wrong("rows of keys one after the other", FILE, "at % words_in_row * 64", "at * 64"),
    bits.wrong("the first 32 keys", FILE, "uint64_t word = 0;", "uint32_t word = 0;"),
    bits.wrong("what is left out", FILE, "uint64_t{row[j]}", "uint64_t{!row[j]}"),
    bits.wrong(
        "every second key", FILE, "j < min64(first + 64, p.Lk); ++j", "j < min64(first + 64, p.Lk); j += 2"
    ),
    bits.wrong("rows and words exchanged", FILE, "at / words_in_row * p.Lk", "at % words_in_row * p.Lk"),
    keep.fault("rows beyond the last", FILE, "if (row >= p.B * p.H * p.Lq) return;", "", BOUNDS),
    keep.fault("keys beyond the last", FILE, "min64(4 * group + 4, p.Lk)", "4 * group + 4", "race"),
    keep.fault("all blocks on the first rows", FILE, "thread_item(), groups", "threadIdx.x, groups", "race"),
    keep.wrong("half the seed", FILE, "static_cast<uint64_t>(*p.seed)", "static_cast<uint32_t>(*p.seed)"),
    keep.wrong("one batch row's draws", FILE, "row / (p.H * p.Lq), row", "0, row"),
    keep.wrong("one head's draws", FILE, "row / p.Lq % p.H", "0"),
    keep.wrong("one query's draws", FILE, "row % p.Lq, group", "0, group"),
    keep.wrong("one draw for four keys", FILE, "bits >> (j % 4) & 1", "bits & 1"),
    keep.wrong("no group for the last keys", FILE, "groups = (p.Lk + 3) / 4;", "groups = p.Lk / 4;"),
    keep.fault("all rows in one place", FILE, "p.keep[row * p.Lk + j] =", "p.keep[j] =", "race"),
    keep.wrong("no seed", FILE, "dropout.seed = static_cast<uint64_t>(*p.seed);", ""),
    keep.wrong("one group's draws", FILE, "row % p.Lq, group", "row % p.Lq, 0"),
    keep.wrong("draws one key up", FILE, "(j % 4)", "((j + 1) % 4)"),
    keep.wrong("what is dropped", FILE, "bits >> (j % 4) & 1", "~bits >> (j % 4) & 1"),
    keep.wrong("three keys of four", FILE, "j < min64(4 * group + 4", "j < min64(4 * group + 3"),
]
