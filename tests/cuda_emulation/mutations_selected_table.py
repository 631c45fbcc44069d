"""Faults of the kernels that make the table of chosen blocks."""

from mutations import Mutations

FILE = "selected_table.cu"
BOUNDS = "global bounds"

table = Mutations("selected table", rebuilt=("selected_table",), tests="selected_table and of_the_cpu")

MUTATIONS = [
    table.fault("queries behind the last", FILE, "if (i >= p.Lq) return 0;", "", BOUNDS),
    table.wrong("each query's own choice", FILE, "i / p.query_block) *", "i) *"),
    table.wrong("the choice of the first list", FILE, "(list * p.query_blocks() + ", "("),
    table.wrong("all choices but the last", FILE, "n < p.per_row; ++n", "n < p.per_row - 1; ++n"),
    table.wrong("the last choice alone", FILE, "map |= bits_between(begin", "map = bits_between(begin"),
    table.wrong("blocks of a tile", FILE, "begin + p.key_block)", "begin + kTableTile)"),
    table.wrong("keys behind the last", FILE, "return map & bits_between(0, p.Lk - j0);", "return map;"),
    table.fault("tiles behind the last", FILE, "if (list >= p.lists) return;", "", BOUNDS),
    table.wrong(
        "maps of one half",
        FILE,
        "p.maps[tile * kTableTile + row] = map",
        "p.maps[tile * kTableTile + row % 32] = map",
    ),
    table.wrong(
        "rows of tiles beside each other",
        FILE,
        "tile / p.key_tiles() % p.query_tiles()",
        "tile % p.query_tiles()",
    ),
    table.wrong("queries of one half", FILE, "map != 0)} << first", "map != 0)}"),
    table.wrong(
        "queries behind the last see nothing", FILE, "map == keys || i0 + row >= p.Lq", "map == keys"
    ),
    table.wrong("no tile is full", FILE, "full == ~uint64_t{0} ? full : partial", "partial"),
    table.wrong(
        "a tile is full by its first half",
        FILE,
        "uint64_t{__ballot_sync(kWholeWarp, map == keys",
        "~uint64_t{0} << 32 | uint64_t{__ballot_sync(kWholeWarp, map == keys",
    ),
    table.wrong("all queries of a cut tile", FILE, "p.cuts_tiles() ? seeing != 0 : seeing", "seeing"),
    table.wrong("columns go along rows", FILE, "step(column ? p.key_tiles() : 1)", "step(1)"),
    table.fault(
        "columns are as long as rows",
        FILE,
        "count(column ? p.query_tiles() : p.key_tiles())",
        "count(p.key_tiles())",
        BOUNDS,
    ),
    table.fault(
        "lines longer than they are",
        FILE,
        "return n < count ? words[n * step] : 0;",
        "return words[n * step];",
        BOUNDS,
    ),
    table.wrong(
        "32 tiles of a line are counted",
        FILE,
        "t < line.count; t += 32) count",
        "t < line.count && t < 32; t += 32) count",
    ),
    table.wrong("a lane's count", FILE, "count = warp_sum(count);", ""),
    table.fault("all lanes write the count", FILE, "if (lane_in_warp() == 0) p.counts", "p.counts", "race"),
    table.wrong("all lists in one place", FILE, "list * p.capacity() + ", ""),
    table.wrong("lines begin with their own end", FILE, "m < n; m += 32", "m <= n; m += 32"),
    table.wrong("columns begin as rows do", FILE, " + (column ? rows : 0)", ""),
    table.wrong("a start for one head", FILE, "head < p.repeat; head += 32", "head < 1; head += 32"),
    table.fault(
        "starts of all heads in one place",
        FILE,
        "(list * p.repeat + head) * (end + 1)",
        "list * (end + 1)",
        "race",
    ),
    table.fault("the end is a line", FILE, "if (n == end) return;", "", BOUNDS),
    table.wrong(
        "the first 32 tiles of a line are listed",
        FILE,
        "first < line.count; first += 32",
        "first < 32; first += 32",
    ),
    table.fault("all entries in one place", FILE, "entries += __popc(found);", "", "race"),
    table.wrong("places with those behind", FILE, "(1u << lane_in_warp()) - 1", "(2u << lane_in_warp()) - 1"),
    table.wrong("full tiles by their words", FILE, "word == ~uint64_t{0} ? -1 : p", "p"),
    table.wrong("a cut tile's word", FILE, "p.cuts_tiles() ? tile : -2 - tile", "-2 - tile"),
    table.wrong(
        "numbers of tiles by their place", FILE, "{static_cast<int32_t>(t), map}", "{lane_in_warp(), map}"
    ),
]
