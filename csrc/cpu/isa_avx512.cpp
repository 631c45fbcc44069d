#include "cpu/kernels_std.h"
#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,fma,f16c")
#define ATTN_ISA avx512
#define ATTN_VECTOR_BYTES 64
#include "cpu/kernels.inl"
#endif
