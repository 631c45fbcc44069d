#include "cpu/kernels_std.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ATTN_ISA generic
#define ATTN_VECTOR_BYTES 16
#include "cpu/kernels.inl"
