#include "device.h"
#include "norm_backward_kernels.h"
#include "norm_kernels.h"

FASTMTT_LAUNCH(Norm<float, false, true>);
FASTMTT_LAUNCH(Norm<float, false, false>);
FASTMTT_LAUNCH(Norm<float, true, true>);
FASTMTT_LAUNCH(Norm<float, true, false>);
FASTMTT_LAUNCH(Norm<double, false, true>);
FASTMTT_LAUNCH(Norm<double, false, false>);
FASTMTT_LAUNCH(Norm<double, true, true>);
FASTMTT_LAUNCH(Norm<double, true, false>);
FASTMTT_LAUNCH(NormBackward<float, false, true>);
FASTMTT_LAUNCH(NormBackward<float, false, false>);
FASTMTT_LAUNCH(NormBackward<float, true, true>);
FASTMTT_LAUNCH(NormBackward<float, true, false>);
FASTMTT_LAUNCH(NormBackward<double, false, true>);
FASTMTT_LAUNCH(NormBackward<double, false, false>);
FASTMTT_LAUNCH(NormBackward<double, true, true>);
FASTMTT_LAUNCH(NormBackward<double, true, false>);
