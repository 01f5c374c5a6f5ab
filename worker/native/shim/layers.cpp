// Layers of convolutional GANs with the derivatives that their losses need, and no others.
//
// A gradient penalty differentiates a discriminator twice: once for the gradient of its input, then that gradient's norm for
// the weights. libtorch's own second derivative of a convolution computes the weight's part as a convolution with a kernel the
// size of the image, and sends zeros back through every rectifier. Here each is one ordinary pass.
//
// On the CPU activations are channels-last, which spares oneDNN a reordering before and after every convolution. Float tensors
// there take the loops of kernels.h; all others are composed of libtorch's operations.

#include "guard.h"
#include "kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <tuple>

namespace ganfleet {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// The layout in which convolutions are fastest on the tensor's device.
Tensor laid(const Tensor& t) {
  return t.device().is_cpu() && t.dim() == 4 ? t.contiguous(at::MemoryFormat::ChannelsLast) : t;
}

// Whether the loops of kernels.h may walk over a tensor that went through laid().
bool walkable(const Tensor& t) { return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.dim() == 4; }

// body(first, count) for ranges of `count` units of `elements` floats each, on all threads where that pays.
template <class F>
void share(int64_t units, int64_t elements, F&& body) {
  at::parallel_for(0, units, 1 + 32768 / elements, [&](int64_t begin, int64_t end) { body(begin, end - begin); });
}

// Every function of this file can be differentiated as often as its name says; once more is refused, not answered wrongly.
void refuse_higher(const char* what) {
  TORCH_CHECK(!at::GradMode::is_enabled(), what, " has no further derivative here");
}

struct Geometry {
  int64_t stride, padding;
  bool transposed;

  Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) const {
    return at::convolution(x, weight, bias, {stride, stride}, {padding, padding}, {1, 1}, transposed, {0, 0}, 1);
  }

  // Gradients of input, weight and bias, those that are asked for.
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                              std::array<bool, 3> wanted) const {
    const std::array<int64_t, 1> bias{weight.size(transposed ? 1 : 0)};
    return at::convolution_backward(grad, x, weight, at::IntArrayRef(bias), {stride, stride}, {padding, padding}, {1, 1},
                                    transposed, {0, 0}, 1, wanted);
  }

  void save(AutogradContext* ctx) const {
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["transposed"] = transposed;
  }

  static Geometry of(AutogradContext* ctx) {
    return {ctx->saved_data["stride"].toInt(), ctx->saved_data["padding"].toInt(), ctx->saved_data["transposed"].toBool()};
  }
};

// The rectifier's derivative, which depends on where its result is positive and on nothing else: linear in `grad`.
struct Rectifier : Function<Rectifier> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& result, double slope) {
    ctx->saved_data["slope"] = slope;
    ctx->save_for_backward({result});
    return at::leaky_relu_backward(laid(grad), result, slope, /*self_is_result=*/true);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_higher("the rectifier's derivative");
    const auto result = ctx->get_saved_variables()[0];
    return {at::leaky_relu_backward(laid(grads[0]), result, ctx->saved_data["slope"].toDouble(), true), {}, {}};
  }
};

// The gradient of a convolution's input: linear in `grad` and in the weight. `x` lends its shape.
struct ConvolutionInput : Function<ConvolutionInput> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& weight, const Tensor& x,
                        int64_t stride, int64_t padding, bool transposed) {
    const Geometry geometry{stride, padding, transposed};
    geometry.save(ctx);
    ctx->save_for_backward({grad, weight});
    return std::get<0>(geometry.backward(grad, x, weight, {true, false, false}));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_higher("the gradient of a convolution's input");
    const auto geometry = Geometry::of(ctx);
    const auto saved = ctx->get_saved_variables();
    const auto &grad = saved[0], &weight = saved[1];
    const auto direction = laid(grads[0]);
    Tensor of_grad, of_weight;
    if (ctx->needs_input_grad(0)) of_grad = geometry.forward(direction, weight, {});
    if (ctx->needs_input_grad(1)) of_weight = std::get<1>(geometry.backward(grad, direction, weight, {false, true, false}));
    return {of_grad, of_weight, {}, {}, {}, {}};
  }
};

