#include "device.h"
#include "dsa_kernels.h"

FASTMTT_LAUNCH(Dsa<float, false>);
FASTMTT_LAUNCH(Dsa<double, false>);
FASTMTT_LAUNCH(Dsa<float, true>);
FASTMTT_LAUNCH(Dsa<double, true>);
