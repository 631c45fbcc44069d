// How the backward pass is cut up; see GradPlan. Included by kernels.inl.

constexpr int64_t kTasksWanted = 32;
constexpr int64_t kBlocksPerChunk = 8;    // at least
constexpr int64_t kStatisticsRows = 512;  // per work item of the first pass

// Key blocks of chunk c of one head: first, first + step, ... < end.
struct ChunkBlocks {
  int64_t first, end, step;
};
inline ChunkBlocks chunk_blocks(const AttentionGradParams& p, int64_t chunk) {
  const int64_t blocks = (p.Lk + kKeyBlock - 1) / kKeyBlock, chunks = p.plan.chunks;
  if (p.plan.contiguous) return {blocks * chunk / chunks, blocks * (chunk + 1) / chunks, 1};
  return {chunk, blocks, chunks};
}

// The queries a chunk may reach, from an even one on: rows may be taken in pairs.
inline Range chunk_rows(const AttentionGradParams& p, int64_t b, int64_t chunk) {
  const ChunkBlocks blocks = chunk_blocks(p, chunk);
  const Range keys{blocks.first * kKeyBlock, min64(p.Lk, blocks.end * kKeyBlock)};
  const Range rows = p.mask.query_range(b, keys);
  return {rows.begin / 2 * 2, rows.end};
}

// Whether neighbouring key blocks are seen by few others than their own queries: the table's query
// tiles then lie in half of the chunks or fewer, if these hold neighbouring blocks.
inline bool is_local(const BlockTable& table, int64_t chunks) {
  int64_t meetings = 0;  // of a query tile and a chunk
  const int64_t lists = table.batches * table.heads;
  for (int64_t n = 0; n < lists; ++n)
    for (int64_t q = 0; q < table.query_tiles; ++q) {
      const BlockTable::List list = table.row(n / table.heads, n % table.heads, q);
      int64_t last = -1;
      for (const TableEntry* entry = list.begin; entry != list.end; ++entry) {
        // The chunk c with blocks * c / chunks <= tile < blocks * (c + 1) / chunks.
        const int64_t chunk = (chunks * (entry->tile + 1) - 1) / table.key_tiles;
        meetings += chunk != last;
        last = chunk;
      }
    }
  return 2 * meetings <= lists * table.query_tiles * chunks;
}

template <class A>
GradPlan plan_attention_backward(const AttentionGradParams& p) {
  AttentionGradParams q = p;
  GradPlan& plan = q.plan;
  plan = GradPlan();
  const int64_t* size = p.bias_size;
  const int64_t bias_elements = size[0] * size[1] * size[2] * size[3];
  if (p.dbias) {
    const bool shared = size[2] > 1 && size[3] > 1 && bias_elements > p.Lq * p.D;
    plan.merge_batch = shared && size[0] == 1;
    plan.merge_heads = shared && size[1] == 1;
  }
  const int64_t units = (plan.merge_batch ? 1 : p.B) * (plan.merge_heads ? 1 : p.Hkv);
  const int64_t blocks = (p.Lk + kKeyBlock - 1) / kKeyBlock;
  plan.chunks =
      max64(1, min64((kTasksWanted + units - 1) / max64(1, units), blocks / kBlocksPerChunk));
  // A band bounded on both sides reaches few rows from neighbouring keys; else deal blocks out for
  // balance.
  plan.contiguous = p.mask.lower > -p.mask.Lk - p.mask.Lq && p.mask.upper < p.mask.Lk + p.mask.Lq &&
                    p.mask.upper - p.mask.lower < p.Lk / 2;
  if (p.mask.table && plan.chunks > 1)
    plan.contiguous = plan.contiguous || is_local(p.mask.table, plan.chunks);
  if (p.dbias)
    plan.bias_slots = (size[0] == 1 && !plan.merge_batch ? p.B : 1) *
                      (size[1] == 1 && !plan.merge_heads ? p.Hkv : 1) *
                      (size[3] == 1 ? plan.chunks : 1);
  plan.row_blocks = (p.Lq + kStatisticsRows - 1) / kStatisticsRows;
  if (p.dq) {
    plan.dq_width = (p.D + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
    plan.dq_direct = has_reusable_rows<A>(p.dq, p.D) && plan.dq_width == p.D;
    plan.dq_buffers = plan.chunks - (plan.dq_direct ? 1 : 0);
  }
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t c = 0; c < plan.chunks; ++c) {
      const Range rows = chunk_rows(q, b, c);
      plan.reach_rows = max64(plan.reach_rows, rows.end - rows.begin);
      if (p.dq && !(plan.dq_direct && c == 0))
        plan.dq_rows = max64(plan.dq_rows, rows.end - rows.begin);
    }
  return plan;
}

// The dq rows a chunk adds into: row i of head g of the group lies at data + g * head + (i - first)
// * width.
template <class A>
struct ChunkDq {
  A* data = nullptr;
  int64_t head = 0, width = 0;
  Range rows{0, 0};
  uint8_t* touched = nullptr;  // tile t of head g: touched[g * tiles + t]; null: all are
  int64_t tiles = 0;

  bool holds(int64_t g, int64_t i) const {
    return rows.contains({i, i + 1}) && (!touched || touched[g * tiles + i / kTableTile]);
  }
};
template <class A>
ChunkDq<A> chunk_dq(const AttentionGradParams& p, int64_t b, int64_t hkv, int64_t chunk) {
  const GradPlan& plan = p.plan;
  if (plan.dq_direct && chunk == 0)
    return {reinterpret_cast<A*>(p.dq.at(b, hkv * p.group(), 0)),
            p.dq.stride[1],
            p.dq.stride[2],
            {0, p.Lq}};
  const int64_t buffer = (b * p.Hkv + hkv) * plan.dq_buffers + chunk - (plan.dq_direct ? 1 : 0);
  const int64_t head = plan.dq_rows * plan.dq_width, tiles = p.mask.table.query_tiles;
  return {static_cast<A*>(p.dq_partial) + buffer * p.group() * head,
          head,
          plan.dq_width,
          chunk_rows(p, b, chunk),
          p.dq_touched ? p.dq_touched + buffer * p.group() * tiles : nullptr,
          tiles};
}
