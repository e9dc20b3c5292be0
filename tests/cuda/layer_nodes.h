// A decode step's layer as nodes on a backend: attention with or without a compressed query, a mixture of experts, the
// next layer's norm.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "core/backend.h"
#include "cuda/backend_parts.h"
#include "on_device.h"
#include "support/random_weights.h"

namespace fathom::testing {

/// Nodes with the memory that they read and write.
class BackendNodes {
 public:
  std::vector<Node> nodes;
  std::vector<Tensor> results;  ///< what nodes write; not the terms of sums, which are added where they are made

  BackendNodes(Backend& backend, int64_t n_tokens) : backend_(backend), host_(5), t_(n_tokens) {}

  /// All results' bytes after the nodes ran `at_once` at a time.
  std::vector<std::byte> run(size_t at_once) {
    for (const Tensor& t : results)
      backend_.upload(t.data, std::vector<std::byte>(t.size_bytes(), std::byte{0xff}).data(), t.size_bytes());
    for (size_t i = 0; i < nodes.size(); i += at_once)
      backend_.execute(std::span(nodes).subspan(i, std::min(at_once, nodes.size() - i)));
    return fetch();
  }
  std::vector<std::byte> fetch() {
    std::vector<std::byte> all;
    for (const Tensor& t : results) {
      all.resize(all.size() + t.size_bytes());
      backend_.download(all.data() + all.size() - t.size_bytes(), t.data, t.size_bytes());
    }
    return all;
  }

 protected:
  Tensor take(Tensor t) {
    buffers_.push_back(backend_.allocate(t.size_bytes(), "a test"));
    t.data = buffers_.back()->data();
    return t;
  }
  Tensor sent(const Tensor& host) {
    const Tensor t = take(host);
    backend_.upload(t.data, host.data, host.size_bytes());
    return t;
  }
  Tensor floats(Shape shape) { return sent(host_.floats(shape)); }
  Tensor ints(Shape shape, const std::function<int32_t(int64_t)>& value) { return sent(host_.ints(shape, value)); }
  Tensor result(Shape shape, bool is_kept = true) {
    const Tensor t = take(Tensor(DType::kF32, shape, nullptr));
    if (is_kept) results.push_back(t);
    return t;
  }
  /// Two pages of bf16 rows; one bit pattern in 256 would be infinite or no number, so bytes are not drawn alone.
  Tensor cache_rows(int64_t width) {
    const Tensor values = host_.floats({2 * 64 * width});
    const Tensor rows = host_.make(DType::kBF16, {2, 64, width});
    for (int64_t i = 0; i < values.dim(0); ++i) rows.as<uint16_t>()[i] = f32_to_bf16(values.as<float>()[i]);
    return sent(rows);
  }
  /// In planes, as products take it, or as the file has it.
  Tensor matrix(DType type, Shape shape, bool in_planes = true) {
    Tensor t(type, shape, nullptr);
    std::vector<std::byte> file(t.size_bytes());
    test::fill_weights(type, file.data(), file.size(), random_);
    if (!in_planes) {
      t.data = file.data();
      return sent(t);
    }
    const size_t row = backend_.weight_row_bytes(type, shape.last());
    buffers_.push_back(backend_.allocate(row * static_cast<size_t>(t.n_rows()), "a test"));
    t.data = buffers_.back()->data();
    backend_.upload_weights(t.data, file.data(), type, t.n_rows(), shape.last());
    const auto r = static_cast<size_t>(shape.rank);
    t.strides_bytes[r - 2] = static_cast<int64_t>(row);
    if (r == 3) t.strides_bytes[0] = t.strides_bytes[1] * shape[1];
    return t;
  }
  Tensor norm(const Tensor& x) {
    const RmsNormArgs a{x, floats({x.dim(1)}), result(x.shape), 1e-6F};
    nodes.push_back({a});
    return a.out;
  }
  Tensor linear(const Tensor& x, DType type, int64_t n_rows, bool is_kept = true) {
    const LinearArgs a{x, matrix(type, {n_rows, x.dim(1)}), result({t_, n_rows}, is_kept)};
    nodes.push_back({a});
    return a.out;
  }
  Tensor add(const Tensor& a, const Tensor& b) {
    const AddArgs sum{a, b, result(a.shape)};
    nodes.push_back({sum});
    return sum.out;
  }

  Backend& backend_;
  HostTensors host_;
  std::mt19937 random_{6};
  std::vector<std::shared_ptr<Buffer>> buffers_;
  const int64_t t_;
};

/// V2's and V3's.
class LayerNodes : public BackendNodes {
 public:
  static constexpr int64_t kHidden = 256, kHeads = 3, kNope = 32, kRope = 64, kValue = 32, kLatent = 512, kQuery = 256,
                           kExperts = 8, kUsed = 2, kWidth = 64;

