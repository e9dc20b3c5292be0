#include <algorithm>
#include <set>

#include <nlohmann/json.hpp>

#include "core/atomic_file.h"
#include "core/error.h"
#include "io/safetensors.h"

namespace fathom {
namespace {

uint64_t item_bytes(const SafetensorsItem& item) {
  uint64_t size = static_cast<uint64_t>(safetensors_type_bytes(item.type));
  for (const int64_t dim : item.shape) {
    FATHOM_CHECK(dim >= 0 && !__builtin_mul_overflow(size, static_cast<uint64_t>(dim), &size),
                 "the shape of '" + item.name + "' is impossible");
  }
  return size;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const SafetensorsItem*> order;
  std::set<std::string_view> names;
  for (const SafetensorsItem& item : items) {
    FATHOM_CHECK(item.name != "__metadata__" && names.insert(item.name).second,
                 "no tensor can be called '" + item.name + "' here");
    order.push_back(&item);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return safetensors_type_bytes(a->type) > safetensors_type_bytes(b->type);
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t end = 0;
  for (const SafetensorsItem* item : order) {
    const uint64_t begin = end;
    end += item_bytes(*item);
    header[item->name] = {
        {"dtype", safetensors_type_name(item->type)}, {"shape", item->shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // keeps the data aligned to 8 bytes
  const uint64_t header_bytes = text.size();

  AtomicFile file(path);
  file.write(&header_bytes, sizeof header_bytes);
  file.write(text.data(), text.size());
  for (const SafetensorsItem* item : order) file.write(item->data, item_bytes(*item));
  file.commit();
}

}  // namespace fathom
