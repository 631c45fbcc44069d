// The interpreter of PTX: single instructions give what the PTX ISA says, and programs what their
// lanes do together; wrong programs are refused, or fail with the fault they deserve.
#include <cstdio>
#include <functional>

#include "ptx/decode.h"
#include "ptx/interpreter.h"

template <>
void cuda_emulation::declare_buffers(const int&) {}

namespace {

constexpr unsigned kThreads = 64;
constexpr size_t kSharedBytes = 2048;

alignas(16) uint64_t results[2 * kThreads];
alignas(16) uint16_t inputs[16 * 16];  // read-only

const char* const kBegin = R"(
.version 9.0
.target sm_80
.address_size 64
.extern .shared .align 128 .b8 memory[];

.visible .entry kernel(
	.param .align 8 .b8 kernel_param_0[16]
)
.maxntid 64
{
	.local .align 8 .b8 	depot[16];
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<32>;
	.reg .f32 	%f<9>;
	.reg .b64 	%rd<32>;
	.reg .f64 	%fd<9>;
	ld.param.u64 	%rd1, [kernel_param_0];
	ld.param.u64 	%rd2, [kernel_param_0+8];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 8; // where the thread's result goes
	add.s64 	%rd4, %rd1, %rd3;
)";

// Runs it with `results` and `inputs` at %rd1 and %rd2, and the thread's result at %rd4.
void run(const std::string& body, unsigned threads = kThreads) {
  const auto entries = ptx::read_entries(kBegin + body + "\nret;\n}\n");
  const ptx::Program program = ptx::decode(entries.at("kernel"));
  const void* parameters[] = {results, inputs};
  cuda_emulation::set_buffers(
      {{results, sizeof results, "results", true}, {inputs, sizeof inputs, "inputs", false}});
  std::fill(std::begin(results), std::end(results), 0);
  ptx::run(program, {nullptr, {1}, {threads}, kSharedBytes, parameters, sizeof parameters});
}

int failures = 0;

void expect(bool holds, const std::string& name, const std::string& what) {
  if (holds) return;
  failures++;
  printf("FAILED %s: %s\n", name.c_str(), what.c_str());
}

// One instruction, whose result is %r3, %rd5, %f3, %fd3, %rs3 or %p3.
struct Known {
  const char* instruction;
  uint64_t expected;
};

std::string store_of(const std::string& instruction) {
  const auto writes = [&](const char* name) {
    return instruction.find(std::string(" ") + name) != std::string::npos;
  };
  if (writes("%rd5,")) return "st.global.u64 [%rd4], %rd5;";
  if (writes("%fd3,")) return "st.global.f64 [%rd4], %fd3;";
  if (writes("%f3,")) return "st.global.f32 [%rd4], %f3;";
  if (writes("%rs3,")) return "st.global.u16 [%rd4], %rs3;";
  if (writes("%p3,")) return "selp.b32 %r3, 1, 0, %p3; st.global.u32 [%rd4], %r3;";
  return "st.global.u32 [%rd4], %r3;";
}

const Known kIntegers[] = {
    {"add.s32 %r3, 5, -7;", 0xfffffffe},
    {"sub.s64 %rd5, 3, 5;", -uint64_t{2}},
    {"mul.lo.s32 %r3, 0x10001, 0x10001;", 0x20001},
    {"mul.hi.u32 %r3, 0x80000000, 6;", 3},
    {"mul.hi.s32 %r3, 0x80000000, 6;", 0xfffffffd},
    {"mul.hi.u64 %rd5, 0x8000000000000000, 6;", 3},
    {"mul.wide.u32 %rd5, 0xffffffff, 2;", 0x1fffffffe},
    {"mul.wide.s32 %rd5, -1, 2;", -uint64_t{2}},
    {"mul.wide.u16 %r3, 0xffff, 3;", 0x2fffd},
    {"mad.lo.s64 %rd5, 3, -4, 5;", -uint64_t{7}},
    {"mad.wide.s32 %rd5, -3, 4, 5;", -uint64_t{7}},
    {"div.s32 %r3, -7, 2;", 0xfffffffd},
    {"div.u32 %r3, -7, 2;", 0x7ffffffc},
    {"rem.s64 %rd5, -7, 4;", -uint64_t{3}},
    {"rem.u32 %r3, 7, 4;", 3},
    {"min.s32 %r3, -1, 1;", 0xffffffff},
    {"min.u32 %r3, -1, 1;", 1},
    {"max.s64 %rd5, -1, 1;", 1},
    {"abs.s32 %r3, -5;", 5},
    {"neg.s64 %rd5, 5;", -uint64_t{5}},
    {"setp.lt.s32 %p3, -1, 1;", 1},
    {"setp.lt.u32 %p3, -1, 1;", 0},
    {"setp.ge.s64 %p3, 1, 1;", 1},
    {"setp.eq.b32 %p3, 0xffffffff, -1;", 1},
    {"setp.ne.s16 %p3, 1, 1;", 0},
};

const Known kBits[] = {
    {"and.b32 %r3, 12, 10;", 8},
    {"or.b64 %rd5, 12, 10;", 14},
    {"xor.b16 %rs3, 12, 10;", 6},
    {"not.b32 %r3, 5;", 0xfffffffa},
    {"shl.b32 %r3, 1, 31;", 0x80000000},
    {"shl.b32 %r3, 1, 32;", 0},
    {"shl.b64 %rd5, 1, 32;", uint64_t{1} << 32},
    {"shr.u32 %r3, 0x80000000, 31;", 1},
    {"shr.s32 %r3, 0x80000000, 31;", 0xffffffff},
    {"shr.s32 %r3, 0x80000000, 99;", 0xffffffff},
    {"shr.u64 %rd5, -1, 64;", 0},
    {"shf.l.wrap.b32 %r3, 0x80000000, 1, 33;", 3},
    {"shf.r.wrap.b32 %r3, 2, 1, 1;", 0x80000001},
    {"shf.r.clamp.b32 %r3, 2, 7, 99;", 7},
    {"shf.l.clamp.b32 %r3, 2, 7, 99;", 2},
    {"bfi.b32 %r3, 0xff, 0x1000, 4, 4;", 0x10f0},
    {"bfe.u32 %r3, 0xabcd, 4, 8;", 0xbc},
    {"bfe.s32 %r3, 0xabcd, 4, 8;", 0xffffffbc},
    {"bfe.s32 %r3, 0x80000000, 28, 16;", 0xfffffff8},
    {"prmt.b32 %r3, 0x33221100, 0x77665544, 0x7340;", 0x77334400},
    {"prmt.b32 %r3, 0x00008000, 0, 0x9991;", 0xffffff80},
    {"lop3.b32 %r3, 12, 10, 3, 0x80;", 0},
    {"lop3.b32 %r3, 12, 10, 3, 0x96;", 5},
    {"popc.b64 %r3, -1;", 64},
    {"clz.b32 %r3, 1;", 31},
    {"brev.b32 %r3, 1;", 0x80000000},
    {"mov.b64 %rd5, {1, 2};", uint64_t{2} << 32 | 1},
    {"mov.b64 {_, %r3}, 0x500000004;", 5},
    {"mov.b32 {%rs1, %rs2}, 0x50004; mov.b32 %r3, {%rs2, %rs1};", 0x40005},
    {"setp.eq.s32 %p1, 1, 1; not.pred %p2, %p1; or.pred %p3, %p1, %p2;", 1},
    {"setp.eq.s32 %p1, 1, 1; selp.b64 %rd5, 7, 8, %p1;", 7},
    {"mov.pred %p1, 0; @%p1 mov.u32 %r3, 1; @!%p1 mov.u32 %r3, 2;", 2},
    {"mov.u32 %r3, 9; { .reg .b32 %r3; mov.u32 %r3, 1; }", 9},
    {"mov.u32 %r3, %ntid.x;", kThreads},
};

const Known kFloats[] = {
    {"add.f32 %f3, 0f3F800000, 0f40000000;", 0x40400000},
    {"sub.rn.f64 %fd3, 0d3FF0000000000000, 0d4000000000000000;", 0xbff0000000000000},
    // (1 + 2^-12)^2 - 1 is lost but for a single rounding.
    {"fma.rn.f32 %f3, 0f3F800800, 0f3F800800, 0fBF800000;", 0x3a000400},
    // 1 - 2^-60, to the nearest and down.
    {"fma.rn.f32 %f3, 0fB0800000, 0f30000000, 0f3F800000;", 0x3f800000},
    {"fma.rm.f32 %f3, 0fB0800000, 0f30000000, 0f3F800000;", 0x3f7fffff},
    {"div.rn.f32 %f3, 0f3F800000, 0f40400000;", 0x3eaaaaab},
    {"rcp.rn.f64 %fd3, 0d4000000000000000;", 0x3fe0000000000000},
    {"sqrt.rn.f32 %f3, 0f41100000;", 0x40400000},
    {"min.f32 %f3, 0f7FC00000, 0f3F800000;", 0x3f800000},
    {"abs.f64 %fd3, 0dBFF0000000000000;", 0x3ff0000000000000},
    {"neg.f32 %f3, 0f3F800000;", 0xbf800000},
    {"copysign.f32 %f3, 0f80000000, 0f3F800000;", 0xbf800000},
    {"ex2.approx.ftz.f32 %f3, 0f40400000;", 0x41000000},
    {"ex2.approx.ftz.f32 %f3, 0fC3000000;", 0},  // 2^-128 is subnormal
    {"ex2.approx.f32 %f3, 0fC3000000;", 0x00200000},
    {"lg2.approx.ftz.f32 %f3, 0f41000000;", 0x40400000},
    {"rcp.approx.ftz.f32 %f3, 0f40000000;", 0x3f000000},
    {"rcp.approx.ftz.f32 %f3, 0f00000001;", 0x7f800000},
    {"rsqrt.approx.ftz.f32 %f3, 0f40800000;", 0x3f000000},
    {"rcp.approx.ftz.f64 %fd3, 0d4008000000000000;", 0x3fd5555500000000},
    {"tanh.approx.f32 %f3, 0f80000000;", 0x80000000},
    {"setp.lt.f32 %p3, 0f7FC00000, 0f00000000;", 0},
    {"setp.ne.f32 %p3, 0f7FC00000, 0f00000000;", 0},
    {"setp.neu.f32 %p3, 0f7FC00000, 0f00000000;", 1},
    {"setp.geu.f64 %p3, 0d3FF0000000000000, 0d4000000000000000;", 0},
    {"setp.nan.f32 %p3, 0f7FC00000, 0f00000000;", 1},
    {"setp.num.f32 %p3, 0f7FC00000, 0f00000000;", 0},
};

const Known kConversions[] = {
    {"cvt.u16.u32 %rs3, 0x12345;", 0x2345},
    {"cvt.s64.s32 %rd5, -2;", -uint64_t{2}},
    {"cvt.u64.u32 %rd5, -2;", 0xfffffffe},
    {"mov.u32 %r4, 0x1ff; cvt.s32.s8 %r3, %r4;", 0xffffffff},
    {"cvt.rn.f32.s32 %f3, -3;", 0xc0400000},
    {"cvt.rn.f32.u16 %f3, 0xffff;", 0x477fff00},
    {"cvt.rn.f64.u64 %fd3, 0x8000000000000000;", 0x43e0000000000000},
    {"cvt.rzi.s32.f32 %r3, 0fC0700000;", 0xfffffffd},
    {"cvt.rmi.s32.f32 %r3, 0fC0700000;", 0xfffffffc},
    {"cvt.rzi.s32.f32 %r3, 0f7F800000;", 0x7fffffff},
    {"cvt.rzi.s32.f32 %r3, 0f7FC00000;", 0},
    {"cvt.rni.f32.f32 %f3, 0f40200000;", 0x40000000},
    {"cvt.sat.f32.f32 %f3, 0f7FC00000;", 0},
    {"cvt.sat.f32.f32 %f3, 0f40200000;", 0x3f800000},
    {"cvt.f64.f32 %fd3, 0f3F800000;", 0x3ff0000000000000},
    {"cvt.rn.f32.f64 %f3, 0d3FF0000010000001;", 0x3f800001},
    {"cvt.f32.f16 %f3, 0x3c01;", 0x3f802000},
    {"cvt.f32.bf16 %f3, 0x3f81;", 0x3f810000},
    {"cvt.rn.f16.f32 %rs3, 0f3F802000;", 0x3c01},
    {"cvt.rn.bf16.f32 %rs3, 0f3F818000;", 0x3f82},
    {"cvt.rn.f16x2.f32 %r3, 0f3F800000, 0f40000000;", 0x3c004000},
    {"cvt.rn.bf16x2.f32 %r3, 0f3F800000, 0f40000000;", 0x3f804000},
};

const Known kMemory[] = {
    {"ld.global.s8 %rd5, [%rd2+2];", -uint64_t{2}},
    {"ld.global.u8 %rs3, [%rd2+2];", 0xfe},
    {"ld.global.nc.v2.u16 {%rs1, %rs2}, [%rd2]; mov.b16 %rs3, %rs2;", 0x1fe},
    {"mov.u32 %r3, -1; ld.global.u16 %r3, [%rd2+6];", 3},
    {"st.shared.v2.f64 [memory+16], {0d0000000000000001, 0d0000000000000002};"
     "ld.shared.u64 %rd5, [memory+24];",
     2},
    {"mov.u32 %r4, memory; st.shared.u8 [%r4+8], 5; ld.shared.b8 %r3, [%r4+8];", 5},
    {"mov.u64 %rd6, memory; cvta.shared.u64 %rd7, %rd6; st.shared.u32 [%rd6+4], 5;"
     "ld.u32 %r3, [%rd7+4];",
     5},
    {"mov.u64 %rd6, depot; cvta.local.u64 %rd7, %rd6; st.u64 [%rd7+8], 5;"
     "ld.local.u64 %rd5, [%rd6+8];",
     5},
    {"mov.b64 %rd6, kernel_param_0; cvta.param.u64 %rd7, %rd6; ld.u64 %rd6, [%rd7+8];"
     "sub.s64 %rd5, %rd6, %rd2;",
     0},
    {"mov.u64 %rd6, memory; cvta.shared.u64 %rd7, %rd6; add.s64 %rd7, %rd7, 4;"
     "cvta.to.shared.u64 %rd5, %rd7;",
     4},
};

void check(const Known& known) {
  run(known.instruction + store_of(known.instruction));
  for (unsigned thread = 0; thread < kThreads; ++thread) {
    if (results[thread] == known.expected) continue;
    char found[64];
    snprintf(found, sizeof found, "thread %u has 0x%llx", thread,
             static_cast<unsigned long long>(results[thread]));
    expect(false, known.instruction, found);
    return;
  }
}

// What every thread of a program gives.
struct Program {
  const char* name;
  const char* body;
  std::function<uint64_t(unsigned thread)> expected;
  unsigned threads = kThreads;
};

const Program kPrograms[] = {
    {"lanes loop as often as they like, and meet again to shuffle", R"(
	mov.u32 %r2, 0;
$loop:
	add.s32 %r2, %r2, 3;
	setp.lt.u32 %p1, %r2, %r1;
	@%p1 bra $loop;
	shfl.sync.bfly.b32 %r3|%p2, %r2, 1, 31, -1;
	st.global.u32 [%rd4], %r3;)",
     [](unsigned t) { return std::max(1u, ((t ^ 1) + 2) / 3) * 3; }},
    {"both sides of a branch run", R"(
	and.b32 %r2, %r1, 1;
	setp.eq.s32 %p1, %r2, 0;
	@%p1 bra $even;
	mov.u32 %r3, 10;
	bra.uni $end;
$even:
	mov.u32 %r3, 20;
$end:
	st.global.u32 [%rd4], %r3;)",
     [](unsigned t) { return t % 2 ? 10 : 20; }},
    {"shuffles keep to their segment", R"(
	shfl.sync.down.b32 %r3|%p1, %r1, 3, 0x181f, -1;
	shfl.sync.up.b32 %r4|%p2, %r1, 3, 0x1800, -1;
	shfl.sync.idx.b32 %r5|%p3, %r1, 9, 0x181f, -1;
	shl.b32 %r4, %r4, 8;
	shl.b32 %r5, %r5, 16;
	or.b32 %r3, %r3, %r4;
	or.b32 %r3, %r3, %r5;
	@%p1 or.b32 %r3, %r3, 0x1000000;
	@%p2 or.b32 %r3, %r3, 0x2000000;
	st.global.u32 [%rd4], %r3;)",
     [](unsigned t) {
       const unsigned at = t % 8, down = at + 3 < 8 ? t + 3 : t, up = at >= 3 ? t - 3 : t;
       return down | up << 8 | (t / 8 * 8 + 1) << 16 | (at + 3 < 8) << 24 | (at >= 3) << 25;
     }},
    {"a part of a warp votes", R"(
	setp.ge.u32 %p1, %r1, 8;
	@%p1 bra $end;
	and.b32 %r2, %r1, 1;
	setp.eq.s32 %p2, %r2, 1;
	vote.sync.ballot.b32 %r3, %p2, 0xff;
	vote.sync.any.pred %p3, %p2, 0xff;
	vote.sync.all.pred %p4, %p2, 0xff;
	bar.warp.sync 0xff;
	@%p3 add.s32 %r3, %r3, 0x100;
	@%p4 add.s32 %r3, %r3, 0x200;
	st.global.u32 [%rd4], %r3;
$end:)",
     [](unsigned t) { return t < 8 ? 0x1aa : 0; }, 32},
    {"a barrier orders warps, and tells all of one vote", R"(
	shl.b32 %r2, %r1, 2;
	mov.u32 %r3, memory;
	add.s32 %r4, %r3, %r2;
	st.shared.u32 [%r4], %r1;
	bar.sync 0;
	sub.s32 %r5, 252, %r2;
	add.s32 %r5, %r5, %r3;
	ld.shared.u32 %r6, [%r5];
	setp.eq.s32 %p1, %r1, 63;
	bar.red.or.pred %p2, 0, %p1;
	@%p2 add.s32 %r6, %r6, 1000;
	bar.red.or.pred %p3, 0, %p4;
	st.global.u32 [%rd4], %r6;)",
     [](unsigned t) { return 1063 - t; }},
    {"a copy arrives at its wait, filled up with 0", R"(
	shl.b32 %r2, %r1, 4;
	mov.u32 %r3, memory;
	add.s32 %r3, %r3, %r2;
	st.shared.u64 [%r3], 77;
	cp.async.cg.shared.global [%r3], [%rd2+16], 16, 6;
	cp.async.commit_group;
	ld.shared.u16 %r4, [%r3];
	cp.async.wait_group 1;
	ld.shared.u16 %r5, [%r3];
	cp.async.wait_group 0;
	ld.shared.u64 %rd5, [%r3];
	cvt.u64.u32 %rd6, %r4;
	shl.b64 %rd6, %rd6, 48;
	setp.eq.s32 %p1, %r4, %r5;
	@%p1 add.s64 %rd5, %rd5, %rd6;
	st.global.u64 [%rd4], %rd5;)",
     [](unsigned) {
       return uint64_t{77} << 48 | uint64_t{inputs[10]} << 32 | uint64_t{inputs[9]} << 16 |
              inputs[8];
     }},
};

