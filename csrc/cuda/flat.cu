#include "device.h"
#include "flat_kernels.h"

FASTMTT_LAUNCH(SgdUpdate<float>);
FASTMTT_LAUNCH(SgdUpdate<double>);
FASTMTT_LAUNCH(SgdMomentum<float>);
FASTMTT_LAUNCH(SgdMomentum<double>);
FASTMTT_LAUNCH(Dot<float>);
FASTMTT_LAUNCH(Dot<double>);
FASTMTT_LAUNCH(Sqdist<float>);
FASTMTT_LAUNCH(Sqdist<double>);
FASTMTT_LAUNCH(GsamPerturb<float>);
FASTMTT_LAUNCH(GsamPerturb<double>);
FASTMTT_LAUNCH(GsamCombine<float>);
FASTMTT_LAUNCH(GsamCombine<double>);
