#include "device.h"
#include "linear_xent_kernels.h"

FASTMTT_LAUNCH(LinearXent<float>);
FASTMTT_LAUNCH(LinearXent<double>);
FASTMTT_LAUNCH(LinearXentBackward<float>);
FASTMTT_LAUNCH(LinearXentBackward<double>);