void check(const Program& program) {
  run(program.body, program.threads);
  for (unsigned t = 0; t < program.threads; ++t)
    expect(results[t] == program.expected(t), program.name,
           "thread " + std::to_string(t) + " has " + std::to_string(results[t]));
}

struct Wrong {
  const char* body;
  const char* fault;  // a part of its text
};

const Wrong kWrong[] = {
    {"fma.rz.f32 %f3, %f1, %f1, %f1;", "unknown instruction fma.rz.f32"},
    {"add.s32 %r3, %r1;", "too few operands"},
    {"add.s32 %r3, %r1, %r1, %r1;", "too many operands"},
    {"add.s32 %r3, %rd1, %r1;", "register %rd1 is of another width"},
    {"add.s32 %r3, %q1, %r1;", "unknown register %q1"},
    {"add.s32 %r3, somewhere, %r1;", "unknown operand somewhere"},
    {"bra $nowhere;", "unknown label $nowhere"},
    {".shared .b8 more[4];", "unknown instruction .shared"},
    {"ld.shared.u32 %r3, [memory+2048];", "shared bounds: 4 bytes at 0x800"},
    {"ld.shared.u32 %r3, [memory+2];", "misaligned"},
    {"st.local.u64 [depot+16], %rd1;", "local bounds"},
    {"ld.param.u64 %rd5, [kernel_param_0+16];", "parameter bounds"},
    {"ld.global.u32 %r3, [%rd2+65536];", "global bounds"},
    {"st.global.u32 [%rd2], %r1;", "global bounds"},
    {"cvta.to.shared.u64 %rd5, %rd1;", "an address of another space"},
    {"cp.async.cg.shared.global [memory], [%rd2], 16, 17;", "async copy"},
    {"cp.async.cg.shared.global [memory], [%rd2], 16, 16;", "still in flight"},
    {"setp.eq.s32 %p1, %r1, 0; @%p1 bra $end; shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, -1; $end:",
     "lanes wait for others of their warp"},
    {"shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, 1;", "lanes disagree on who takes part"},
    {"setp.eq.s32 %p1, %r1, 0; @%p1 bar.sync 0;", "lanes wait for others of their warp"},
    {"setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 0;", "some warps ended before a barrier"},
    {"setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 0; @!%p1 bar.sync 1;",
     "warps wait at different barriers"},
};

