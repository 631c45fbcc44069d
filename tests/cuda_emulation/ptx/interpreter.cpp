#include "interpreter.h"

#include <dlfcn.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "block.h"
#include "decode.h"

namespace ptx {

namespace {

// The kernels of a folder, decoded when they are first launched.
struct Library {
  Entries entries;
  std::map<const void*, Program> programs;
};

std::map<std::string, Library> libraries;
std::string current_folder;
std::set<std::string> the_kernels_run;

std::string read_file(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

Library read_library(const std::string& folder) {
  Library library;
  for (const auto& file : std::filesystem::directory_iterator(folder))
    if (file.path().extension() == ".ptx") library.entries.merge(read_entries(read_file(file)));
  if (library.entries.empty()) throw std::runtime_error("no PTX with kernels in " + folder);
  return library;
}

std::string name_of(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname || info.dli_saddr != kernel)
    throw Fault("a kernel without a name: it must not stand in an anonymous namespace");
  return info.dli_sname;
}

const Program& find_program(const void* kernel) {
  Library& library = libraries.at(current_folder);
  const auto found = library.programs.find(kernel);
  if (found != library.programs.end()) return found->second;
  const std::string name = name_of(kernel);
  const auto entry = library.entries.find(name);
  if (entry == library.entries.end()) throw Fault("no PTX of " + name + " in " + current_folder);
  the_kernels_run.insert(current_folder + "/" + name);
  return library.programs.emplace(kernel, decode(entry->second)).first->second;
}

}  // namespace

void interpret(const std::string& folder) {
  if (!folder.empty() && !libraries.contains(folder)) libraries[folder] = read_library(folder);
  current_folder = folder;
  cuda_emulation::options().run_elsewhere = nullptr;
  if (folder.empty()) return;
  cuda_emulation::options().run_elsewhere = [](const cuda_emulation::Command& command) {
    run(find_program(command.kernel), command);
  };
}

void run(const Program& program, const cuda_emulation::Command& command) {
  if (command.parameter_bytes != program.parameter_bytes)
    throw Fault("nvcc's parameters of " + program.name + " have " +
                std::to_string(program.parameter_bytes) + " bytes, the host's " +
                std::to_string(command.parameter_bytes));
  if (command.block.x * command.block.y * command.block.z > program.most_threads)
    throw Fault("more threads than " + program.name + " is compiled for");
  Block block(program, command);
  for (unsigned index = 0; index < command.grid.x * command.grid.y * command.grid.z; ++index)
    block.run(index);
}

const std::set<std::string>& kernels_run() { return the_kernels_run; }

}  // namespace ptx
