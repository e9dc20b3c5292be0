// What the integer kernels need to know of each block format. Plain: included by files compiled for one instruction
// set.
//
// A weight is w = (u - offset) * scale, or u * scale + min, u an unsigned byte that the kernels unpack; scale and min
// are shared by 32 or 16 elements.
#pragma once

#include "core/quant/blocks.h"
#include "cpu/matmul_task.h"

namespace fathom::cpu {

template <typename BlockT, int kBlockElements, int kPerScale, bool kWithMin, int kOffsetOfU, int kLargestU>
struct WeightFormat {
  using Block = BlockT;
  static constexpr int kElements = kBlockElements;  ///< of a block
  static constexpr int kBytes = sizeof(BlockT);
  static constexpr int kSub = kPerScale;  ///< elements that share a scale: 16 or 32
  static constexpr bool kHasMin = kWithMin;
  static constexpr int kOffset = kOffsetOfU;
  static constexpr int kMaxU = kLargestU;  ///< bounds sums of products in 16 bits
  static constexpr ActFormat kAct = {kWithMin ? (kPerScale == 16 ? ActKind::kSum16 : ActKind::kSum32)
                                              : (kPerScale == 16 ? ActKind::kOffset16 : ActKind::kOffset32),
                                     kOffsetOfU};
};

//                                    block         elements  per scale  min   offset  largest u
struct Q4_0 : WeightFormat<BlockQ4_0, kSmallBlock, 32, false, 8, 15> {};
struct Q4_1 : WeightFormat<BlockQ4_1, kSmallBlock, 32, true, 0, 15> {};
struct Q5_0 : WeightFormat<BlockQ5_0, kSmallBlock, 32, false, 16, 31> {};
struct Q5_1 : WeightFormat<BlockQ5_1, kSmallBlock, 32, true, 0, 31> {};
struct Q8_0 : WeightFormat<BlockQ8_0, kSmallBlock, 32, false, 128, 255> {};
struct IQ4_NL : WeightFormat<BlockIQ4_NL, kSmallBlock, 32, false, 128, 255> {};
struct MXFP4 : WeightFormat<BlockMXFP4, kSmallBlock, 32, false, 12, 24> {};
struct Q2_K : WeightFormat<BlockQ2_K, kSuperBlock, 16, true, 0, 3> {};
struct Q3_K : WeightFormat<BlockQ3_K, kSuperBlock, 16, false, 4, 7> {};
struct Q4_K : WeightFormat<BlockQ4_K, kSuperBlock, 32, true, 0, 15> {};
struct Q5_K : WeightFormat<BlockQ5_K, kSuperBlock, 32, true, 0, 31> {};
struct Q6_K : WeightFormat<BlockQ6_K, kSuperBlock, 16, false, 32, 63> {};
struct IQ4_XS : WeightFormat<BlockIQ4_XS, kSuperBlock, 32, false, 128, 255> {};
struct IQ2_XXS : WeightFormat<BlockIQ2_XXS, kSuperBlock, 32, false, 43, 86> {};
struct IQ2_XS : WeightFormat<BlockIQ2_XS, kSuperBlock, 16, false, 43, 86> {};
struct IQ2_S : WeightFormat<BlockIQ2_S, kSuperBlock, 16, false, 43, 86> {};
struct IQ3_XXS : WeightFormat<BlockIQ3_XXS, kSuperBlock, 32, false, 62, 124> {};
struct IQ3_S : WeightFormat<BlockIQ3_S, kSuperBlock, 32, false, 15, 30> {};
struct IQ1_S : WeightFormat<BlockIQ1_S, kSuperBlock, 32, false, 9, 18> {};  ///< u = 8 * grid +- 1 + 9
struct IQ1_M : WeightFormat<BlockIQ1_M, kSuperBlock, 16, false, 9, 18> {};

}  // namespace fathom::cpu
