// Only what multiplies in bfloat16; all else at this capability is AVX-512's.
#include "cpu/kernels_std.h"
#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx512bf16,fma,f16c")
#define ATTN_ISA avx512_bf16
#define ATTN_VECTOR_BYTES 64
#define ATTN_BFLOAT16_PAIRS
#include "cpu/kernels.inl"
#endif
