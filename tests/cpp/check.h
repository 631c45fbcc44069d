// The test harness of the torch-free C++ tests: TEST(name) { CHECK(...); } in any
// tests/cpp/test_*.cpp is found and run by main.cpp. A failed check ends its test.
#pragma once

#include <cmath>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::ostringstream text;
  text << file << ":" << line << ": " << what;
  throw Failure(text.str());
}

// Prints what can be printed; enum classes and the like as their number.
template <class T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(17);
  if constexpr (requires { text << value; }) {
    text << value;
  } else {
    text << static_cast<long long>(value);
  }
  return text.str();
}

template <class A, class B>
void equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (!(a == b)) fail(file, line, std::string(text) + ": " + show(a) + " is not " + show(b));
}

// |a - b| <= tolerance; infinities of one sign are equal, a NaN is near nothing.
inline void near(const char* file, int line, const char* text, double a, double b,
                 double tolerance) {
  if (a == b || std::fabs(a - b) <= tolerance) return;
  fail(file, line,
       std::string(text) + ": " + show(a) + " is not within " + show(tolerance) + " of " + show(b));
}

template <class Error, class Run>
void throws(const char* file, int line, const char* text, const std::string& part, const Run& run) {
  try {
    run();
  } catch (const Error& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return;
    fail(file, line, std::string(text) + ": the message has no \"" + part + "\": " + error.what());
  }
  fail(file, line, std::string(text) + ": nothing was thrown");
}

}  // namespace check

#define TEST(name)                                                  \
  static void test_##name();                                        \
  static const check::Register register_##name(#name, test_##name); \
  static void test_##name()
#define CHECK(condition) \
  if (!(condition)) check::fail(__FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) check::equal(__FILE__, __LINE__, #a " == " #b, a, b)
#define CHECK_NEAR(a, b, tolerance)                                                            \
  check::near(__FILE__, __LINE__, #a " ~ " #b, static_cast<double>(a), static_cast<double>(b), \
              tolerance)
// The expression throws an Error whose message contains the part.
#define CHECK_THROWS(Error, part, ...) \
  check::throws<Error>(__FILE__, __LINE__, #__VA_ARGS__, part, [&] { (void)(__VA_ARGS__); })
