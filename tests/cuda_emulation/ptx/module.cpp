#include "module.h"

#include <algorithm>
#include <regex>
#include <stdexcept>

namespace ptx {

namespace {

constexpr const char* kSpaces = " \t\n";

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpaces);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

int lines_in(const std::string& text, size_t begin, size_t end) {
  return static_cast<int>(std::count(text.begin() + begin, text.begin() + end, '\n'));
}

std::string without_comments(std::string text) {
  for (size_t at = 0; (at = text.find("//", at)) != std::string::npos;) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::fill(text.begin() + at, text.begin() + end, ' ');
  }
  return text;
}

size_t end_of_braces(const std::string& text, size_t open) {
  int depth = 0;
  for (size_t at = open; at < text.size(); ++at) {
    depth += (text[at] == '{') - (text[at] == '}');
    if (depth == 0) return at;
  }
  throw std::runtime_error("PTX: a brace is not closed");
}

Entry read_head(const std::string& head) {
  static const std::regex form(
      R"((?:\.(?:visible|weak) )?\.entry\s+(\w+)\s*\(\s*\.param \.align \d+ \.b8 (\w+)\[(\d+)\]\s*\))"
      R"((?:\s*\.maxntid (\d+)[ ,1]*)?(?:\s*\.minnctapersm \d+)?)");
  std::smatch found;
  if (!std::regex_match(head, found, form))
    throw std::runtime_error("PTX: unknown declaration: " + head);
  Entry entry;
  entry.name = found[1], entry.parameter = found[2];
  entry.parameter_bytes = std::stoul(found[3]);
  if (found[4].matched) entry.most_threads = static_cast<unsigned>(std::stoul(found[4]));
  return entry;
}

// What stands between entries, a line each; returns the name of the shared memory, if it is there.
std::string read_directives(const std::string& text) {
  static const std::regex known(R"(\.(version|target|address_size) .*)");
  static const std::regex shared(R"(\.extern \.shared \.align \d+ \.b8 (\w+)\[\];)");
  std::string name;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = trimmed(text.substr(at, end - at));
    std::smatch found;
    if (std::regex_match(line, found, shared))
      name = found[1];
    else if (!line.empty() && !std::regex_match(line, known))
      throw std::runtime_error("PTX: unknown declaration: " + line);
    at = end + 1;
  }
  return name;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(separator, at), text.size());
    parts.push_back(trimmed(text.substr(at, end - at)));
    at = end + 1;
  }
  return parts;
}

Operand read_operand(const std::string& text) {
  Operand operand;
  if (text[0] == '{') {
    operand.parts = split(text.substr(1, text.size() - 2), ',');
  } else if (text[0] == '[') {
    operand.is_address = true;
    const size_t plus = text.find('+');
    operand.parts = {trimmed(text.substr(1, std::min(plus, text.size() - 1) - 1))};
    if (plus != std::string::npos) operand.plus = std::stoll(text.substr(plus + 1));
  } else {
    operand.parts = split(text, '|');
  }
  return operand;
}

// Commas inside of braces and brackets belong to the operand.
std::vector<Operand> read_operands(const std::string& text) {
  std::vector<Operand> operands;
  int depth = 0;
  size_t begin = 0;
  for (size_t at = 0; at <= text.size(); ++at) {
    const char c = at < text.size() ? text[at] : ',';
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c != ',' || depth != 0) continue;
    if (const std::string operand = trimmed(text.substr(begin, at - begin)); !operand.empty())
      operands.push_back(read_operand(operand));
    begin = at + 1;
  }
  return operands;
}

Statement read_statement(const std::string& text, int line) {
  Statement statement;
  statement.line = line;
  statement.text = text;
  size_t at = 0;
  if (text[0] == '@') {
    const size_t end = text.find_first_of(kSpaces);
    statement.guard_negated = text[1] == '!';
    at = 1 + statement.guard_negated;
    statement.guard = text.substr(at, end - at);
    at = std::min(text.find_first_not_of(kSpaces, end), text.size());
  }
  const size_t end = std::min(text.find_first_of(kSpaces, at), text.size());
  statement.opcode = text.substr(at, end - at);
  if (statement.opcode != ".pragma") statement.operands = read_operands(text.substr(end));
  return statement;
}

// Where a statement that begins at `at` ends: behind a brace or the colon of a label, or before
// the semicolon. Two colons are a part of an opcode.
size_t end_of_statement(const std::string& body, size_t at) {
  if (body[at] == '{' || body[at] == '}') return at + 1;
  size_t end = body.find_first_of(":;", at);
  while (end != std::string::npos && body.compare(end, 2, "::") == 0)
    end = body.find_first_of(":;", end + 2);
  if (end == std::string::npos)
    throw std::runtime_error("PTX: a statement has no end: " + body.substr(at));
  return body[end] == ':' ? end + 1 : end;
}

}  // namespace

Entries read_entries(const std::string& file) {
  const std::string text = without_comments(file);
  Entries entries;
  std::string shared_name;
  size_t at = 0;
  for (size_t word; (word = text.find(".entry", at)) != std::string::npos;) {
    const size_t head = text.rfind('\n', word) + 1, open = text.find('{', word);
    const std::string between = text.substr(at, head - at);
    if (const std::string name = read_directives(between); !name.empty()) shared_name = name;
    Entry entry = read_head(trimmed(text.substr(head, open - head)));
    const size_t close = end_of_braces(text, open);
    entry.body = text.substr(open + 1, close - open - 1);
    entry.first_line = 1 + lines_in(text, 0, open);
    entry.shared_name = shared_name;
    entries[entry.name] = entry;
    at = close + 1;
  }
  read_directives(text.substr(at));
  return entries;
}

std::vector<Statement> read_statements(const Entry& entry) {
  const std::string& body = entry.body;
  std::vector<Statement> statements;
  int line = entry.first_line;
  for (size_t at = 0; at < body.size();) {
    size_t begin = body.find_first_not_of(" \t\n;", at);
    if (begin == std::string::npos) break;
    const size_t end = end_of_statement(body, begin);
    line += lines_in(body, at, begin);
    statements.push_back(read_statement(trimmed(body.substr(begin, end - begin)), line));
    line += lines_in(body, begin, end);
    at = end;
  }
  return statements;
}

}  // namespace ptx