void check(const Wrong& wrong) {
  std::string found = "no fault";
  try {
    run(wrong.body);
  } catch (const ptx::Fault& fault) {
    found = fault.what();
  }
  expect(found.find(wrong.fault) != std::string::npos, wrong.body, found);
}

// A 16 x 16 and B 16 x 8 of small integers, through ldmatrix: the product is exact.
const char* const kProduct = R"(
	shl.b32 %r2, %r1, 4;
	mov.u32 %r3, memory;
	add.s32 %r4, %r3, %r2;
	cvt.u64.u32 %rd5, %r2;
	add.s64 %rd5, %rd5, %rd2;
	ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd5];
	st.shared.v4.u32 [%r4], {%r5, %r6, %r7, %r8};
	bar.sync 0;
	and.b32 %r9, %r1, 15;
	shr.u32 %r10, %r1, 4;
	shl.b32 %r11, %r9, 5;
	shl.b32 %r12, %r10, 4;
	add.s32 %r13, %r3, %r11;
	add.s32 %r14, %r13, %r12;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r15, %r16, %r17, %r18}, [%r14];
	ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r19, %r20}, [%r13];
	mov.f32 %f1, 0f3F800000;
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
		{%f2, %f3, %f4, %f5}, {%r15, %r16, %r17, %r18}, {%r19, %r20}, {%f1, %f1, %f1, %f1};
	mul.wide.u32 %rd6, %r1, 16;
	add.s64 %rd6, %rd6, %rd1;
	st.global.v4.f32 [%rd6], {%f2, %f3, %f4, %f5};)";

