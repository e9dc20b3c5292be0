// The events of one request on their way from the engine's thread to its reader, and its cancellation on the way back.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "engine/request.h"

namespace fathom {

/// Wakes the engine's thread. What happens between two waits is seen by the second.
class Signal {
 public:
  void notify();
  /// Until notified, or the timeout if there is one.
  void wait(std::optional<std::chrono::milliseconds> timeout);

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool raised_ = false;
};

/// Thread-safe. The engine's thread pushes and asks, the reader pops and cancels.
class EventChannel {
 public:
  using Clock = std::chrono::steady_clock;

  /// `capacity`: unread token events at which it is full; notifies `engine` when it is full no more, and when
  /// cancelled.
  EventChannel(uint64_t id, size_t capacity, std::shared_ptr<Signal> engine)
      : id_(id), capacity_(capacity), engine_(std::move(engine)) {}

  uint64_t id() const { return id_; }

  /// Never waits and never refuses: a full channel is for the caller to respect.
  void push(Event event);
  /// Since when it has been full, if it is.
  std::optional<Clock::time_point> full_since() const;
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  std::optional<Event> next(std::chrono::milliseconds timeout);
  void cancel();
  bool done() const;

 private:
  const uint64_t id_;
  const size_t capacity_;
  const std::shared_ptr<Signal> engine_;
  std::atomic<bool> cancelled_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> events_;
  size_t unread_tokens_ = 0;
  std::optional<Clock::time_point> full_since_;
  bool done_ = false;
};

}  // namespace fathom
