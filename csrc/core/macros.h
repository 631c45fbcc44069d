// Annotations shared by every layer: one source compiles for the host and for CUDA devices.
#pragma once

#if defined(__CUDACC__)
#define ATTN_HD __host__ __device__
#else
#define ATTN_HD
#endif

#if defined(__GNUC__) || defined(__clang__)
#define ATTN_INLINE inline __attribute__((always_inline))
#define ATTN_INLINE_LAMBDA __attribute__((always_inline))
#else
#define ATTN_INLINE inline
#define ATTN_INLINE_LAMBDA
#endif

#define ATTN_RESTRICT __restrict__
