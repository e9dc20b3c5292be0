#include "engine/event_channel.h"

#include <utility>

namespace fathom {

void Signal::notify() {
  {
    const std::lock_guard lock(mutex_);
    raised_ = true;
  }
  changed_.notify_one();
}

void Signal::wait(std::optional<std::chrono::milliseconds> timeout) {
  std::unique_lock lock(mutex_);
  if (timeout) {
    changed_.wait_for(lock, *timeout, [&] { return raised_; });
  } else {
    changed_.wait(lock, [&] { return raised_; });
  }
  raised_ = false;
}

void EventChannel::push(Event event) {
  {
    const std::lock_guard lock(mutex_);
    const bool is_progress = std::holds_alternative<PrefillEvent>(event);
    if (is_progress && !events_.empty() && std::holds_alternative<PrefillEvent>(events_.back())) {
      events_.back() = std::move(event);
    } else {
      if (std::holds_alternative<TokenEvent>(event) && ++unread_tokens_ == capacity_) full_since_ = Clock::now();
      events_.push_back(std::move(event));
    }
  }
  changed_.notify_all();
}

std::optional<EventChannel::Clock::time_point> EventChannel::full_since() const {
  const std::lock_guard lock(mutex_);
  return full_since_;
}

std::optional<Event> EventChannel::next(std::chrono::milliseconds timeout) {
  bool has_room_again = false;
  std::optional<Event> event;
  {
    std::unique_lock lock(mutex_);
    const auto has_news = [&] { return done_ || !events_.empty(); };
    // A wait of no time would still go to sleep, for a third of a millisecond.
    if (timeout.count() > 0) changed_.wait_for(lock, timeout, has_news);
    if (events_.empty()) return std::nullopt;
    event = std::move(events_.front());
    events_.pop_front();
    if (std::holds_alternative<TokenEvent>(*event) && unread_tokens_-- == capacity_) {
      full_since_.reset();
      has_room_again = true;
    }
    done_ = std::holds_alternative<FinishedEvent>(*event) || std::holds_alternative<FailedEvent>(*event);
  }
  if (has_room_again) engine_->notify();
  return event;
}

void EventChannel::cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  engine_->notify();
}

bool EventChannel::done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

RequestHandle& RequestHandle::operator=(RequestHandle&& other) noexcept {
  std::swap(channel_, other.channel_);
  return *this;
}

RequestHandle::~RequestHandle() {
  if (channel_ && !channel_->done()) channel_->cancel();
}

std::optional<Event> RequestHandle::next(std::chrono::milliseconds timeout) { return channel_->next(timeout); }
void RequestHandle::cancel() { channel_->cancel(); }
bool RequestHandle::done() const { return channel_->done(); }
uint64_t RequestHandle::id() const { return channel_->id(); }

}  // namespace fathom
