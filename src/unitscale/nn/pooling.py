"""The pooling modules of `torch.nn`, unit-scaled; indices are not returned."""

from torch import nn

import unitscale.functional as U

from .constrained import counterpart

AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
MAXIMUM = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

AvgPool1d = counterpart(nn.AvgPool1d, U.avg_pool1d, *AVERAGE)
AvgPool2d = counterpart(nn.AvgPool2d, U.avg_pool2d, *AVERAGE)
AvgPool3d = counterpart(nn.AvgPool3d, U.avg_pool3d, *AVERAGE)
MaxPool1d = counterpart(nn.MaxPool1d, U.max_pool1d, *MAXIMUM)
MaxPool2d = counterpart(nn.MaxPool2d, U.max_pool2d, *MAXIMUM)
MaxPool3d = counterpart(nn.MaxPool3d, U.max_pool3d, *MAXIMUM)
AdaptiveAvgPool1d = counterpart(nn.AdaptiveAvgPool1d, U.adaptive_avg_pool1d, "output_size")
AdaptiveAvgPool2d = counterpart(nn.AdaptiveAvgPool2d, U.adaptive_avg_pool2d, "output_size")
AdaptiveAvgPool3d = counterpart(nn.AdaptiveAvgPool3d, U.adaptive_avg_pool3d, "output_size")
