#include "hopper_on_host.h"

#include <cmath>
#include <vector>

namespace fastmtt::cuda::hopper {
namespace {

// One image of one student.
class Image {
 public:
  Image(const Convolution& call, int student, int image)
      : call_(call),
        side_(kPlans[call.plan].side),
        area_(side_ * side_),
        student_(student),
        plane_(int64_t(student) * call.images + image) {}

  void compute() const {
    const int mode = kPlans[call_.plan].mode;
    std::vector<double> z(area_ * kChannels), z_dot(z);
    if (mode != kTangent) add(call_.x, 0, z);
    if (mode != kPrimal) {
      add(call_.x, 1, z_dot);
      add(call_.x_dot, 0, z_dot);
    }
    if (call_.norm) {
      for (int channel = 0; channel < kChannels; ++channel) block(mode, channel, z, z_dot);
      return;
    }
    if (mode != kTangent) put(z, call_.z);
    if (mode != kPrimal) put(z_dot, call_.z_dot);
  }

 private:
  int64_t pixel(int y, int x) const { return (plane_ * area_ + y * side_ + x) * kChannels; }

  // z += the convolution of x with the weights, or with their tangents of part 1
  void add(const float* x, int part, std::vector<double>& z) const {
    const float* w = call_.weights +
        (int64_t(part) * call_.students + student_) * kTaps * kChannels * kChannels;
    for (int i = 0; i < area_ * kTaps; ++i) {
      const int at = i / kTaps, tap = i % kTaps;
      const int v = at / side_ + tap / 3 - 1, u = at % side_ + tap % 3 - 1;
      if (v < 0 || v >= side_ || u < 0 || u >= side_) continue;
      for (int to = 0; to < kChannels; ++to) {
        const float *from = x + pixel(v, u), *line = w + (tap * kChannels + to) * kChannels;
        double sum = 0;
        for (int term = 0; term < kChannels; ++term) sum += double(from[term]) * line[term];
        z[at * kChannels + to] += sum;
      }
    }
  }

  void put(const std::vector<double>& z, float* to) const {
    for (int i = 0; i < area_ * kChannels; ++i) to[pixel(0, 0) + i] = static_cast<float>(z[i]);
  }

  double vector(int number, int channel) const {  // gamma, beta, and their tangents
    return call_.vectors[(int64_t(number) * call_.students + student_) * kChannels + channel];
  }

  void block(
      int mode, int c, const std::vector<double>& z, const std::vector<double>& z_dot) const {
    const int64_t begin = pixel(0, 0) + c, statistics = plane_ * kChannels + c;
    double mean = 0, square = 0, mean_dot = 0, correlation = 0;
    for (int i = c; i < area_ * kChannels; i += kChannels) mean += z[i] / area_;
    for (int i = c; i < area_ * kChannels; i += kChannels) {
      square += (z[i] - mean) * (z[i] - mean) / area_;
      mean_dot += z_dot[i] / area_;
    }
    double rstd = 1 / std::sqrt(square + 1e-5);
    std::vector<double> xhat(area_), n(area_ / 4), n_dot(area_ / 4);
    if (mode == kTangent) rstd = call_.rstd[statistics];
    for (int i = 0; i < area_; ++i) {
      xhat[i] = mode == kTangent ? call_.xhat[begin + i * kChannels]
                                 : (z[i * kChannels + c] - mean) * rstd;
      correlation += xhat[i] * z_dot[i * kChannels + c] / area_;
    }
    for (int i = 0; i < area_; ++i) {
      const int window = i / side_ / 2 * (side_ / 2) + i % side_ / 2;
      const double m = xhat[i] * vector(0, c) + vector(1, c);
      n[window] += m > 0 ? m / 4 : 0;
      if (mode != kTangent) call_.xhat[begin + i * kChannels] = static_cast<float>(xhat[i]);
      if (mode == kPrimal) continue;
      const double dot = rstd * (z_dot[i * kChannels + c] - mean_dot - xhat[i] * correlation);
      call_.xhat_dot[begin + i * kChannels] = static_cast<float>(dot);
      if (m > 0) n_dot[window] += (xhat[i] * vector(2, c) + vector(3, c) + dot * vector(0, c)) / 4;
    }
    for (int i = 0; i < area_ / 4; ++i) {
      const int64_t at = (plane_ * (area_ / 4) + i) * kChannels + c;
      call_.p[at] = static_cast<float>(n[i]);
      if (mode != kPrimal) call_.p_dot[at] = static_cast<float>(n_dot[i]);
    }
    if (mode != kTangent) call_.rstd[statistics] = static_cast<float>(rstd);
    if (mode != kPrimal) {
      call_.rstd_dot[statistics] = static_cast<float>(-rstd * rstd * correlation);
    }
  }

  const Convolution& call_;
  int side_, area_, student_;
  int64_t plane_;
};

}  // namespace

void run(const Convolution& call, const at::Tensor&) {
  for (int student = 0; student < call.students; ++student) {
    for (int image = 0; image < call.images; ++image) Image(call, student, image).compute();
  }
}

}  // namespace fastmtt::cuda::hopper
