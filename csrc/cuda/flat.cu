#include "device.h"
#include "flat_kernels.h"

FASTMTT_LAUNCH(SgdUpdate<float>);
FASTMTT_LAUNCH(SgdUpdate<double>);
FASTMTT_LAUNCH(Dot<float>);
FASTMTT_LAUNCH(Dot<double>);
