// The 64-bit xxHash: a fast checksum against damage (not against an attacker).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fathom {

/// XXH64 of size_bytes bytes. Source: the xxHash specification, version 0.1.1, "XXH64 algorithm description".
inline uint64_t xxh64(const void* data, size_t size_bytes, uint64_t seed = 0) {
  constexpr uint64_t kPrime1 = 0x9e3779b185ebca87u, kPrime2 = 0xc2b2ae3d27d4eb4fu, kPrime3 = 0x165667b19e3779f9u,
                     kPrime4 = 0x85ebca77c2b2ae63u, kPrime5 = 0x27d4eb2f165667c5u;
  static_assert(std::endian::native == std::endian::little, "lanes are read as little endian");
  const auto* p = static_cast<const unsigned char*>(data);
  size_t left = size_bytes;
  const auto take = [&]<typename T>(T) {
    T value;
    std::memcpy(&value, p, sizeof(T));
    p += sizeof(T);
    left -= sizeof(T);
    return static_cast<uint64_t>(value);
  };
  const auto round = [](uint64_t lane, uint64_t input) { return std::rotl(lane + input * kPrime2, 31) * kPrime1; };

  uint64_t hash;
  if (size_bytes >= 32) {
    uint64_t lanes[4] = {seed + kPrime1 + kPrime2, seed + kPrime2, seed, seed - kPrime1};
    while (left >= 32) {
      for (uint64_t& lane : lanes) lane = round(lane, take(uint64_t{}));
    }
    hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  } else {
    hash = seed + kPrime5;
  }
  hash += size_bytes;
  while (left >= 8) hash = std::rotl(hash ^ round(0, take(uint64_t{})), 27) * kPrime1 + kPrime4;
  if (left >= 4) hash = std::rotl(hash ^ (take(uint32_t{}) * kPrime1), 23) * kPrime2 + kPrime3;
  while (left > 0) hash = std::rotl(hash ^ (take(uint8_t{}) * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace fathom
