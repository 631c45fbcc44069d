// The kernels of linear attention and the delta rule, forward and backward, against the definition;
// in guarded memory, with scratch that holds NaN, and bit for bit the same in whatever order items
// run.
#include "check.h"
#include "linear_definition.h"

using attn::DecayKind;
using attn::Dtype;
using attn::FeatureMap;

namespace {

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16};
constexpr DecayKind kDecays[] = {DecayKind::kNone, DecayKind::kHead, DecayKind::kToken,
                                 DecayKind::kChannel};

void check_case(const LinearCase& c) {
  LinearCall call(c);
  call.run(false, false);
  call.check_guards();
  LinearDefinition(call).check();
  const auto expected = call.results();
  call.run(true, true);
  call.check_guards();
  if (call.results() != expected)
    check::fail(__FILE__, __LINE__, c.name + ": the order of items shows in the results");
}

LinearCase named(const std::string& name, LinearShape shape, Dtype dtype = Dtype::kFloat32) {
  LinearCase c;
  c.name = name + " " + std::to_string(static_cast<int>(dtype));
  c.shape = shape, c.dtype = dtype;
  return c;
}

// A causal case of each decay, normalised, not, and of the delta rule.
template <class Change>
void check_kinds(const std::string& name, LinearShape shape, Dtype dtype, const Change& change) {
  for (const DecayKind decay : kDecays)
    for (int kind = 0; kind < 3; ++kind) {
      if (kind == 2 && decay == DecayKind::kHead) continue;
      LinearCase c = named(name, shape, dtype);
      c.name +=
          " decay " + std::to_string(static_cast<int>(decay)) + " kind " + std::to_string(kind);
      c.decay = decay, c.normalize = kind == 0, c.delta = kind == 2;
      if (c.normalize) c.map = FeatureMap::kElu;
      change(c);
      check_case(c);
    }
}
void check_kinds(const std::string& name, LinearShape shape, Dtype dtype = Dtype::kFloat32) {
  check_kinds(name, shape, dtype, [](LinearCase&) {});
}

// Chunks hold 2 to 48 tokens.
TEST(linear_tails) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64})
    for (const int64_t L : {1, 2, 3, 4, 5, 8, 15, 16, 17, 23, 25, 47, 48, 49, 96, 97})
      check_kinds("tails " + std::to_string(L), {1, 1, 1, 1, L, L, 3, 2}, dtype);
}

TEST(linear_widths) {
  for (int64_t D = 1; D <= 18; ++D)
    check_kinds("width " + std::to_string(D), {1, 1, 1, 1, 7, 7, D, D % 7 + 1});
  for (int64_t Dv = 1; Dv <= 18; ++Dv)
    check_kinds("value width " + std::to_string(Dv), {1, 1, 1, 1, 7, 7, Dv % 5 + 1, Dv});
  for (const Dtype dtype : kDtypes) check_kinds("wide", {1, 1, 1, 1, 20, 20, 33, 70}, dtype);
}

TEST(linear_heads) {
  const LinearShape shapes[] = {
      {2, 6, 2, 2, 19, 19, 4, 5}, {1, 2, 2, 4, 19, 19, 4, 5}, {2, 2, 4, 1, 19, 19, 4, 5}};
  for (const Dtype dtype : kDtypes)
    for (const LinearShape& shape : shapes) check_kinds("heads", shape, dtype);
}

TEST(linear_layouts) {
  for (const Dtype dtype : kDtypes)
    for (const Layout layout : {Layout::kHeadsInRows, Layout::kRowsApart, Layout::kColumnsApart})
      check_kinds("layout", {2, 4, 2, 2, 19, 19, 7, 16}, dtype,
                  [&](LinearCase& c) { c.layout = layout; });
}

TEST(linear_lengths_and_borders) {
  for (const bool initial : {false, true}) {
    check_kinds("lengths", {3, 2, 1, 2, 60, 60, 4, 5}, Dtype::kFloat32,
                [&](LinearCase& c) { c.lengths = {0, 17, 60}, c.initial = initial; });
    check_kinds("borders", {1, 2, 1, 2, 60, 60, 4, 5}, Dtype::kFloat32,
                [&](LinearCase& c) { c.borders = {0, 0, 1, 50, 50, 60}, c.initial = initial; });
  }
}

TEST(linear_parts) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64})
    for (const int64_t L : {95, 96, 97, 200}) {
      check_kinds("parts", {2, 2, 1, 1, L, L, 5, 20}, dtype,
                  [](LinearCase& c) { c.part_tokens = 96; });
      check_kinds("parts of lengths", {2, 2, 1, 1, L, L, 5, 20}, dtype,
                  [&](LinearCase& c) { c.part_tokens = 48, c.lengths = {50, L}; });
      check_kinds("parts of borders", {1, 2, 1, 1, L, L, 5, 20}, dtype,
                  [&](LinearCase& c) { c.part_tokens = 48, c.borders = {0, 60, L}; });
    }
}

