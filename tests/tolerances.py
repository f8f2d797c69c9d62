"""Every tolerance of the tests of the engine, each with its reason. Loosening one needs a review.

All are relative errors of a whole vector, |got - want| / |want|, unless the name says otherwise.
"""

# Meta-gradients in float64 against autograd's double backward: what the project promises. Both
# sides round some 1e5 times at 1e-16 and a step amplifies little; 1e-15 to 1e-13 is seen.
META_GRADIENT = 1e-9

# One op or verb in float64 against its formula: hundreds of well-conditioned roundings at 1e-16.
FORMULA = 1e-12

# A central difference with step h = 1e-5 in float64: truncation h^2, rounding 1e-16 / h.
FINITE_DIFFERENCE = 1e-6

# float32 may err this many times as much as torch does in float32.
TIMES_TORCH = 2.0

# ... and, where torch happens to hit a value exactly, by one rounding: float32's epsilon.
ROUNDING_32 = 1.2e-7

# 1/std of a plane in float32, where torch sums in double: a pixel's square, the variance, its root
# and the quotient are rounded, four times 6e-8; what a mean or an outlier costs is 1e-6 and more.
STATISTIC_32 = 2.4e-7

# In bf16 a Winograd convolution rounds transformed tiles, 36 numbers for 16, whose terms cancel.
TIMES_BF16_ROUNDING = 6.0

# Products of numbers in two bfloat16 halves, 16 bits, lose 2^-16 of each, 1.5e-5. In norm 2e-6 to
# 6e-6 of a block's results is seen; where two channels are all, 4.5e-5 of the largest.
TWO_HALVES = 3e-5

# A float32 meta-gradient with the float64 run's ReLU masks: no flipped ReLU left, only rounding.
REPLAYED_MASKS_32 = 1e-5

# An expert in float32 that went on for 16 steps, against float64: 5e-8 to 1e-7 is seen, and another
# processor's sums have other orders.
CONTINUED_EXPERT_32 = 1e-5

# Sampling grids are made from float32 values: the same number rounded once on either side.
DRAWN_VALUES_32 = 1e-6

# A sampled position of float32 errs by 2e-6 of a pixel in images of 20 pixels, and neighbours are
# weighed by their distance from it.
SAMPLED_POSITIONS_32 = 1e-6

# Mean of 4000 uniform draws against its expectation: 5 standard errors, 5 / sqrt(12 * 4000).
MEAN_OF_4000 = 0.023

# torchvision's grey has 0.2989 of red where the standard, and kornia, have 0.299: 1e-4 of a pixel.
GREY = 2e-4

# tf32 rounds each operand by 2^-11 at most, 3e-4 of a sum; and a ReLU near zero falls on either
# side, which in the tangent of a small plane is up to a hundredth.
TF32 = 0.01

# A tf32 convolution and what is smooth in it: 2.9e-4 is seen of torch, of Triton and of ours, since
# two operands of each product are rounded by 2^-11 at most; a product too many or too few shows.
TF32_SUM = 1e-3