// A is all of `inputs`, B its first 8 columns; every element is a small integer in float16.
void check_product() {
  const auto value = [](int row, int column) { return (row * 5 + column * 3) % 11; };
  const uint16_t float16[] = {0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500,
                              0x4600, 0x4700, 0x4800, 0x4880, 0x4900};
  for (int at = 0; at < 256; ++at) inputs[at] = float16[value(at / 16, at % 16)];
  run(kProduct, 32);
  const auto* found = reinterpret_cast<const float*>(results);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int expected = 1;
      for (int k = 0; k < 16; ++k) expected += value(row, k) * value(k, column);
      const int lane = row % 8 * 4 + column / 2, element = row / 8 * 2 + column % 2;
      expect(found[lane * 4 + element] == static_cast<float>(expected), "a product of matrices",
             std::to_string(row) + ", " + std::to_string(column));
    }
}

}  // namespace

int main() {
  for (int at = 0; at < 256; ++at) inputs[at] = static_cast<uint16_t>(at);
  inputs[1] = 0x1fe;
  for (const Known& known : kIntegers) check(known);
  for (const Known& known : kBits) check(known);
  for (const Known& known : kFloats) check(known);
  for (const Known& known : kConversions) check(known);
  for (const Known& known : kMemory) check(known);
  for (const Program& program : kPrograms) check(program);
  for (const Wrong& wrong : kWrong) check(wrong);
  check_product();
  if (failures == 0) printf("the interpreter of PTX: all passed\n");
  return failures != 0;
}
