// A file of PTX as text, cut into statements: nothing is known here of what an instruction does.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

// One of `%r1`, `12`, `name`; `{%r1, %r2}`, `%r1|%p1`; `[%rd1+8]`.
struct Operand {
  std::vector<std::string> parts;
  bool is_address = false;
  int64_t plus = 0;  // in bytes, of an address
};

// An instruction, a declaration (its opcode begins with a dot), or one of `{`, `}`, `label:`.
struct Statement {
  int line = 0;
  std::string text;
  std::string guard;  // the predicate's name, if there is one
  bool guard_negated = false;
  std::string opcode;
  std::vector<Operand> operands;
};

// A kernel. Its parameter is one block of bytes.
struct Entry {
  std::string name, parameter, body, shared_name;
  size_t parameter_bytes = 0;
  unsigned most_threads = 1024;  // of a block
  int first_line = 1;            // of the body
};

using Entries = std::map<std::string, Entry>;

// Throws std::runtime_error, with the text, for what it doesn't know.
Entries read_entries(const std::string& text);
std::vector<Statement> read_statements(const Entry& entry);

}  // namespace ptx
