#include "decode.h"

#include <map>
#include <optional>
#include <regex>

#include "operations.h"
#include "warp.h"

namespace ptx {

namespace {

using Names = std::unordered_map<std::string, uint32_t>;

uint32_t bytes_of_type(const std::string& type) {
  static const std::map<std::string, uint32_t> kBytes = {
      {"pred", 0}, {"b16", 2}, {"u16", 2}, {"s16", 2}, {"b32", 4}, {"u32", 4},
      {"s32", 4},  {"f32", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8}};
  const auto found = kBytes.find(type);
  if (found == kBytes.end()) throw Fault("unknown type " + type);
  return found->second;
}

const std::map<std::string, Special> kSpecials = {{"%tid", Special::kThread},
                                                  {"%ctaid", Special::kBlock},
                                                  {"%ntid", Special::kThreads},
                                                  {"%nctaid", Special::kBlocks}};

class Decoder {
 public:
  explicit Decoder(const Entry& entry) : entry_(entry) {
    program_.name = entry.name;
    program_.parameter_bytes = entry.parameter_bytes;
    program_.most_threads = entry.most_threads;
    symbols_[entry.parameter] = 0;
    if (!entry.shared_name.empty()) symbols_[entry.shared_name] = 0;
    scopes_.emplace_back();
  }

  Program run() {
    for (const Statement& statement : read_statements(entry_)) {
      try {
        read(statement);
      } catch (const Fault& fault) {
        throw Fault(std::string(fault.what()) + ": `" + statement.text + "` in line " +
                    std::to_string(statement.line) + " of " + entry_.name);
      }
    }
    finish();
    return std::move(program_);
  }

 private:
  void read(const Statement& s) {
    if (s.opcode == "{")
      scopes_.emplace_back();
    else if (s.opcode == "}")
      scopes_.pop_back();
    else if (s.opcode == ".reg")
      declare_registers(s.text);
    else if (s.opcode == ".local")
      declare_local(s.text);
    else if (s.opcode.back() == ':')
      labels_[s.opcode.substr(0, s.opcode.size() - 1)] = next();
    else if (s.opcode != ".pragma")
      add(s);
  }

  uint32_t next() const { return static_cast<uint32_t>(program_.instructions.size()); }

  // `.reg .b32 %r<68>;` are %r0 to %r67.
  void declare_registers(const std::string& text) {
    static const std::regex form(R"(\.reg\s+\.(\w+)\s+([%\w]+)(<\d+>)?)");
    std::smatch found;
    if (!std::regex_match(text, found, form)) throw Fault("unknown declaration");
    const uint32_t bytes = bytes_of_type(found[1]);
    if (found[3].matched)
      families_[found[2]] = bytes;
    else
      scopes_.back()[found[2]] = new_place(bytes);
  }

  void declare_local(const std::string& text) {
    static const std::regex form(R"(\.local \.align (\d+) \.b8\s+(\w+)\[(\d+)\])");
    std::smatch found;
    if (!std::regex_match(text, found, form)) throw Fault("unknown declaration");
    const size_t align = std::stoul(found[1]);
    size_t& size = program_.local_bytes;
    size = (size + align - 1) / align * align;
    symbols_[found[2]] = static_cast<uint32_t>(size);
    size += std::stoul(found[3]);
    size = (size + 15) / 16 * 16;
  }

  Place new_place(uint32_t bytes) {
    const size_t size = bytes ? size_t{bytes} * kLanes : sizeof(uint32_t);
    // Wide registers begin where vectors of the host do.
    size_t& end = program_.register_bytes;
    if (bytes) end = (end + 63) / 64 * 64;
    const Place place{static_cast<uint32_t>(end), bytes};
    end += size;
    return place;
  }

  std::optional<Place> find_register(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    if (name[0] != '%') return {};
    if (const auto place = find_special(name)) return place;
    const auto family = families_.find(name.substr(0, name.find_first_of("0123456789")));
    if (family == families_.end()) throw Fault("unknown register " + name);
    return scopes_.front()[name] = new_place(family->second);
  }

  std::optional<Place> find_special(const std::string& name) {
    SpecialRegister r{{}, Special::kLane, 0};
    if (name != "%laneid") {
      const size_t dot = name.find('.');
      const auto found = kSpecials.find(name.substr(0, dot));
      if (dot == std::string::npos || found == kSpecials.end()) return {};
      r.special = found->second;
      r.dimension = name[dot + 1] - 'x';
    }
    r.place = new_place(4);
    program_.specials.push_back(r);
    return scopes_.front()[name] = r.place;
  }