// Convolution, bias and leaky ReLU (slope 1: none).
struct Convolution : Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride,
                        int64_t padding, bool transposed, double slope) {
    const Geometry geometry{stride, padding, transposed};
    geometry.save(ctx);
    ctx->saved_data["slope"] = slope;
    const auto input = laid(x);
    auto out = laid(geometry.forward(input, weight, bias));
    if (slope != 1) at::leaky_relu_(out, slope);
    ctx->save_for_backward({input, weight, slope != 1 ? out : Tensor()});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto geometry = Geometry::of(ctx);
    const double slope = ctx->saved_data["slope"].toDouble();
    const auto saved = ctx->get_saved_variables();
    const auto x = saved[0].detach(), &weight = saved[1], &result = saved[2];
    const auto grad = slope != 1 ? Rectifier::apply(grads[0], result.detach(), slope) : laid(grads[0]);
    Tensor of_x, of_weight, of_bias;
    if (ctx->needs_input_grad(0)) {
      of_x = ConvolutionInput::apply(grad, weight, x, geometry.stride, geometry.padding, geometry.transposed);
    }
    const bool wants_weight = ctx->needs_input_grad(1), wants_bias = ctx->needs_input_grad(2);
    if (wants_weight || wants_bias) {
      refuse_higher("the gradient of a convolution's weight");
      std::tie(std::ignore, of_weight, of_bias) = geometry.backward(grad, x, weight, {false, wants_weight, wants_bias});
    }
    return {of_x, of_weight, of_bias, {}, {}, {}, {}};
  }
};

// 2x2 means of `value`, each value first times the rectifier's slope at `gate`.
Tensor mean_of(const Tensor& gate, const Tensor& value, double slope) {
  if (!walkable(gate)) return at::avg_pool2d(at::leaky_relu_backward(value, gate, slope, /*self_is_result=*/false), 2);
  const int64_t n = gate.size(0), c = gate.size(1), h = gate.size(2) / 2, w = gate.size(3) / 2;
  auto out = at::empty({n, c, h, w}, gate.options(), at::MemoryFormat::ChannelsLast);
  const float *at_gate = gate.const_data_ptr<float>(), *from = value.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  share(n * h, 4 * w * c, [=](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r) {
      gated_mean(at_gate + r * 4 * w * c, from + r * 4 * w * c, to + r * w * c, w, c, static_cast<float>(slope));
    }
  });
  return out;
}

// Its transpose.
Tensor spread_over(const Tensor& gate, const Tensor& grad, double slope) {
  if (!walkable(gate)) {
    auto whole = at::upsample_nearest2d(grad * 0.25, {gate.size(2), gate.size(3)});
    return at::leaky_relu_backward(whole, gate, slope, /*self_is_result=*/false);
  }
  const int64_t n = gate.size(0), c = gate.size(1), h = gate.size(2) / 2, w = gate.size(3) / 2;
  auto out = at::empty_like(gate);
  const float *at_gate = gate.const_data_ptr<float>(), *from = grad.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  share(n * h, 4 * w * c, [=](int64_t first, int64_t rows) {
    for (int64_t r = first; r < first + rows; ++r) {
      gated_spread(at_gate + r * 4 * w * c, from + r * w * c, to + r * 4 * w * c, w, c, static_cast<float>(slope));
    }
  });
  return out;
}

struct LeakyDownscaleInput : Function<LeakyDownscaleInput> {
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& x, double slope) {
    ctx->saved_data["slope"] = slope;
    ctx->save_for_backward({x});
    return spread_over(x, laid(grad), slope);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_higher("the derivative of leaky_downscale");
    return {mean_of(ctx->get_saved_variables()[0], laid(grads[0]), ctx->saved_data["slope"].toDouble()), {}, {}};
  }
};

// Leaky ReLU, then the mean of each 2x2.
struct LeakyDownscale : Function<LeakyDownscale> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, double slope) {
    TORCH_CHECK(x.dim() == 4 && x.size(2) % 2 == 0 && x.size(3) % 2 == 0, "needs [n, c, h, w] with even h and w");
    ctx->saved_data["slope"] = slope;
    const auto input = laid(x);
    ctx->save_for_backward({input});
    return mean_of(input, input, slope);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto x = ctx->get_saved_variables()[0].detach();
    return {LeakyDownscaleInput::apply(grads[0], x, ctx->saved_data["slope"].toDouble()), {}};
  }
};

// y = leaky(x); out = y / sqrt(mean_c(y^2) + epsilon), in one pass over memory.
struct LeakyPixelNorm : Function<LeakyPixelNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, double slope, double epsilon) {
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["epsilon"] = epsilon;
    const auto input = laid(x);
    ctx->save_for_backward({input});
    if (!walkable(input)) {
      auto y = at::leaky_relu(input, slope);
      return y * (y.square().mean(1, /*keepdim=*/true) + epsilon).rsqrt();
    }
    auto out = at::empty_like(input);
    const int64_t c = input.size(1);
    const float* in = input.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    share(c ? input.numel() / c : 0, c, [=](int64_t first, int64_t pixels) {
      leaky_norm(in + first * c, to + first * c, pixels, c, slope, epsilon);
    });
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_higher("the derivative of leaky_pixel_norm");
    const auto x = ctx->get_saved_variables()[0].detach();
    const double slope = ctx->saved_data["slope"].toDouble(), epsilon = ctx->saved_data["epsilon"].toDouble();
    const auto grad = laid(grads[0]);
    if (!walkable(x)) {
      auto y = at::leaky_relu(x, slope);
      auto s = (y.square().mean(1, true) + epsilon).rsqrt();
      auto dy = s * grad - y * s.pow(3) * (grad * y).mean(1, true);
      return {at::where(x > 0, dy, dy * slope), {}, {}};
    }
    auto out = at::empty_like(x);
    const int64_t c = x.size(1);
    const float *in = x.const_data_ptr<float>(), *up = grad.const_data_ptr<float>();
    float* to = out.mutable_data_ptr<float>();
    share(c ? x.numel() / c : 0, c, [=](int64_t first, int64_t pixels) {
      leaky_norm_back(in + first * c, up + first * c, to + first * c, pixels, c, slope, epsilon);
    });
    return {out, {}, {}};
  }
};

