// What tch does not wrap of libtorch: fused optimizer steps, gradient slots and hooks, memory format.
//
// Every function catches every C++ exception: 0 is success, otherwise the message is in gfn_error() of the same thread.
// A Tensor* is tch's own handle: a pointer to at::Tensor. No function takes ownership of one.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/leaky_relu.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <string>
#include <vector>

namespace {

thread_local std::string last_error;

template <class F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

std::vector<at::Tensor> list(at::Tensor** items, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(*items[i]);
  return out;
}

// Calls back once the gradient of one tensor is accumulated. Owned by the tensor's autograd metadata.
struct Hook : torch::autograd::PostAccumulateGradHook {
  void (*call)(void*);
  void (*drop)(void*);
  void* context;
  Hook(void (*call)(void*), void (*drop)(void*), void* context) : call(call), drop(drop), context(context) {}
  ~Hook() override { drop(context); }
  void operator()(const torch::autograd::Variable&) override { call(context); }
};

}  // namespace

extern "C" {

const char* gfn_error() { return last_error.c_str(); }

// One Adam step of n tensors in one fused kernel each device. `step` holds the number of this step (1, 2, ...).
// Where `found_inf` (a one-element float tensor) is 1, nothing is changed: decided on the device, without a wait.
int gfn_fused_adam(at::Tensor** params, at::Tensor** grads, at::Tensor** m, at::Tensor** v, size_t n, at::Tensor* step,
                   at::Tensor* found_inf, double lr, double beta1, double beta2, double epsilon) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    auto steps = std::vector<at::Tensor>(n, *step);
    at::_fused_adam_(list(params, n), list(grads, n), list(m, n), list(v, n), {}, steps, lr, beta1, beta2,
                     /*weight_decay=*/0.0, epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{}, *found_inf);
  });
}

// averages[i] += weight * (values[i] - averages[i])
int gfn_foreach_lerp(at::Tensor** averages, at::Tensor** values, size_t n, double weight) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    at::_foreach_lerp_(list(averages, n), list(values, n), weight);
  });
}

// Makes `grad` the place into which the tensor's gradient is accumulated; a null `grad` leaves it without one.
int gfn_set_grad(at::Tensor* tensor, at::Tensor* grad) {
  return guarded([&] {
    if (grad) tensor->mutable_grad() = *grad;
    else tensor->mutable_grad().reset();
  });
}

// After every accumulation into the tensor's gradient, call(context). Replaces an older hook; drop(context) when done.
int gfn_hook_gradient(at::Tensor* tensor, void (*call)(void*), void (*drop)(void*), void* context) {
  auto hook = std::make_unique<Hook>(call, drop, context);
  return guarded([&] { torch::autograd::impl::set_post_acc_grad_hooks(*tensor, std::move(hook)); });
}

int gfn_unhook_gradient(at::Tensor* tensor) {
  return guarded([&] { torch::autograd::impl::set_post_acc_grad_hooks(*tensor, nullptr); });
}

// leaky_relu with a slope (tch's has none), differentiable twice like libtorch's own.
int gfn_leaky_relu(at::Tensor* src, double slope, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(at::leaky_relu(*src, slope)); });
}

// A copy of src (4 dimensions) laid out channels-last.
int gfn_channels_last(at::Tensor* src, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(src->contiguous(at::MemoryFormat::ChannelsLast)); });
}

}  // extern "C"
