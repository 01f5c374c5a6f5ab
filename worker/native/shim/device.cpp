// Streams and events of whatever device a tensor lies on, through libc10's device-generic interface: nothing of CUDA is
// linked. A CPU has neither: there every function that can fail does.

#include "guard.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <tuple>

using c10::impl::VirtualGuardImpl;
using ganfleet::guarded;

extern "C" {

// An event behind everything that this thread has queued on the tensor's device.
int gfn_event_here(at::Tensor* tensor, c10::Event** out) {
  return guarded([&] {
    const c10::Device device = tensor->device();
    auto event = std::make_unique<c10::Event>(device.type());
    event->record(VirtualGuardImpl(device.type()).getStream(device));
    *out = event.release();
  });
}

// An event behind everything that was queued on the stream.
int gfn_event_on(c10::Stream* stream, c10::Event** out) {
  return guarded([&] {
    auto event = std::make_unique<c10::Event>(stream->device_type());
    event->record(*stream);
    *out = event.release();
  });
}

// Whether the device has passed the event; does not wait.
int gfn_event_passed(c10::Event* event, bool* passed) {
  return guarded([&] { *passed = event->query(); });
}

void gfn_event_free(c10::Event* event) { delete event; }

// A stream of libtorch's pool, of high priority: what is queued on it starts before more of the current stream's work. The
// device becomes this thread's current one.
int gfn_stream_new(int64_t index, c10::Stream** out) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    VirtualGuardImpl guard(device.type());
    guard.setDevice(device);
    *out = new c10::Stream(guard.getStreamFromGlobalPool(device, /*isHighPriority=*/true));
  });
}

// The driver's handle of the stream, for libraries that want one.
int gfn_stream_native(c10::Stream* stream, void** out) {
  return guarded([&] { *out = stream->native_handle(); });
}

// What is queued on the stream from now on waits for the event.
int gfn_stream_wait(c10::Stream* stream, c10::Event* event) {
  return guarded([&] { event->block(*stream); });
}

// The tensor's memory is not used anew, should it be freed, before the stream has done what is queued on it.
int gfn_stream_keep(c10::Stream* stream, at::Tensor* tensor) {
  return guarded([&] { VirtualGuardImpl(stream->device_type()).recordDataPtrOnStream(tensor->storage().data_ptr(), *stream); });
}

void gfn_stream_free(c10::Stream* stream) { delete stream; }

// What a GPU has free and in all, and what libtorch holds of it for this process's tensors, now and at most, in bytes. An error where
// there is no such GPU.
int gfn_device_memory(int64_t index, uint64_t* free, uint64_t* total, uint64_t* held, uint64_t* most) {
  return guarded([&] {
    const auto at = static_cast<c10::DeviceIndex>(index);
    auto* const allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    std::tie(*free, *total) = allocator->getMemoryInfo(at);
    const auto reserved = allocator->getDeviceStats(at).reserved_bytes[0];
    *held = static_cast<uint64_t>(reserved.current);
    *most = static_cast<uint64_t>(reserved.peak);
  });
}

}  // extern "C"
