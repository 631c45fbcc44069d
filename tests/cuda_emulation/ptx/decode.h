// Statements made instructions.
#pragma once

#include "module.h"
#include "program.h"

namespace ptx {

// Throws Fault, with the statement, where something is unknown or of another kind than it has to
// be.
Program decode(const Entry& entry);

}  // namespace ptx
