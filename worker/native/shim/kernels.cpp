// See kernels.h.

#include "kernels.h"

#include <cmath>

#if defined(__x86_64__) && defined(__GLIBC__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

namespace ganfleet {

VECTORISED void leaky_norm(const float* __restrict x, float* __restrict out, int64_t pixels, int64_t c, float slope, float epsilon) {
  for (int64_t p = 0; p < pixels; ++p, x += c, out += c) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t k = 0; k < c; ++k) {
      const float y = x[k] > 0 ? x[k] : slope * x[k];
      squares += y * y;
    }
    const float scale = 1 / std::sqrt(squares / c + epsilon);
#pragma omp simd
    for (int64_t k = 0; k < c; ++k) out[k] = (x[k] > 0 ? x[k] : slope * x[k]) * scale;
  }
}

// With s the scale: d/dy = s * g - y * s^3 * mean_c(g * y), then the slope of the rectifier.
VECTORISED void leaky_norm_back(const float* __restrict x, const float* __restrict grad, float* __restrict out, int64_t pixels, int64_t c, float slope,
                                float epsilon) {
  for (int64_t p = 0; p < pixels; ++p, x += c, grad += c, out += c) {
    float squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
    for (int64_t k = 0; k < c; ++k) {
      const float y = x[k] > 0 ? x[k] : slope * x[k];
      squares += y * y;
      dot += grad[k] * y;
    }
    const float scale = 1 / std::sqrt(squares / c + epsilon);
    const float along = scale * scale * scale * dot / c;
#pragma omp simd
    for (int64_t k = 0; k < c; ++k) {
      const float rectifier = x[k] > 0 ? 1.0f : slope;
      out[k] = rectifier * (scale * grad[k] - rectifier * x[k] * along);
    }
  }
}

VECTORISED void gated_mean(const float* gate, const float* value, float* __restrict out, int64_t pixels, int64_t c, float slope) {
  const int64_t row = 2 * pixels * c;
  for (int64_t p = 0; p < pixels; ++p, gate += 2 * c, value += 2 * c, out += c) {
#pragma omp simd
    for (int64_t k = 0; k < c; ++k) {
      const auto gated = [&](int64_t i) { return gate[i] > 0 ? value[i] : slope * value[i]; };
      out[k] = 0.25f * ((gated(k) + gated(k + c)) + (gated(k + row) + gated(k + row + c)));
    }
  }
}

VECTORISED void gated_spread(const float* __restrict gate, const float* __restrict grad, float* __restrict out, int64_t pixels, int64_t c, float slope) {
  const int64_t row = 2 * pixels * c;
  for (int64_t p = 0; p < pixels; ++p, gate += 2 * c, grad += c, out += 2 * c) {
#pragma omp simd
    for (int64_t k = 0; k < c; ++k) {
      const float whole = 0.25f * grad[k], part = slope * whole;
      out[k] = gate[k] > 0 ? whole : part;
      out[k + c] = gate[k + c] > 0 ? whole : part;
      out[k + row] = gate[k + row] > 0 ? whole : part;
      out[k + row + c] = gate[k + row + c] > 0 ? whole : part;
    }
  }
}

}  // namespace ganfleet
