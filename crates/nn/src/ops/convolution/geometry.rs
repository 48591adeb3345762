//! Shapes of a convolution, and how its images are grouped.

use candle_core::{Result, bail};

use crate::ops::types::Convolution;

/// All sizes of one convolution. Images are channels last: [N, H, W, C]; results are [N, rows, columns, outputs].
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Geometry {
    pub(in crate::ops) count: usize,
    pub(in crate::ops) height: usize,
    pub(in crate::ops) width: usize,
    pub(in crate::ops) channels: usize,
    pub(in crate::ops) outputs: usize,
    pub(in crate::ops) kernel_height: usize,
    pub(in crate::ops) kernel_width: usize,
    pub(in crate::ops) rows: usize,
    pub(in crate::ops) columns: usize,
    pub(in crate::ops) convolution: Convolution,
}

impl Geometry {
    /// Of an input [N, H, W, C] and a weight [O, C, K, K'].
    pub(in crate::ops) fn new(
        input: (usize, usize, usize, usize),
        weight: (usize, usize, usize, usize),
        convolution: Convolution,
    ) -> Result<Self> {
        let ((count, height, width, channels), (outputs, weight_channels, kernel_height, kernel_width)) = (input, weight);
        if channels != weight_channels {
            bail!("a convolution over {weight_channels} channels does not take {channels}");
        }
        if count == 0 || channels == 0 || outputs == 0 {
            bail!("a convolution needs images, channels and outputs, not {count}, {channels} and {outputs}");
        }
        let extent = |size: usize, kernel: usize| {
            let padded = size + 2 * convolution.padding;
            if convolution.stride == 0 || kernel == 0 || padded < kernel {
                bail!("a kernel of {kernel} with {convolution:?} does not fit into {size} pixels");
            }
            Ok((padded - kernel) / convolution.stride + 1)
        };
        let (rows, columns) = (extent(height, kernel_height)?, extent(width, kernel_width)?);
        Ok(Self { count, height, width, channels, outputs, kernel_height, kernel_width, rows, columns, convolution })
    }

    pub(in crate::ops) fn positions(&self) -> usize {
        self.rows * self.columns
    }

    pub(in crate::ops) fn taps(&self) -> usize {
        self.channels * self.kernel_height * self.kernel_width
    }

    /// Values of one image.
    pub(in crate::ops) fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Values of one image's result.
    pub(in crate::ops) fn output_image(&self) -> usize {
        self.outputs * self.positions()
    }
}
