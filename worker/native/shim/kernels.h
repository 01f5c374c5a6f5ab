// Loops over float memory of the layers' activations, pixel by pixel: c features of one pixel are neighbours (NHWC).
//
// They are compiled for several instruction sets; the machine's best is chosen when the program is loaded.
#pragma once

#include <cstdint>

namespace ganfleet {

// out = y / sqrt(mean_c(y^2) + epsilon), with y the leaky ReLU of x.
void leaky_norm(const float* x, float* out, int64_t pixels, int64_t c, float slope, float epsilon);

// Its gradient with respect to x, given that of `out`.
void leaky_norm_back(const float* x, const float* grad, float* out, int64_t pixels, int64_t c, float slope, float epsilon);

// Two rows of 2 * pixels into one of `pixels`: the mean of each 2x2, every value times 1 or, where `gate` is not positive, times
// `slope`. With `gate` = `value`, leaky ReLU and 2x2 mean; otherwise the derivative of that in the direction `value`.
void gated_mean(const float* gate, const float* value, float* out, int64_t pixels, int64_t c, float slope);

// The transpose: one row of `grad` spread over the two rows of `out`.
void gated_spread(const float* gate, const float* grad, float* out, int64_t pixels, int64_t c, float slope);

}  // namespace ganfleet
