#include "device.h"
#include "norm_backward_kernels.h"
#include "norm_kernels.h"

FASTMTT_LAUNCH(Norm<float, false>);
FASTMTT_LAUNCH(Norm<float, true>);
FASTMTT_LAUNCH(Norm<double, false>);
FASTMTT_LAUNCH(Norm<double, true>);
FASTMTT_LAUNCH(NormBackward<float, false>);
FASTMTT_LAUNCH(NormBackward<float, true>);
FASTMTT_LAUNCH(NormBackward<double, false>);
FASTMTT_LAUNCH(NormBackward<double, true>);
