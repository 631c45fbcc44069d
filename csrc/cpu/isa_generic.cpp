#include "cpu/kernels_std.h"

#define ATTN_ISA generic
#define ATTN_VECTOR_BYTES 16
#include "cpu/kernels.inl"
