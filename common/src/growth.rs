//! Progressive growing: which resolution is trained at which image, and how far a new one is faded in (Karras et al.,
//! ICLR 2018, section 2). A family that does not grow stands at its full resolution from the first image.
//!
//! Pure functions of the configuration and of images seen; knows no family.

use crate::ids::ImagesSeen;
use serde::{Deserialize, Serialize};

/// When the networks grow, in thousands of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Growth {
    /// Resolution of the first phase.
    pub start_resolution: u32,
    /// Length of a stable phase (`lod_training_kimg`).
    pub stable_kimg: f64,
    /// Length of a fade (`lod_transition_kimg`).
    pub fade_kimg: f64,
}

/// Where the growth stands: a pure function of images seen at the *cycle start*.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Level of detail: 0 is full resolution, each whole number halves it; fractions while fading.
    pub lod: f64,
    /// Active resolution in pixels, `2^(R - floor(lod))`: the new one from the first moment of its fade.
    pub resolution: u32,
}

impl Level {
    /// Share of the new resolution, 0 at the start of its fade-in, 1 in a stable phase: `1 - frac(lod)`.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        1.0 - self.lod.fract()
    }

    /// Whether the image layer of the resolution below still takes part.
    #[must_use]
    pub fn fading(&self) -> bool {
        self.lod.fract() > 0.0
    }

    /// `(floor, ceil)` of lod: the optimizer is reset when either changes.
    #[must_use]
    pub fn knee(&self) -> (u32, u32) {
        (self.lod.floor() as u32, self.lod.ceil() as u32)
    }
}

impl Growth {
    /// Of networks that are trained at `resolution` alone.
    #[must_use]
    pub fn none(resolution: u32) -> Self {
        Self { start_resolution: resolution, stable_kimg: 0.0, fade_kimg: 0.0 }
    }

    /// The level at `images` for a network whose final resolution is `resolution` (gan.md 1.6):
    /// `lod = max(0, R - log2(start) - phase - max(p - stable, 0) / fade)`.
    #[must_use]
    pub fn level(&self, resolution: u32, images: ImagesSeen) -> Level {
        let top = resolution.ilog2();
        let start = f64::from(top - self.start_resolution.ilog2().min(top));
        let duration = self.stable_kimg + self.fade_kimg;
        let lod = if duration > 0.0 {
            let phase = (images.kimg() / duration).floor();
            let into = images.kimg() - phase * duration;
            let faded = if self.fade_kimg > 0.0 { (into - self.stable_kimg).max(0.0) / self.fade_kimg } else { 0.0 };
            (start - phase - faded).max(0.0)
        } else {
            0.0
        };
        Level { lod, resolution: 1 << (top - lod.floor() as u32) }
    }

