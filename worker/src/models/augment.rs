//! What D is shown is moved and resized by chance, real and made images alike, so that D cannot know few images by heart (Karras et al.,
//! "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020: scale and translation of appendix B, with a fixed
//! chance). Gradients pass through. Refuses to touch what the generators are given.

use super::{Batch, Draw};
use common::seed::{Purpose, Stream};
use tch::Tensor;

/// An image is resized by two to the power of this, times a normal draw.
const OCTAVES: f32 = 0.2;
/// An image is moved by this part of its side, times a normal draw, in either direction; by whole pixels, so that what is only moved is as
/// sharp as it was.
const SIDES: f32 = 0.125;

/// For each sample: `images` `[n, c, h, w]`, each resized with chance `chance` and moved with the same; what comes in from outside is
/// mirrored. `number` tells apart what is shown in one step.
pub fn augmented(images: &Tensor, chance: f64, number: u64, batch: &Batch, draw: &Draw) -> Tensor {
    if chance == 0.0 {
        return images.shallow_clone();
    }
    let side = images.size()[3] as f32;
    let rows: Vec<f32> = batch.samples.clone().flat_map(|sample| placed(chance, number, side, sample, draw)).collect();
    let places = Tensor::from_slice(&rows).to_kind(images.kind()).to_device(images.device()).view([-1, 2, 3]);
    let grid = Tensor::affine_grid_generator(&places, images.size(), false);
    const BILINEAR: i64 = 0;
    const MIRRORED: i64 = 2;
    images.grid_sampler(&grid, BILINEAR, MIRRORED, false)
}

/// Where in the image each place of what is shown comes from: `[2, 3]`, rows.
fn placed(chance: f64, number: u64, side: f32, sample: u32, draw: &Draw) -> [f32; 6] {
    let mut stream = Stream::new(draw.seed, Purpose::Augment, draw.step, u64::from(sample)).of(number);
    let [resized, moved] = [(); 2].map(|()| f64::from(stream.uniform()) < chance);
    let mut normals = [0.0; 3];
    stream.normals(&mut normals);
    let scale = if resized { (OCTAVES * normals[0]).exp2() } else { 1.0 };
    // a side is 2 long here
    let [x, y] = [1, 2].map(|i: usize| if moved { 2.0 * (SIDES * normals[i] * side).round() / side } else { 0.0 });
    [scale, 0.0, x, 0.0, scale, y]
}

#[cfg(test)]
mod tests {
    use super::super::testing::two_domains;
    use super::*;
    use tch::{Device, Kind};

    fn draw() -> Draw {
        Draw { seed: 3, step: 64, kind: Kind::Float, device: Device::Cpu }
    }

    fn shown(chance: f64, number: u64, samples: std::ops::Range<u32>) -> Tensor {
        let batch = two_domains(samples, 16, 8);
        augmented(&(batch.real[0].to_kind(Kind::Float) / 255.0), chance, number, &batch, &draw())
    }

    #[test]
    fn without_a_chance_nothing_is_changed() {
        let batch = two_domains(0..8, 16, 8);
        assert!(shown(0.0, 0, 0..8).equal(&(batch.real[0].to_kind(Kind::Float) / 255.0)));
    }

    /// A sample's fate depends on its place in the global minibatch alone, and differs by number.
    #[test]
    fn however_it_is_dealt_a_sample_is_shown_alike() {
        let whole = shown(1.0, 1, 0..8);
        let parts = Tensor::cat(&[shown(1.0, 1, 0..1), shown(1.0, 1, 1..5), shown(1.0, 1, 5..8)], 0);
        assert!(whole.equal(&parts));
        assert!(!whole.equal(&shown(1.0, 2, 0..8)));
    }

    /// With the chance p, p^2 of all are resized and moved, (1-p)^2 neither, by as much as is said.
    #[test]
    fn as_often_and_as_far_as_is_said() {
        let chance = 0.6;
        let all: Vec<[f32; 6]> = (0..20_000).map(|sample| placed(chance, 0, 1024.0, sample, &draw())).collect();
        let count =
            |of: &dyn Fn(&[f32; 6]) -> bool| all.iter().filter(|place| of(place)).count() as f64 / all.len() as f64;
        let neither = count(&|place| *place == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let both = count(&|place| place[0] != 1.0 && place[2] != 0.0);
        assert!((neither - 0.16).abs() < 0.01 && (both - 0.36).abs() < 0.01, "{neither} {both}");
        let deviation = |values: Vec<f32>| {
            let squares: f32 = values.iter().map(|x| x * x).sum();
            (squares / values.len() as f32).sqrt()
        };
        let octaves = all.iter().filter(|place| place[0] != 1.0).map(|place| place[0].log2()).collect();
        let sides = all.iter().filter(|place| place[2] != 0.0).map(|place| place[2] / 2.0).collect();
        assert!((deviation(octaves) - OCTAVES).abs() < 0.01 && (deviation(sides) - SIDES).abs() < 0.005);
    }

    #[test]
    fn what_is_only_moved_stays_as_sharp() {
        let draw = draw();
        let side = 16.0;
        for sample in 0..200 {
            let place = placed(0.5, 0, side, sample, &draw);
            if place[0] == 1.0 {
                let pixels = [place[2], place[5]].map(|shift| shift * side / 2.0);
                assert_eq!(pixels, pixels.map(f32::round));
            }
        }
    }

    /// What is made is told by its gradient where it was shown.
    #[test]
    fn gradients_pass_through() {
        let batch = two_domains(0..2, 8, 2);
        let images = (batch.real[0].to_kind(Kind::Double) / 255.0).set_requires_grad(true);
        let draw = Draw { kind: Kind::Double, ..draw() };
        augmented(&images, 1.0, 0, &batch, &draw).sum(Kind::Double).backward();
        // weights of what is looked at sum to one for every place shown
        let given = images.grad().sum(Kind::Double).double_value(&[]);
        assert!((given - 2.0 * 3.0 * 64.0).abs() < 1e-9, "{given}");
    }
}
