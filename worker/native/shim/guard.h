// What every function of the shim shares: exceptions end here, and handles become tensors.
//
// Every function catches every C++ exception: 0 is success, otherwise the message is in gfn_error() of the same thread.
// A Tensor* is tch's own handle: a pointer to at::Tensor. No function takes ownership of one.
#pragma once

#include <ATen/core/Tensor.h>

#include <exception>
#include <string>

namespace ganfleet {

inline std::string& last_error() {
  thread_local std::string message;
  return message;
}

template <class F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    last_error() = e.what();
  } catch (...) {
    last_error() = "unknown C++ exception";
  }
  return 1;
}

}  // namespace ganfleet
