// The attention map kernels of the instruction set in use against the definition; in guarded
// memory, with scratch and workspace that hold NaN, and the same whatever order items run in.
#include "attention_case.h"
#include "attention_definition.h"
#include "check.h"

using attn::Dtype;

namespace {

class MapCall {
 public:
  MapCall(const AttentionCase& c, int64_t query_bins, int64_t key_bins) : call_(c) {
    const AttentionShape& s = c.shape;
    const Dtype dtype = accumulator_of(c.dtype);
    rows_ = {{0, 1}, {s.Lq / 2, 2}, {s.Lq - 1, 0}};
    weights = GuardedArray({s.B, s.Hq, 3, s.Lk}, dtype);
    if (query_bins > 0) binned = GuardedArray({s.B, s.Hq, query_bins, key_bins}, dtype);
    column_sums = GuardedArray({s.B, s.Hq, s.Lk, 1}, dtype);
    entropy = GuardedArray({s.B, s.Hq, s.Lq, 1}, dtype);
    static_cast<attn::AttentionParams&>(p_) = call_.params();
    p_.Dv = 0;
    p_.rows = rows_.data(), p_.row_count = 3;
    p_.query_bins = query_bins, p_.key_bins = key_bins;
    p_.weights = weights.view(), p_.binned = binned.view();
    p_.column_sums = column_sums.view(), p_.entropy = entropy.view();
  }

  void run(bool reversed, bool zeroed) {
    const AttentionShape& s = call_.options().shape;
    const auto& kernels = attn::kernels().attention[static_cast<int>(call_.options().dtype)];
    weights.for_each(
        [&](int64_t b, int64_t h, int64_t l, int64_t d) { weights.set(b, h, l, d, 0); });
    p_.chunks = kernels.map.chunks(p_);
    const int64_t element = call_.options().dtype == Dtype::kFloat64 ? 8 : 4, heads = s.B * s.Hq;
    Scratch lse(2 * heads * s.Lq * element), entropies(8 * heads * p_.chunks * s.Lq),
        bins(8 * heads * (p_.key_bins + p_.chunks - 1) * p_.query_bins);
    for (Scratch* scratch : {&lse, &entropies, &bins}) scratch->fill(zeroed);
    p_.row_lse = lse.memory.get();
    p_.entropy_partial = static_cast<double*>(entropies.memory.get());
    p_.bin_partial = static_cast<double*>(bins.memory.get());
    run_items<attn::AttentionParams>(kernels.forward, p_, reversed, zeroed);
    run_items(kernels.map.rows, p_, reversed, zeroed);
    run_items(kernels.map.tiles, p_, reversed, zeroed);
    run_items(kernels.map.reduce, p_, reversed, zeroed);
    call_.check_guards();
    for (GuardedArray* array : {&weights, &binned, &column_sums, &entropy}) array->check_guards();
  }

  void check_against_definition() {
    const AttentionCase& c = call_.options();
    const AttentionShape& s = c.shape;
    Sums chosen(weights), tiles(p_.query_bins ? Sums(binned) : Sums(1, 1, 1, 1));
    Sums columns(column_sums), entropies(entropy);
    const auto bin_of = [](int64_t i, int64_t bins, int64_t length) {
      int64_t bin = 0;
      while ((bin + 1) * length / bins <= i) ++bin;
      return bin;
    };
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t h = 0; h < s.Hq; ++h)
        for (int64_t i = 0; i < s.Lq; ++i) {
          const Row row = softmax_row(call_, b, h, i);
          for (int64_t j = 0; j < s.Lk; ++j) {
            const double weight = row.weight[static_cast<size_t>(j)];
            columns(b, h, j, 0) += weight;
            if (weight > 0) entropies(b, h, i, 0) -= weight * std::log(weight);
            for (const attn::MapRow& wanted : rows_)
              if (wanted.row == i) chosen(b, h, wanted.place, j) = weight;
            if (p_.query_bins == 0) continue;
            const int64_t q = bin_of(i, p_.query_bins, s.Lq), k = bin_of(j, p_.key_bins, s.Lk);
            const int64_t pairs = ((q + 1) * s.Lq / p_.query_bins - q * s.Lq / p_.query_bins) *
                                  ((k + 1) * s.Lk / p_.key_bins - k * s.Lk / p_.key_bins);
            tiles(b, h, q, k) += weight / static_cast<double>(pairs);
          }
        }
    const double tolerance = c.dtype == Dtype::kFloat64 ? 1e-12 : 2e-5;
    check_close("weights", c.name, weights, chosen, tolerance);
    check_close("binned", c.name, binned, tiles, tolerance);
    check_close("column sums", c.name, column_sums, columns, tolerance);
    check_close("entropy", c.name, entropy, entropies, tolerance);
  }

  std::vector<std::vector<char>> results() {
    return {weights.bytes(), binned.bytes(), column_sums.bytes(), entropy.bytes()};
  }

  GuardedArray weights, binned, column_sums, entropy;

 private:
  AttentionCall call_;
  std::vector<attn::MapRow> rows_;
  attn::AttentionMapParams p_;
};

void check_map(const AttentionCase& c, int64_t query_bins = 0, int64_t key_bins = 0) {
  MapCall call(c, query_bins, key_bins);
  call.run(false, false);
  call.check_against_definition();
  const auto expected = call.results();
  call.run(true, true);
  if (call.results() != expected)
    check::fail(__FILE__, __LINE__, c.name + ": the order of items shows in the results");
}

AttentionCase named(const std::string& name, AttentionShape shape, Dtype dtype = Dtype::kFloat32) {
  AttentionCase c;
  c.name = "map, " + name + " " + std::to_string(static_cast<int>(dtype));
  c.shape = shape, c.dtype = dtype;
  return c;
}

TEST(attention_map_tails) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16})
    for (const int64_t Lq : {3, 8, 64, 65, 130})
      for (const int64_t Lk : {1, 15, 33, 64, 130}) {
        AttentionCase c = named("tails", {1, 2, 1, Lq, Lk, 7, 1}, dtype);
        c.upper = Lk - Lq;
        check_map(c);
        check_map(c, 3, std::min<int64_t>(Lk, 5));
      }
}

TEST(attention_map_layouts) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16})
    for (const Layout layout : {Layout::kHeadsInRows, Layout::kRowsApart, Layout::kColumnsApart})
      for (const int64_t D : {7, 16}) {
        AttentionCase c = named("layout", {2, 4, 2, 19, 70, D, 1}, dtype);
        c.layout = layout, c.bias = true, c.bias_dtype = dtype;
        check_map(c, 4, 6);
      }
}

TEST(attention_map_terms_and_masks) {
  AttentionCase c = named("terms", {2, 4, 2, 70, 130, 8, 1});
  c.softcap = 1.5, c.sinks = c.alibi = true, c.lengths = {0, 100};
  check_map(c, 5, 9);
  c.bias = c.bias_masks = true, c.bits = 7;
  check_map(c, 70, 130);
  AttentionCase table = named("table", {2, 4, 2, 70, 130, 8, 1});
  table.blocks = 3, table.lower = -60, table.upper = 80, table.dilation = 3,
  table.offsets = {0, -20};
  check_map(table, 5, 9);
}

TEST(attention_map_chunks_share_bins) {
  AttentionCase c = named("chunks", {1, 1, 1, 70, 2100, 4, 1});
  for (const int64_t bins : {1, 3, 7, 33}) check_map(c, 2, bins);
}

}  // namespace
