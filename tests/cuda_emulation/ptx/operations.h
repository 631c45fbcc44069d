// The instructions this interpreter knows, by their whole opcode. What is not in the table is
// an error, and so is a modifier that nobody thought of.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

// What an operand has to be.
struct Kind {
  uint8_t bytes;            // 0: a predicate
  bool wider = false;       // the register may have more
  bool is_address = false;  // of 4 or 8 bytes
  bool is_label = false;
};

constexpr Kind kPredicate{0}, kAddress{8, false, true}, kLabel{0, false, false, true};

struct Operation {
  Action action = nullptr;
  Flow flow = Flow::kNext;
  std::vector<Kind> operands;  // vectors in braces count as their elements
};

using Operations = std::unordered_map<std::string, Operation>;

// A mov that splits or joins a vector has "split" or "join" and the number of elements behind its
// opcode.
const Operations& operations();

// Each is a file of its own.
void add_arithmetic(Operations& table);
void add_bits(Operations& table);
void add_conversions(Operations& table);
void add_memory(Operations& table);
void add_warp_operations(Operations& table);

}  // namespace ptx
