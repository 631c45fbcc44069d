// The attention kernels of the instruction set in use, forward and backward, against the
// definition; in guarded memory, with scratch that holds NaN, and bit for bit the same in whatever
// order items run.
#include "attention_case.h"
#include "attention_definition.h"
#include "check.h"

using attn::Dtype;

namespace {

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16};

void check_case(const AttentionCase& c, bool backward = true) {
  AttentionCall call(c);
  call.run(backward, false, false);
  call.check_guards();
  check_against_definition(call, backward);
  const auto expected = call.results();
  call.run(backward, true, true);
  call.check_guards();
  if (call.results() != expected)
    check::fail(__FILE__, __LINE__, c.name + ": the order of items shows in the results");
}

AttentionCase named(const char* name, AttentionShape shape, Dtype dtype = Dtype::kFloat32) {
  AttentionCase c;
  c.name = std::string(name) + " " + std::to_string(static_cast<int>(dtype));
  c.shape = shape, c.dtype = dtype;
  return c;
}

// Rows and keys around the edges of tiles of every width; see the constants of the kernels.
TEST(attention_tails) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64})
    for (const int64_t Lq : {1, 2, 5, 9, 17, 49, 65, 193})
      for (const int64_t Lk : {1, 3, 8, 33, 63, 64, 65, 130}) {
        const std::string name = "tails " + std::to_string(Lq) + " " + std::to_string(Lk);
        check_case(named(name.c_str(), {1, 1, 1, Lq, Lk, 3, 5}, dtype));
      }
}

TEST(attention_widths) {
  for (const Dtype dtype : kDtypes)
    for (int64_t D = 1; D <= 24; ++D) {
      const std::string name = "width " + std::to_string(D);
      check_case(named(name.c_str(), {1, 2, 1, 7, 11, D, D % 9 + 1}, dtype));
      check_case(named(name.c_str(), {1, 2, 1, 7, 11, D % 5 + 1, D}, dtype));
    }
  for (const Dtype dtype : kDtypes) check_case(named("wide", {1, 1, 1, 5, 70, 72, 128}, dtype));
}

TEST(attention_groups) {
  for (const int64_t group : {1, 2, 3, 8, 50})
    for (const int64_t Lq : {1, 7, 20}) {
      AttentionCase c = named("group", {2, 2 * group, 2, Lq, 70, 4, 4});
      c.upper = 70 - Lq, c.alibi = true;
      check_case(c);
    }
}

TEST(attention_layouts) {
  for (const Dtype dtype : kDtypes)
    for (const Layout layout :
         {Layout::kPlain, Layout::kHeadsInRows, Layout::kRowsApart, Layout::kColumnsApart})
      for (const int64_t D : {7, 16}) {
        AttentionCase c = named("layout", {2, 4, 2, 19, 70, D, 16}, dtype);
        c.layout = layout, c.upper = 51, c.bias = true, c.bias_dtype = dtype;
        check_case(c);
      }
}

TEST(attention_masks) {
  const int64_t bands[][2] = {{-attn::kUnbounded, 0},
                              {-attn::kUnbounded, 60},
                              {-5, 2},
                              {10, 30},
                              {0, attn::kUnbounded},
                              {200, 300},
                              {-attn::kUnbounded, attn::kUnbounded}};
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64})
    for (const auto& [lower, upper] : bands)
      for (int kind = 0; kind < 8; ++kind) {
        AttentionCase c = named("mask", {2, 2, 1, 37, 131, 4, 4}, dtype);
        c.lower = lower, c.upper = upper;
        if (kind & 1) c.offsets = {13, -20};
        if (kind & 2) c.lengths = {70, 0};
        if (kind & 4) c.bits = kind;
        c.name += " " + std::to_string(lower) + " " + std::to_string(kind);
        check_case(c);
      }
  for (int bits = 0; bits < 8; ++bits) {
    AttentionCase c = named("bits", {2, 4, 2, 37, 131, 4, 4});
    c.bits = bits;
    check_case(c);
  }
}

TEST(attention_tables) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64})
    for (int kind = 0; kind < 32; ++kind) {
      AttentionCase c = named("table", {2, 4, 2, 150, 140, 5, 4}, dtype);
      c.blocks = kind & 3;
      c.sparse = kind & 16;
      if (kind & 4) c.lower = -70, c.upper = 9, c.offsets = {13, -20};
      if (kind & 8) c.dilation = 3, c.phase = 1, c.lengths = {100, 7};
      c.name += " " + std::to_string(kind);
      check_case(c);
    }
}

TEST(attention_tables_in_chunks) {
  for (int kind = 0; kind < 8; ++kind) {
    AttentionCase c = named("chunks", {1, 4, 2, 300, 1100, kind & 1 ? 16 : 5, 4});
    c.blocks = kind & 2 ? 3 : 0;
    if (kind & 4) c.lower = -100, c.upper = 200;
    c.name += " " + std::to_string(kind);
    check_case(c);
  }
}

