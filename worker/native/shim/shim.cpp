// What tch does not wrap of libtorch: fused optimizer steps, gradient slots and hooks, and one fused activation.
//
// Every function catches every C++ exception: 0 is success, otherwise the message is in gfn_error() of the same thread.
// A Tensor* is tch's own handle: a pointer to at::Tensor. No function takes ownership of one.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/Parallel.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <malloc.h>

#include <algorithm>
#include <climits>
#include <cmath>
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

// The loops below are compiled for several instruction sets; the machine's best is chosen when the program is loaded.
#if defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

constexpr int64_t kBlock = 256;  // pixels at a time: their features stay in the nearest cache

// One block of `pixels` <= kBlock pixels, c features `stride` apart.
VECTORISED void activate(const float* in, float* out, int64_t pixels, int64_t c, int64_t stride, float slope,
                         float epsilon) {
  float scale[kBlock] = {};
  for (int64_t k = 0; k < c; ++k) {
    const float* x = in + k * stride;
    for (int64_t j = 0; j < pixels; ++j) {
      const float y = x[j] > 0 ? x[j] : slope * x[j];
      scale[j] += y * y;
    }
  }
  for (int64_t j = 0; j < pixels; ++j) scale[j] = 1 / std::sqrt(scale[j] / c + epsilon);
  for (int64_t k = 0; k < c; ++k) {
    const float* x = in + k * stride;
    float* to = out + k * stride;
    for (int64_t j = 0; j < pixels; ++j) to[j] = (x[j] > 0 ? x[j] : slope * x[j]) * scale[j];
  }
}

// Its gradient. With s the scale: d/dy = s * g - y * s^3 * mean_c(g * y), then the slope of the rectifier.
VECTORISED void activate_back(const float* in, const float* up, float* out, int64_t pixels, int64_t c, int64_t stride,
                              float slope, float epsilon) {
  float scale[kBlock] = {}, dot[kBlock] = {};
  for (int64_t k = 0; k < c; ++k) {
    const float *x = in + k * stride, *g = up + k * stride;
    for (int64_t j = 0; j < pixels; ++j) {
      const float y = x[j] > 0 ? x[j] : slope * x[j];
      scale[j] += y * y;
      dot[j] += g[j] * y;
    }
  }
  for (int64_t j = 0; j < pixels; ++j) {
    scale[j] = 1 / std::sqrt(scale[j] / c + epsilon);
    dot[j] = scale[j] * scale[j] * scale[j] * dot[j] / c;
  }
  for (int64_t k = 0; k < c; ++k) {
    const float *x = in + k * stride, *g = up + k * stride;
    float* to = out + k * stride;
    for (int64_t j = 0; j < pixels; ++j) {
      const float rectifier = x[j] > 0 ? 1.0f : slope;
      to[j] = rectifier * (scale[j] * g[j] - rectifier * x[j] * dot[j]);
    }
  }
}

// y = leaky(x); out = y / sqrt(mean_c(y^2) + epsilon), in one pass over memory each way for contiguous float CPU tensors
// [n, c, h, w]; elsewhere composed of libtorch's own operations.
struct LeakyPixelNorm : torch::autograd::Function<LeakyPixelNorm> {
  static bool direct(const at::Tensor& t) {
    return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.dim() == 4 && t.is_contiguous();
  }

  // Calls body(first element, pixels) for blocks of pixels of each image.
  template <class F>
  static void blocks(const at::Tensor& x, F&& body) {
    const int64_t n = x.size(0), c = x.size(1), p = x.size(2) * x.size(3);
    const int64_t each = (p + kBlock - 1) / kBlock;
    at::parallel_for(0, n * each, 1 + 32768 / (c * kBlock), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = (i % each) * kBlock;
        body(i / each * c * p + first, std::min(kBlock, p - first), c, p);
      }
    });
  }

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, double slope, double epsilon) {
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["epsilon"] = epsilon;
    ctx->save_for_backward({x});
    if (!direct(x)) {
      auto y = at::leaky_relu(x, slope);
      return y * (y.square().mean(1, /*keepdim=*/true) + epsilon).rsqrt();
    }
    auto out = at::empty_like(x);
    const float* in = x.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    blocks(x, [=](int64_t first, int64_t pixels, int64_t c, int64_t stride) {
      activate(in + first, to + first, pixels, c, stride, slope, epsilon);
    });
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto x = ctx->get_saved_variables()[0];
    const double slope = ctx->saved_data["slope"].toDouble(), epsilon = ctx->saved_data["epsilon"].toDouble();
    TORCH_CHECK(!at::GradMode::is_enabled(), "leaky_pixel_norm can be differentiated once");
    auto g = grads[0].contiguous();
    if (!direct(x)) {
      auto y = at::leaky_relu(x, slope);
      auto s = (y.square().mean(1, true) + epsilon).rsqrt();
      auto dy = s * g - y * s.pow(3) * (g * y).mean(1, true);
      return {at::where(x > 0, dy, dy * slope), {}, {}};
    }
    auto out = at::empty_like(x);
    const float *in = x.const_data_ptr<float>(), *up = g.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    blocks(x, [=](int64_t first, int64_t pixels, int64_t c, int64_t stride) {
      activate_back(in + first, up + first, to + first, pixels, c, stride, slope, epsilon);
    });
    return {out, {}, {}};
  }
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

// leaky_relu with a slope (tch's has none), in place, differentiable twice like libtorch's own.
int gfn_leaky_relu(at::Tensor* x, double slope) {
  return guarded([&] { at::leaky_relu_(*x, slope); });
}

// leaky_relu, then each pixel's features scaled to unit mean square; differentiable once.
int gfn_leaky_pixel_norm(at::Tensor* x, double slope, double epsilon, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(LeakyPixelNorm::apply(*x, slope, epsilon)); });
}

// Large blocks stay with the process instead of going back to the system and being zeroed anew for every activation.
int gfn_keep_memory() {
#if defined(__GLIBC__)
  return !(mallopt(M_MMAP_THRESHOLD, 1 << 30) && mallopt(M_TRIM_THRESHOLD, INT_MAX) && mallopt(M_TOP_PAD, 64 << 20));
#else
  return 0;
#endif
}

}  // extern "C"
