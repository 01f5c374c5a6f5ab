//! The discriminator that judges patches, as data: its layers and its parameters. CycleGAN's and pix2pix's (gan.md 2.2, 3).

use super::{Init, ParameterSpec};

/// Standard deviation of every weight at the start (gan.md 2.7).
pub(super) const SPREAD: f32 = 0.02;
/// Its layers are at most so many times as wide as the first.
const WIDEST: i64 = 8;

/// A discriminator of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchGan {
    /// Channels of what is judged.
    pub inputs: i64,
    /// Feature maps of the first layer (ndf).
    pub width: i64,
    /// Layers between the first and the last one; 0 judges pixels one by one.
    pub layers: u32,
    /// Whether its norms learn a scale and a shift, which makes biases before them pointless.
    pub affine: bool,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Place in the authors' list of layers; its norm, where it has one, stands at the next.
    pub place: u32,
    /// Feature maps that come in.
    pub inputs: i64,
    /// Feature maps that go out.
    pub outputs: i64,
    /// Side of the kernel.
    pub kernel: i64,
    /// Distance between two positions of the kernel.
    pub stride: i64,
    /// Whether a norm follows.
    pub normed: bool,
}

impl PatchGan {
    /// Its layers, in order.
    #[must_use]
    pub fn layers(&self) -> Vec<Layer> {
        let (w, n) = (self.width, self.layers);
        let width = |i: u32| w * (1i64 << i.min(62)).min(WIDEST);
        let (kernel, last) = if n == 0 { (1, 1) } else { (4, n) };
        (0..last + 2)
            .map(|i| Layer {
                place: if i == 0 { 0 } else { 3 * i - 1 },
                inputs: if i == 0 { self.inputs } else { width(i - 1) },
                outputs: if i > last { 1 } else { width(i) },
                kernel,
                stride: if i < n { 2 } else { 1 },
                normed: i > 0 && i <= last,
            })
            .collect()
    }

    /// Its parameters, `<prefix><place>.…`, in the order in which they are drawn.
    #[must_use]
    pub fn parameters(&self, prefix: &str) -> Vec<ParameterSpec> {
        let mut list = Vec::new();
        for Layer { place, inputs, outputs, kernel, normed, .. } in self.layers() {
            list.push(weight(&format!("{prefix}{place}"), &[outputs, inputs, kernel, kernel]));
            if normed && self.affine {
                list.extend(norm(&format!("{prefix}{}", place + 1), outputs));
            } else {
                list.push(zero(&format!("{prefix}{place}.bias"), outputs));
            }
        }
        list
    }
}

/// The weight of a convolution.
pub(super) fn weight(layer: &str, shape: &[i64]) -> ParameterSpec {
    weight_of(layer, shape, SPREAD)
}

/// The same of another standard deviation.
pub(super) fn weight_of(layer: &str, shape: &[i64], deviation: f32) -> ParameterSpec {
    let init = Init::Gaussian { mean: 0.0, deviation };
    ParameterSpec { name: format!("{layer}.weight"), shape: shape.to_vec(), init }
}

/// Something that starts at 0.
pub(super) fn zero(name: &str, outputs: i64) -> ParameterSpec {
    ParameterSpec { name: name.to_owned(), shape: vec![outputs], init: Init::Zero }
}

/// Scale and shift of a norm: N(1, 0.02) and 0.
pub(super) fn norm(layer: &str, outputs: i64) -> [ParameterSpec; 2] {
    let init = Init::Gaussian { mean: 1.0, deviation: SPREAD };
    [
        ParameterSpec { name: format!("{layer}.weight"), shape: vec![outputs], init },
        zero(&format!("{layer}.bias"), outputs),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patches(inputs: i64, layers: u32, affine: bool) -> PatchGan {
        PatchGan { inputs, width: 64, layers, affine }
    }

    fn total(of: PatchGan) -> u64 {
        of.parameters("d.").iter().map(ParameterSpec::numel).sum()
    }

    /// gan.md 2.2 and 3.
    #[test]
    fn parameter_totals() {
        assert_eq!(total(patches(3, 3, false)), 2_764_737);
        assert_eq!(total(patches(6, 3, true)), 2_768_705);
        assert_eq!(total(patches(3, 0, false)), 8_705);
    }

    /// gan.md 2.8.
    #[test]
    fn layers_stand_where_the_authors_list_has_them() {
        let places = |layers| patches(3, layers, false).layers().iter().map(|layer| layer.place).collect::<Vec<_>>();
        assert_eq!(places(3), [0, 2, 5, 8, 11]);
        assert_eq!(places(0), [0, 2, 5]);
        let names: Vec<_> = patches(6, 1, true).parameters("d.").into_iter().map(|spec| spec.name).collect();
        assert_eq!(names, ["d.0.weight", "d.0.bias", "d.2.weight", "d.3.weight", "d.3.bias", "d.5.weight", "d.5.bias"]);
    }

    /// gan.md 2.2: the pixels that one score depends on.
    #[test]
    fn receptive_fields() {
        for (layers, expected) in [(0, 1), (1, 16), (2, 34), (3, 70), (4, 142), (5, 286), (6, 574)] {
            let of = patches(3, layers, false).layers();
            let field = of.iter().rev().fold(1, |field, layer| (field - 1) * layer.stride + layer.kernel);
            assert_eq!(field, expected, "{layers} layers");
        }
    }
}