TEST(attention_terms) {
  for (const Dtype dtype : kDtypes)
    for (int terms = 1; terms < 64; ++terms) {
      AttentionCase c = named("terms", {2, 4, 2, 13, 70, 4, 5}, dtype);
      c.name += " " + std::to_string(terms);
      c.softcap = terms & 1 ? 1.3 : 0;
      c.bias = terms & 2, c.bias_masks = terms & 2 && terms & 32;
      c.sinks = terms & 4;
      c.alibi = terms & 8, c.alibi_per_batch = terms & 32;
      c.dropout_p = terms & 16 ? 0.3 : 0;
      if (terms & 32) c.upper = 50, c.lower = -9;
      if (terms % 5 == 0) c.scale = -0.4;
      if (dtype != Dtype::kFloat32 && terms % 3 == 0) c.bias_dtype = dtype;
      check_case(c);
    }
}

TEST(attention_scales) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64})
    for (const double scale : {-0.7, 0.0, 1e-50, 2.0})
      for (const bool bias : {false, true}) {
        AttentionCase c = named("scale", {1, 2, 1, 19, 70, 4, 4}, dtype);
        c.name += " " + std::to_string(scale);
        c.scale = scale, c.upper = 20, c.bias = bias;
        check_case(c);
      }
}

TEST(attention_drops_all) {
  AttentionCase c = named("drops all", {1, 2, 1, 19, 70, 4, 4});
  c.dropout_p = 1;
  check_case(c);
}

// Windows start blocks anywhere; the draws count keys in fours from the first one.
TEST(attention_dropout_beside_multiples_of_four) {
  for (int64_t lower = 0; lower < 6; ++lower) {
    AttentionCase c = named("dropout", {1, 2, 1, 30, 131, 4, 4});
    c.lower = lower, c.upper = lower + 40, c.dropout_p = 0.5;
    check_case(c);
  }
}

TEST(attention_bias_gradients) {
  // More pairs than query elements, and fewer; many keys: in chunks.
  const AttentionShape shapes[] = {{2, 4, 2, 13, 70, 4, 4}, {3, 2, 2, 9, 7, 16, 4}};
  const AttentionShape many_keys{2, 2, 1, 3, 1100, 4, 4};
  for (int varies = 0; varies < 16; ++varies) {
    const auto with_bias = [&](AttentionShape shape, Dtype dtype, Dtype of_bias) {
      AttentionCase c = named("bias", shape, dtype);
      c.name += " varies " + std::to_string(varies);
      c.bias = true, c.bias_dtype = of_bias;
      for (int d = 0; d < 4; ++d) c.bias_varies[d] = varies >> d & 1;
      check_case(c);
    };
    for (const AttentionShape& shape : shapes) {
      with_bias(shape, Dtype::kFloat32, Dtype::kFloat32);
      with_bias(shape, Dtype::kFloat64, Dtype::kFloat32);
      with_bias(shape, Dtype::kBFloat16, Dtype::kBFloat16);
    }
    with_bias(many_keys, Dtype::kFloat32, Dtype::kFloat32);
  }
}

TEST(attention_over_many_keys) {
  struct Band {
    int64_t lower, upper;
  };
  for (const Band band : {Band{-attn::kUnbounded, attn::kUnbounded}, Band{-attn::kUnbounded, 1500},
                          Band{1400, 1500}, Band{0, 40}, Band{-5000, -4000}})
    for (const int64_t D : {5, 16}) {
      AttentionCase c = named("many keys", {2, 2, 1, 11, 1600, D, 3});
      c.name += " " + std::to_string(band.lower);
      c.lower = band.lower, c.upper = band.upper, c.alibi = true, c.lengths = {1600, 700};
      check_case(c);
      c.layout = Layout::kHeadsInRows;
      check_case(c);
    }
}

TEST(attention_over_many_queries) {
  for (const int64_t Lq : {511, 512, 513, 1030}) {
    AttentionCase c = named("many queries", {1, 1, 1, Lq, 9, 3, 3});
    c.sinks = true;
    check_case(c);
  }
}

// Each gradient may be asked for alone.
TEST(attention_gradients_alone) {
  for (int needs = 0; needs < 64; ++needs) {
    AttentionCase c = named("needs", {2, 4, 2, 13, 70, 4, 5});
    c.name += " " + std::to_string(needs);
    c.bias = c.sinks = c.alibi = true, c.bias_varies = {false, true, true, true};
    c.dq = needs & 1, c.dk = needs & 2, c.dv = needs & 4;
    c.dbias = needs & 8, c.dsinks = needs & 16, c.dalibi = needs & 32;
    c.grad_lse = needs % 3 != 0;
    check_case(c);
  }
}

TEST(attention_of_nothing) {
  const AttentionShape shapes[] = {
      {0, 2, 1, 5, 7, 4, 4}, {2, 2, 1, 0, 7, 4, 4}, {2, 2, 1, 5, 0, 4, 4}, {2, 2, 1, 5, 7, 4, 0}};
  for (const Dtype dtype : kDtypes)
    for (const AttentionShape& shape : shapes)
      for (const bool terms : {false, true}) {
        AttentionCase c = named("nothing", shape, dtype);
        c.bias = c.sinks = c.alibi = terms;
        check_case(c);
      }
}

}  // namespace
