// What tch does not wrap of libtorch: fused optimizer steps, gradient slots and hooks, and where memory stays.

#include "guard.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/leaky_relu.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <malloc.h>
#include <unistd.h>

#include <climits>
#include <memory>
#include <vector>

using ganfleet::guarded;

namespace {

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

const char* gfn_error() { return ganfleet::last_error().c_str(); }

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

// leaky_relu with a slope (tch's has none), in place, differentiable twice like libtorch's own.
int gfn_leaky_relu(at::Tensor* x, double slope) {
  return guarded([&] { at::leaky_relu_(*x, slope); });
}

// Large blocks stay with the process instead of going back to the system and being zeroed anew for every activation.
int gfn_keep_memory() {
#if defined(__GLIBC__)
  return !(mallopt(M_MMAP_THRESHOLD, 1 << 30) && mallopt(M_TRIM_THRESHOLD, INT_MAX) && mallopt(M_TOP_PAD, 64 << 20));
#else
  return 0;
#endif
}

// Ends the process without the destructors of libtorch's tables, which take half as long as its loading.
void gfn_end(int status) { _exit(status); }

// bfloat16 for convolutions and matrix products of this thread, on GPUs or on the CPU. Casts of weights are remembered meanwhile.
int gfn_autocast(bool gpu, bool on) {
  return guarded([&] {
    const auto device = gpu ? at::kCUDA : at::kCPU;
    if (on) {
      at::autocast::set_autocast_dtype(device, at::kBFloat16);
      at::autocast::set_autocast_enabled(device, true);
      at::autocast::increment_nesting();
    } else {
      if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
      at::autocast::set_autocast_enabled(device, false);
    }
  });
}

// Single precision on the TF32 units of a GPU, in convolutions and products of matrices alike. libtorch's own default is the
// one with and the other without.
int gfn_tf32(bool allowed) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuDNN(allowed);
    at::globalContext().setAllowTF32CuBLAS(allowed);
  });
}

// Whether convolutions (1) and products of matrices (2) may use them.
int gfn_tf32_allowed(int* allowed) {
  return guarded([&] {
    *allowed = (at::globalContext().allowTF32CuDNN() ? 1 : 0) | (at::globalContext().allowTF32CuBLAS() ? 2 : 0);
  });
}

}  // extern "C"
