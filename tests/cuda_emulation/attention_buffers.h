// What the kernels of attention may touch.
#pragma once

#include "buffers.h"
#include "cuda/attention.h"

cuda_emulation::Buffers attention_buffers(const attn::cuda::AttentionCall& call);
