// Random numbers that depend on a seed and a step and on nothing else: not on the library, the machine or the batch.
#pragma once

#include <cstdint>

namespace fathom {

/// The finalizer of SplitMix64: every input bit changes about half of the output bits. Source: Steele, Lea, Flood,
/// "Fast splittable pseudorandom number generators", OOPSLA 2014, with the constants of its variant 13.
inline uint64_t mix_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Number `step` of the stream `seed`, uniform in [0, 1), a multiple of 2^-53. Streams start at mixed, hence unrelated,
/// places, so that neighbouring seeds do not give shifted copies of one stream.
inline double random_unit(uint64_t seed, uint64_t step) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio: the step of SplitMix64
  const uint64_t start = mix_bits(seed + kGolden);
  return static_cast<double>(mix_bits(mix_bits(start + (step + 1) * kGolden) ^ start) >> 11) * 0x1p-53;
}

}  // namespace fathom