    /// The first images at which a network whose final resolution is `resolution` works at `at` pixels, and nothing fades in. `None`
    /// where it never does.
    #[must_use]
    pub fn first_at(&self, resolution: u32, at: u32) -> Option<ImagesSeen> {
        let grown = at.ilog2().checked_sub(self.start_resolution.ilog2())?;
        let knee = (f64::from(grown) * (self.stable_kimg + self.fade_kimg) * 1000.0).round() as u64;
        // a knee that lies between two images is passed at the second
        (knee..=knee + 1).map(ImagesSeen).find(|images| {
            let level = self.level(resolution, *images);
            level.resolution == at && !level.fading()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> Growth {
        Growth { start_resolution: 4, stable_kimg: 600.0, fade_kimg: 600.0 }
    }

    /// gan.md 19, item 4.
    #[test]
    fn lod_at_every_knee() {
        let at = |resolution, kimg: u64| paper().level(resolution, ImagesSeen(kimg * 1000));
        for (kimg, lod, resolution) in [
            (0, 8.0, 4),
            (600, 8.0, 4),
            (900, 7.5, 8),
            (1200, 7.0, 8),
            (1800, 7.0, 8),
            (9000, 1.0, 512),
            (9300, 0.5, 1024),
            (9600, 0.0, 1024),
            (20_000, 0.0, 1024),
        ] {
            let level = at(1024, kimg);
            assert_eq!((level.lod, level.resolution), (lod, resolution), "at {kimg} kimg");
        }
        assert!(at(64, 4799).lod > 0.0);
        assert_eq!(at(64, 4800).lod, 0.0);
    }

    #[test]
    fn the_new_resolution_is_active_from_the_first_image_of_its_fade() {
        let level = paper().level(1024, ImagesSeen(600_001));
        assert_eq!(level.resolution, 8);
        assert!(level.alpha() > 0.0 && level.alpha() < 1e-5);
    }

    /// gan.md 19, item 12: the first step, and two knees for every resolution above the first.
    #[test]
    fn resets_happen_17_times_for_1024_and_9_times_for_64() {
        for (top, expected) in [(1024, 17), (64, 9), (4, 1)] {
            let mut last = None;
            let mut resets = 0;
            for kimg in 0..12_000 {
                let knee = Some(paper().level(top, ImagesSeen(kimg * 1000)).knee());
                resets += usize::from(knee != last);
                last = knee;
            }
            assert_eq!(resets, expected, "final {top}");
        }
    }

    #[test]
    fn without_phases_the_network_starts_at_full_size() {
        for images in [0, 1, 5_000_000] {
            let level = Growth::none(1024).level(1024, ImagesSeen(images));
            assert_eq!((level, level.knee()), (Level { lod: 0.0, resolution: 1024 }, (0, 0)));
        }
    }

    #[test]
    fn a_fade_without_length_is_a_step() {
        let growth = Growth { start_resolution: 4, stable_kimg: 1.0, fade_kimg: 0.0 };
        assert_eq!(growth.level(16, ImagesSeen(999)).resolution, 4);
        assert_eq!(growth.level(16, ImagesSeen(1000)), Level { lod: 1.0, resolution: 8 });
    }

    #[test]
    fn the_beginning_of_a_resolution_is_found() {
        let first = |at| paper().first_at(1024, at).map(|images| images.0);
        assert_eq!((first(4), first(8), first(1024)), (Some(0), Some(1_200_000), Some(9_600_000)));
        let late = Growth { start_resolution: 16, ..paper() };
        assert_eq!((late.first_at(32, 8), late.first_at(32, 16)), (None, Some(ImagesSeen(0))));
        assert_eq!((late.first_at(32, 32), late.first_at(32, 64)), (Some(ImagesSeen(1_200_000)), None));
        assert_eq!(Growth::none(64).first_at(64, 64), Some(ImagesSeen(0)));
        assert_eq!(Growth::none(64).first_at(64, 32), None);
        let odd = Growth { start_resolution: 4, stable_kimg: 0.1, fade_kimg: 0.0333 };
        for at in [4, 8, 16, 32] {
            let images = odd.first_at(32, at).unwrap();
            assert_eq!((odd.level(32, images).resolution, odd.level(32, images).fading()), (at, false), "{at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn lod_never_rises_and_resolution_never_falls(
            stable in 0.0f64..50.0, fade in 0.0f64..50.0, start in 2u32..6, top in 2u32..11, images in 0u64..400_000, more in 0u64..50_000,
        ) {
            let growth = Growth { start_resolution: 1 << start.min(top), stable_kimg: stable, fade_kimg: fade };
            let a = growth.level(1 << top, ImagesSeen(images));
            let b = growth.level(1 << top, ImagesSeen(images + more));
            proptest::prop_assert!(b.lod <= a.lod + 1e-9);
            proptest::prop_assert!(b.resolution >= a.resolution && b.resolution <= 1 << top);
            proptest::prop_assert!((0.0..=1.0).contains(&a.alpha()));
        }
    }
}
