#include "cpu/kernels_std.h"
#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define ATTN_ISA avx2
#define ATTN_VECTOR_BYTES 32
#include "cpu/kernels.inl"
#endif