// What the blocks are doesn't show in the bits.
TEST(delta_rule_columns) {
  for (const Dtype dtype : kDtypes)
    for (const DecayKind decay : {DecayKind::kNone, DecayKind::kToken, DecayKind::kChannel}) {
      LinearCase c = named("columns", {1, 2, 1, 1, 200, 200, 5, 70}, dtype);
      c.decay = decay, c.delta = true, c.block_columns = 32, c.part_tokens = 96;
      check_case(c);
      LinearCall blocks(c);
      c.block_columns = c.part_tokens = 0;
      LinearCall whole(c);
      blocks.run(false, false), whole.run(false, false);
      if (blocks.results() != whole.results())
        check::fail(__FILE__, __LINE__, c.name + ": blocks and parts show in the results");
    }
}

TEST(linear_not_causal) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16})
    for (const bool normalize : {false, true})
      for (const bool initial : {false, true})
        for (const int64_t Lk : {0, 1, 49, 130}) {
          LinearCase c =
              named("not causal " + std::to_string(Lk), {2, 4, 2, 1, 50, Lk, 6, 5}, dtype);
          c.causal = false, c.normalize = normalize, c.initial = initial, c.map = FeatureMap::kElu;
          check_case(c);
          if (Lk == 0) continue;
          c.lengths = {0, Lk / 2}, c.part_tokens = 96, c.name += " parts";
          check_case(c);
        }
  LinearCase c = named("not causal, borders", {1, 2, 1, 1, 60, 60, 4, 5});
  c.causal = false, c.borders = {0, 0, 20, 60};
  check_case(c);
}

TEST(linear_feature_maps) {
  for (const Dtype dtype : kDtypes)
    for (const FeatureMap map :
         {FeatureMap::kIdentity, FeatureMap::kElu, FeatureMap::kRelu, FeatureMap::kSoftmax})
      for (const bool normalize : {false, true}) {
        LinearCase c = named("map " + std::to_string(static_cast<int>(map)),
                             {1, 2, 2, 2, 21, 21, 9, 6}, dtype);
        c.map = map, c.normalize = normalize;
        check_case(c);
      }
}

TEST(linear_strong_decays) {
  for (const double strength : {0.0, 30.0, 1e4})
    check_kinds("strong", {1, 1, 1, 1, 100, 100, 5, 6}, Dtype::kFloat64,
                [&](LinearCase& c) { c.strength = strength; });
}

// Each gradient may be asked for alone.
TEST(linear_gradients_alone) {
  for (int needs = 0; needs < 16; ++needs)
    check_kinds("needs " + std::to_string(needs), {2, 4, 2, 2, 20, 20, 4, 5}, Dtype::kFloat32,
                [&](LinearCase& c) {
                  c.dq = needs & 1, c.dk = needs & 2, c.dv = needs & 4, c.ddecay = needs & 8;
                });
}

TEST(linear_step) {
  for (const Dtype dtype : kDtypes)
    for (const int64_t Dv : {1, 7, 16, 65, 130})
      check_kinds("step", {2, 4, 1, 2, 1, 1, 9, Dv}, dtype, [](LinearCase& c) {
        LinearCall whole(c), step(c);
        whole.run(false, false);
        step.step();
        step.check_guards();
        const auto compare = [&](const GuardedArray& got, const GuardedArray& expected) {
          const double rounding = c.dtype == Dtype::kFloat64 ? 1e-12 : 1e-5;
          const double allowed = got.dtype() == accumulator_of(c.dtype) ? rounding : 0.02;
          got.for_each([&](int64_t b, int64_t h, int64_t l, int64_t d) {
            const double x = expected.at(b, h, l, d);
            CHECK_NEAR(got.at(b, h, l, d), x, allowed * (1 + std::fabs(x)));
          });
        };
        compare(step.out, whole.out);
        compare(step.initial, whole.state);
        if (c.normalize) compare(step.initial_z, whole.state_z);
      });
}

TEST(linear_of_nothing) {
  const LinearShape shapes[] = {
      {0, 2, 1, 1, 5, 5, 4, 4}, {2, 2, 1, 1, 0, 0, 4, 4}, {2, 2, 1, 1, 5, 5, 4, 0}};
  for (const LinearShape& shape : shapes)
    for (const Dtype dtype : kDtypes) check_kinds("nothing", shape, dtype);
}

}  // namespace