  // A number, the bits of one (0f3F800000, 0d...), or where a symbol lies in its space.
  uint64_t value_of(const std::string& text) {
    if (const auto symbol = symbols_.find(text); symbol != symbols_.end()) return symbol->second;
    const bool bits =
        text.size() > 2 && text[0] == '0' && std::string("fFdD").find(text[1]) != std::string::npos;
    if (bits) return std::stoull(text.substr(2), nullptr, 16);
    static const std::regex number(R"(-?(0x[0-9a-fA-F]+|\d+)U?)");
    if (!std::regex_match(text, number)) throw Fault("unknown operand " + text);
    return text[0] == '-' ? std::stoll(text, nullptr, 0) : std::stoull(text, nullptr, 0);
  }

  Place constant(uint64_t bits, uint32_t bytes) {
    if (bytes && bytes < 8) bits &= (uint64_t{1} << 8 * bytes) - 1;
    const auto [found, is_new] = constants_.try_emplace({bits, bytes});
    if (is_new) {
      found->second = new_place(bytes);
      program_.constants.push_back({found->second, bits});
    }
    return found->second;
  }

  Place place_of(const std::string& name, const Kind& kind) {
    if (name == "_") return new_place(kind.bytes);
    const auto place = find_register(name);
    // The smallest register has two bytes.
    if (!place) return constant(value_of(name), kind.bytes == 1 ? 2 : kind.bytes);
    const bool fits = kind.wider ? place->bytes >= kind.bytes : place->bytes == kind.bytes;
    if (!fits) throw Fault("register " + name + " is of another width");
    return *place;
  }

  Place address_of(const Operand& operand) {
    const std::string& base = operand.parts.at(0);
    const auto place = find_register(base);
    Place result = place ? *place : constant(value_of(base), 8);
    if (result.bytes < 4) throw Fault("register " + base + " is of another width");
    result.plus = operand.plus;
    return result;
  }

  static const Operation& operation_of(const Statement& s) {
    std::string opcode = s.opcode;
    if (opcode.starts_with("mov.") && s.operands.size() == 2) {
      const size_t to = s.operands[0].parts.size(), from = s.operands[1].parts.size();
      if (to > 1) opcode += " split" + std::to_string(to);
      if (from > 1) opcode += " join" + std::to_string(from);
    }
    const auto found = operations().find(opcode);
    if (found == operations().end()) throw Fault("unknown instruction " + opcode);
    return found->second;
  }

  void add_place(const Operand& operand, const Operation& operation, Instruction& in) {
    const auto kind = [&]() -> const Kind& {
      if (in.count == operation.operands.size()) throw Fault("too many operands");
      return operation.operands[in.count];
    };
    if (operand.is_address != kind().is_address) throw Fault("an address, or none, was expected");
    if (operand.is_address) {
      program_.places.push_back(address_of(operand));
      in.count++;
      return;
    }
    for (const std::string& name : operand.parts) {
      if (kind().is_label)
        branches_.emplace_back(next(), name);
      else
        program_.places.push_back(place_of(name, kind()));
      in.count++;
    }
  }

  void add(const Statement& s) {
    const Operation& operation = operation_of(s);
    Instruction in;
    in.action = operation.action;
    in.flow = operation.flow;
    if (!s.guard.empty()) {
      in.guard = place_of(s.guard, kPredicate).at;
      in.guard_negated = s.guard_negated;
    }
    firsts_.push_back(program_.places.size());
    for (const Operand& operand : s.operands) add_place(operand, operation, in);
    if (in.count != operation.operands.size()) throw Fault("too few operands");
    program_.instructions.push_back(in);
    program_.texts.push_back(s.text);
  }

  void finish() {
    for (size_t i = 0; i < program_.instructions.size(); ++i)
      program_.instructions[i].of = program_.places.data() + firsts_[i];
    for (const auto& [at, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("unknown label " + label + " in " + entry_.name);
      program_.instructions[at].target = found->second;
    }
    if (!ends()) throw Fault("the program of " + entry_.name + " has no end");
  }

  // Nothing runs on behind the last instruction.
  bool ends() const {
    if (program_.instructions.empty()) return false;
    const Instruction& last = program_.instructions.back();
    return last.guard == kNowhere && (last.flow == Flow::kExit || last.flow == Flow::kBranch);
  }

  const Entry& entry_;
  Program program_;
  Names symbols_, labels_, families_;
  std::vector<std::unordered_map<std::string, Place>> scopes_;
  std::map<std::pair<uint64_t, uint32_t>, Place> constants_;
  std::vector<std::pair<uint32_t, std::string>> branches_;
  std::vector<size_t> firsts_;  // of each instruction's places
};

}  // namespace

Program decode(const Entry& entry) { return Decoder(entry).run(); }

const Operations& operations() {
  static const Operations table = [] {
    Operations all;
    add_arithmetic(all);
    add_bits(all);
    add_conversions(all);
    add_memory(all);
    add_warp_operations(all);
    for (const char* opcode : {"bra", "bra.uni"}) all[opcode] = {nullptr, Flow::kBranch, {kLabel}};
    all["ret"] = all["exit"] = {nullptr, Flow::kExit, {}};
    return all;
  }();
  return table;
}

}  // namespace ptx