  /// `router`: type of its weights.
  LayerNodes(Backend& backend, int64_t n_tokens, bool compresses_query, bool split_weights, DType router)
      : BackendNodes(backend, n_tokens) {
    const Tensor x = floats({t_, kHidden}), rope = floats({t_, kRope / 2, 2});
    StepTensors step;
    step.positions = ints({t_}, [](int64_t i) { return static_cast<int32_t>(68 + i); });
    step.slots = ints({t_}, [](int64_t i) { return static_cast<int32_t>(4 + i); });
    step.sequence_of = ints({t_}, [](int64_t) { return 0; });
    step.page_table = ints({1, 2}, [](int64_t i) { return static_cast<int32_t>(1 - i); });
    const Tensor cache = cache_rows(kLatent + kRope);

    const Tensor h = norm(x);
    const DType first = compresses_query ? DType::kQ4_K : DType::kQ8_0;
    const Tensor kv_a = linear(h, first, kLatent + kRope);
    Tensor q = linear(h, first, compresses_query ? kQuery : kHeads * (kNope + kRope));
    if (compresses_query) q = linear(norm(q), DType::kQ8_0, kHeads * (kNope + kRope));
    q = q.reshaped({t_, kHeads, kNope + kRope});
    nodes.push_back({StoreLatentArgs{kv_a, floats({kLatent}), rope, step.slots, cache, 1e-6F}});
    RotateHeadsArgs rotate{q, rope, result({t_, kHeads, kNope + kRope})};
    rotate.first_dim = kNope;
    nodes.push_back({rotate});
    LatentAttentionArgs attend;
    attend.q = rotate.out;
    if (split_weights) {
      attend.k_b = matrix(DType::kQ8_0, {kHeads, kLatent, kNope}, false);
      attend.v_b = matrix(DType::kQ8_0, {kHeads, kValue, kLatent}, false);
    } else {
      attend.kv_b = matrix(DType::kQ8_0, {kHeads * (kNope + kValue), kLatent}, false);
    }
    attend.cache = cache, attend.step = step, attend.scale = 0.1F;
    attend.out = result({t_, kHeads * kValue});
    nodes.push_back({attend});
    const Tensor y = add(x, linear(attend.out, DType::kQ8_0, kHidden, false));
    const Tensor z = norm(y);
    RouteExpertsArgs route{linear(z, router, kExperts),
                           floats({kExperts}),
                           result({t_, kUsed}),
                           result({t_, kUsed}),
                           {kUsed, RouterScore::kSigmoid, 4, 2, GroupRank::kSumOfTwoBest, true, 2.5F}};
    route.ids.dtype = DType::kI32;
    nodes.push_back({route});
    // As converters make V2-Lite: down of the experts Q8_0, of the shared ones, whose rows are whole blocks, Q6_K.
    const auto network = [&](int64_t n) {
      const auto shape = [n](int64_t rows, int64_t columns) {
        return n > 0 ? Shape{n, rows, columns} : Shape{rows, columns};
      };
      const int64_t width = n > 0 ? kWidth : 256;
      return GatedFfnWeights{matrix(DType::kQ4_K, shape(width, kHidden)), matrix(DType::kQ4_K, shape(width, kHidden)),
                             matrix(n > 0 ? DType::kQ8_0 : DType::kQ6_K, shape(kHidden, width))};
    };
    MoeFfnArgs moe{z, route.ids, route.weights, network(kExperts), network(0), result({t_, kHidden}, false)};
    nodes.push_back({moe});
    norm(add(y, moe.out));
  }
};

/// V4's: products on streams that are collapsed and normed, a projection and a mixture whose results are spread.
class StreamNodes : public BackendNodes {
 public:
  static constexpr int64_t kHidden = 256, kStreams = 4, kExperts = 8, kUsed = 2, kWidth = 64;

  StreamNodes(Backend& backend, int64_t n_tokens, DType mixing) : BackendNodes(backend, n_tokens) {
    Tensor streams = floats({t_, kStreams * kHidden});
    Tensor spread;
    Tensor x = collapsed(streams, mixing, spread);
    streams = expanded(streams, linear(x, DType::kQ8_0, kHidden, false), spread);
    x = collapsed(streams, mixing, spread);
    RouteExpertsArgs route{linear(x, DType::kF32, kExperts),
                           floats({kExperts}),
                           result({t_, kUsed}),
                           result({t_, kUsed}),
                           {kUsed, RouterScore::kSqrtSoftplus, 1, 1, GroupRank::kBest, true, 1.5F}};
    route.ids.dtype = DType::kI32;
    nodes.push_back({route});
    const auto network = [&](Shape in, Shape out, DType type) {
      return GatedFfnWeights{matrix(type, in), matrix(type, in), matrix(type, out)};
    };
    MoeFfnArgs moe{x,
                   route.ids,
                   route.weights,
                   network({kExperts, kWidth, kHidden}, {kExperts, kHidden, kWidth}, DType::kMXFP4),
                   network({kWidth, kHidden}, {kHidden, kWidth}, DType::kQ8_0),
                   result({t_, kHidden}, false)};
    moe.clamp = moe.shared_clamp = 10;
    nodes.push_back({moe});
    expanded(streams, moe.out, spread);
  }

 private:
  Tensor collapsed(const Tensor& streams, DType type, Tensor& spread) {
    CollapseStreamsArgs a;
    a.streams = streams;
    a.products = linear(streams, type, (2 + kStreams) * kStreams);
    a.base = floats({(2 + kStreams) * kStreams}), a.scale = floats({3});
    a.out = result({t_, kHidden}), a.mixing = spread = result({t_, kStreams + kStreams * kStreams});
    a.norm_eps = a.eps = 1e-6F;
    a.iterations = 20;
    nodes.push_back({a});
    return norm(a.out);
  }
  Tensor expanded(const Tensor& streams, const Tensor& y, const Tensor& spread) {
    const ExpandStreamsArgs a{streams, y, spread, result(streams.shape)};
    nodes.push_back({a});
    return a.out;
  }
};

}  // namespace fathom::testing