// bfloat16 or not, on one kind of device, as it was elsewhere.
struct Halved {
  Halved(at::DeviceType device, bool on) : device(device), before(at::autocast::is_autocast_enabled(device)) {
    at::autocast::set_autocast_enabled(device, on);
  }
  ~Halved() {
    at::autocast::set_autocast_enabled(device, before);
    at::autocast::clear_cache();
  }
  const at::DeviceType device;
  const bool before;
};

// A residual block of CycleGAN's generator that remembers what came in and nothing else: backward makes the rest once more, in the
// precision in which it was made.
struct Residual : Function<Residual> {
  static Tensor body(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2, int64_t kind) {
    const auto norm = [kind](const Tensor& of) {
      switch (kind) {
        case 1: return at::instance_norm(of, {}, {}, {}, {}, /*use_input_stats=*/true, 0.0, 1e-5, false);
        case 2: return at::group_norm(of, 1, {}, {}, 1e-5, false);
        default: return of;
      }
    };
    const auto inner = at::relu(norm(at::conv2d(at::reflection_pad2d(x, {1, 1, 1, 1}), w1, b1)));
    return x + norm(at::conv2d(at::reflection_pad2d(inner, {1, 1, 1, 1}), w2, b2));
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                        const Tensor& b2, int64_t kind) {
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["halved"] = at::autocast::is_autocast_enabled(x.device().type());
    ctx->save_for_backward({x, w1, b1, w2, b2});
    return body(x, w1, b1, w2, b2, kind);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    refuse_higher("a residual block");
    variable_list inputs, wanted;
    for (const auto& saved : ctx->get_saved_variables()) {
      const size_t i = inputs.size();
      inputs.push_back(saved.detach().requires_grad_(ctx->needs_input_grad(i)));
      if (ctx->needs_input_grad(i)) wanted.push_back(inputs.back());
    }
    Tensor out;
    {
      const Halved halved(inputs[0].device().type(), ctx->saved_data["halved"].toBool());
      const at::AutoGradMode enabled(true);
      out = body(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], ctx->saved_data["kind"].toInt());
    }
    auto found = torch::autograd::grad({out}, wanted, {grads[0]});
    variable_list answer;
    auto next = found.begin();
    for (size_t i = 0; i < inputs.size(); ++i) answer.push_back(ctx->needs_input_grad(i) ? *next++ : Tensor());
    answer.emplace_back();  // what is a setting has no gradient
    return answer;
  }
};

}  // namespace
}  // namespace ganfleet

using namespace ganfleet;

extern "C" {

// Convolution of x [n, c, h, w], bias, and leaky ReLU where slope is not 1. Twice differentiable by way of x.
int gfn_convolution(at::Tensor* x, at::Tensor* weight, at::Tensor* bias, int64_t stride, int64_t padding, bool transposed,
                    double slope, at::Tensor** out) {
  return guarded([&] {
    *out = new at::Tensor(Convolution::apply(*x, *weight, *bias, stride, padding, transposed, slope));
  });
}

// leaky_relu, then the mean of each 2x2 pixels; twice differentiable.
int gfn_leaky_downscale(at::Tensor* x, double slope, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(LeakyDownscale::apply(*x, slope)); });
}

// leaky_relu, then each pixel's features scaled to unit mean square; differentiable once.
int gfn_leaky_pixel_norm(at::Tensor* x, double slope, double epsilon, at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(LeakyPixelNorm::apply(*x, slope, epsilon)); });
}

// A residual block: two 3x3 convolutions over reflected edges, each normed as is said, and what came in. Differentiable once.
int gfn_residual(at::Tensor* x, at::Tensor* w1, at::Tensor* b1, at::Tensor* w2, at::Tensor* b2, int64_t norm,
                 at::Tensor** out) {
  return guarded([&] { *out = new at::Tensor(Residual::apply(*x, *w1, *b1, *w2, *b2, norm)); });
}

}  // extern "C"
