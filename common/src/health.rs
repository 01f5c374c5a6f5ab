//! What is wrong with a training, in plain words: collapse, a discriminator that won or does not learn, oscillation, translations that
//! change nothing, or turn brightness round, or forget what they were made of.
//!
//! A pure function of what a run reports: losses at ticks, numbers of evaluations. Each verdict comes with the numbers that say so and
//! with what to try; it is told once, and again only after it was over. Losses alone say little about how good images are, so nothing
//! here says that a run is good. Refuses to judge a run by one evaluation, or by an untrained network.

use crate::config::resolved::Model;
use crate::families::cyclegan::GanLoss;
use crate::metrics::{Event, Quality, Tick, Verdict, names};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::f64::consts::LN_2;

/// Ticks in a row that must say the same of a discriminator.
pub const TICKS: usize = 4;
/// Ticks over which losses are watched for swings.
pub const SWINGS: usize = 8;
/// Evaluations in a row that must say the same.
pub const EVALUATIONS: u32 = 2;

/// A loss swings where a step from tick to tick is this share of its size, in the mean...
const SWING: f64 = 0.5;
/// ...and so many of its steps turn back.
const TURNS: usize = 4;
/// Made images are all alike where they differ by less than this share of what real ones do...
const DIVERSE: f64 = 0.25;
/// ...or by less than this at all.
const ALIKE: f64 = 0.02;
/// Side of the smallest images of which that is said, in pixels.
const LEAST_SIDE: u32 = 16;
/// A translation changes nothing where it changes less than this share of the difference between images of both domains.
const UNCHANGED: f64 = 0.08;
/// Brightness is turned round where its correlation with the input's is below this.
const NEGATIVE: f64 = -0.3;
/// The way back leads nowhere where it ends this share of the difference between two images of the domain away.
const LOST: f64 = 0.7;

/// Watches one run.
#[derive(Clone, Debug)]
pub struct Health {
    scale: Scale,
    ticks: VecDeque<Tick>,
    /// How often in a row evaluations have said each thing of each direction, and at which image the last one did.
    said: BTreeMap<(&'static str, String), (u32, u64)>,
    told: BTreeSet<(&'static str, String)>,
}

/// What a discriminator's numbers mean.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    /// Its loss is `guess` where it always says "perhaps", and below `won` where nothing deceives it.
    Loss { guess: f64, won: f64 },
    /// Its scores of real images are above those of made ones.
    Scores,
}

impl Scale {
    fn of(model: &Model) -> Self {
        let loss = match model {
            Model::ProGan(_) => return Self::Scores,
            // softplus(-real) + softplus(made)
            Model::Sngan(_) => return Self::Loss { guess: 2.0 * LN_2, won: 0.02 },
            Model::CycleGan(a) => a.gan_loss,
            Model::Pix2Pix(a) => a.gan_loss,
        };
        match loss {
            GanLoss::Lsgan => Self::Loss { guess: 0.25, won: 0.005 },
            GanLoss::Vanilla => Self::Loss { guess: LN_2, won: 0.02 },
            GanLoss::Wgangp => Self::Scores,
        }
    }
}

impl Health {
    /// Watches a run of `model` from its beginning, or from anywhere.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        Self { scale: Scale::of(model), ticks: VecDeque::new(), said: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Takes in what the run reports, in order; what is newly wrong.
    pub fn hear(&mut self, event: &Event) -> Vec<Verdict> {
        match event {
            Event::Tick(tick) => self.tick(tick),
            Event::Quality(quality) => self.quality(quality).into_iter().collect(),
            Event::Verdict(_) => Vec::new(),
        }
    }

    fn tick(&mut self, tick: &Tick) -> Vec<Verdict> {
        // the networks that are compared must be the same
        if self.ticks.back().is_some_and(|last| last.lod != tick.lod || last.images >= tick.images) {
            self.ticks.clear();
        }
        self.ticks.push_back(tick.clone());
        if self.ticks.len() > SWINGS {
            self.ticks.pop_front();
        }
        let found = self.discriminators().into_iter().chain(self.swings());
        let found: Vec<_> = found.collect();
        found.into_iter().filter_map(|(what, of, sign)| self.tell(tick.images, what, of, sign)).collect()
    }

    /// Of each discriminator, whether it won, and whether it does not learn.
    fn discriminators(&self) -> Vec<(&'static str, String, Option<Sign>)> {
        let Some(last) = self.ticks.back() else { return Vec::new() };
        let suffixes: Vec<&str> = last.stats.keys().filter_map(|name| name.strip_prefix("score/real")).collect();
        let recent = || self.ticks.iter().rev().take(TICKS);
        let enough = self.ticks.len() >= TICKS;
        let all = |test: &dyn Fn(&Tick) -> Option<bool>| enough && recent().all(|tick| test(tick).unwrap_or(false));
        suffixes
            .into_iter()
            .flat_map(|suffix| {
                let stat = |tick: &Tick, name: &str| tick.stats.get(&format!("{name}{suffix}")).copied();
                let (won, lost) = match self.scale {
                    Scale::Loss { guess, won } => (
                        all(&|tick| Some(stat(tick, "loss/d")? < won)),
                        all(&|tick| Some(stat(tick, "loss/d")? > guess * 1.2)),
                    ),
                    Scale::Scores => (false, all(&|tick| Some(stat(tick, "score/real")? <= stat(tick, "score/fake")?))),
                };
                let number = |name: &str| stat(last, name).unwrap_or(f64::NAN);
                let evidence = format!(
                    "for {TICKS} ticks: loss/d{suffix} {:.4}, scores of real images {:.3}, of made ones {:.3}",
                    number("loss/d"),
                    number("score/real"),
                    number("score/fake")
                );
                [("d_won", won, D_WON), ("d_lost", lost, D_LOST)].map(|(what, is, advice)| {
                    (what, suffix.to_owned(), is.then(|| Sign { evidence: evidence.clone(), advice }))
                })
            })
            .collect()
    }

    /// Whether a loss swings to and fro.
    fn swings(&self) -> Vec<(&'static str, String, Option<Sign>)> {
        let Some(last) = self.ticks.back() else { return Vec::new() };
        let found = last.stats.keys().filter(|name| name.starts_with("loss/")).find_map(|name| {
            let values: Option<Vec<f64>> = self.ticks.iter().map(|tick| tick.stats.get(name).copied()).collect();
            let values = values.filter(|values| values.len() == SWINGS)?;
            let steps: Vec<f64> = values.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let size = values.iter().map(|value| value.abs()).sum::<f64>() / values.len() as f64;
            let step = steps.iter().map(|step| step.abs()).sum::<f64>() / steps.len() as f64;
            let turns = steps.windows(2).filter(|pair| pair[0] * pair[1] < 0.0).count();
            // a loss that is not finite swings in every sense; that of a critic has no size of its own, and may hover around 0
            let sized = self.scale != Scale::Scores;
            let swings = !size.is_finite() || (sized && turns >= TURNS && step > SWING * size);
            swings.then(|| Sign {
                evidence: format!(
                    "over {SWINGS} ticks {name} is {size:.3} in the mean and changes by {step:.3} from tick to tick, {turns} times back"
                ),
                advice: OSCILLATION,
            })
        });
        vec![("oscillation", String::new(), found)]
    }

    fn quality(&mut self, quality: &Quality) -> Option<Verdict> {
        let value = quality.mean();
        let mean = |levels: &BTreeMap<u32, f64>| {
            (!levels.is_empty()).then(|| levels.values().sum::<f64>() / levels.len() as f64)
        };
        let (floor, untouched) = (mean(&quality.floor), mean(&quality.untouched));
        let (what, wrong, evidence, advice) = match quality.metric.as_str() {
            names::DIVERSITY => {
                let real = floor?;
                // a handful of pixels are alike without meaning anything
                if quality.levels.keys().any(|side| *side < LEAST_SIDE) {
                    return None;
                }
                let evidence = format!(
                    "made images are alike by {value:.3} (MS-SSIM of pairs; 1 is equal), real ones by {real:.3}"
                );
                if 1.0 - real < ALIKE {
                    // nothing else can be learned of such data
                    ("one_image", true, evidence, ONE_IMAGE)
                } else {
                    let alike = 1.0 - value < ALIKE || 1.0 - value < DIVERSE * (1.0 - real);
                    ("collapse", alike, evidence, COLLAPSE)
                }
            }
            names::CHANGE => {
                let apart = untouched?;
                let evidence = format!(
                    "translations differ from their inputs by {value:.3}, images of the two domains by {apart:.3}"
                );
                ("identity", value < UNCHANGED * apart, evidence, IDENTITY)
            }
            names::LIKENESS => {
                let evidence = format!(
                    "the brightness of a translation goes with that of its input by {value:.2} (-1 is a negative)"
                );
                ("inversion", value < NEGATIVE, evidence, INVERSION)
            }
            names::CYCLE => {
                let apart = untouched?;
                let evidence =
                    format!("there and back ends {value:.3} away, another image of the domain is {apart:.3} away");
                ("lost_way", value > LOST * apart, evidence, LOST_WAY)
            }
            _ => return None,
        };
        let key = (what, quality.of.clone());
        // an untrained network is none of these
        let (before, at) = self.said.get(&key).copied().unwrap_or_default();
        // what is said once more, after a broken generation or a way back, is no second evaluation
        let again = u32::from(quality.images > at);
        let times = if wrong && quality.images > 0 { before + again } else { 0 };
        self.said.insert(key, (times, quality.images.max(at)));
        let sign = (times >= EVALUATIONS).then_some(Sign { evidence, advice });
        self.tell(quality.images, what, quality.of.clone(), sign)
    }

    /// The verdict, where it was not told yet.
    fn tell(&mut self, images: u64, what: &'static str, of: String, sign: Option<Sign>) -> Option<Verdict> {
        let key = (what, of);
        let Some(sign) = sign else {
            self.told.remove(&key);
            return None;
        };
        if !self.told.insert(key.clone()) {
            return None;
        }
        let of = if key.1.is_empty() { String::new() } else { format!("{}: ", key.1.trim_start_matches('_')) };
        Some(Verdict {
            images,
            what: what.to_owned(),
            evidence: format!("{of}{}", sign.evidence),
            advice: sign.advice.to_owned(),
        })
    }
}

struct Sign {
    evidence: String,
    advice: &'static str,
}

const D_WON: &str = "the discriminator tells real from made without error, and teaches nothing any more: a lower learning rate, more data or \
                     flips (data.mirror), a narrower discriminator";
const D_LOST: &str = "the discriminator does worse than guessing: does it learn at all? A higher learning rate for it, a wider or deeper one, \
                      and a look at the data";
const OSCILLATION: &str = "a lower learning rate, beta1 = 0.5 or 0, a larger minibatch";
const COLLAPSE: &str = "the generator makes one image of everything: go back to a checkpoint before it, with a lower learning rate; a larger \
                        minibatch; look whether the data hold the same image many times";
const ONE_IMAGE: &str = "the real images that were looked at are all alike: look at the data, for one image many times over, or frames of one scene";
const IDENTITY: &str = "images come out as they went in: a smaller lambda_identity and lambda_a, lambda_b, or train on";
const INVERSION: &str =
    "light became dark, which the way back undoes: lambda_identity = 0.5 in the first passes cures it, or another seed";
const LOST_WAY: &str =
    "translations do not hold what they were made of: lambda_a and lambda_b above 0 (10 is usual), a wider generator";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::cyclegan;

    fn lsgan() -> Health {
        Health { scale: Scale::Loss { guess: 0.25, won: 0.005 }, ..scores() }
    }

    fn scores() -> Health {
        Health { scale: Scale::Scores, ticks: VecDeque::new(), said: BTreeMap::new(), told: BTreeSet::new() }
    }

    fn tick(images: u64, stats: &[(&str, f64)]) -> Event {
        let stats = stats.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Event::Tick(Tick { images, stats, ..Tick::default() })
    }

    fn said(health: &mut Health, events: impl IntoIterator<Item = Event>) -> Vec<(u64, String)> {
        let mut said = Vec::new();
        for event in events {
            said.extend(health.hear(&event).into_iter().map(|verdict| (verdict.images, verdict.what)));
        }
        said
    }

    fn quality(images: u64, metric: &str, value: f64, floor: f64, untouched: f64) -> Event {
        let at = |value| BTreeMap::from([(64, value)]);
        let (levels, floor, untouched) = (at(value), at(floor), at(untouched));
        let of = "a2b".to_owned();
        Event::Quality(Quality {
            images,
            metric: metric.to_owned(),
            of,
            levels,
            floor,
            untouched,
            ..Quality::default()
        })
    }

    #[test]
    fn a_discriminator_that_won_is_named_after_some_ticks_and_once() {
        let at = |i: u64, loss| {
            tick(
                i,
                &[
                    ("loss/d_a", loss),
                    ("loss/d_b", 0.2),
                    ("score/real_a", 1.0),
                    ("score/fake_a", 0.0),
                    ("score/real_b", 0.6),
                ],
            )
        };
        let told = said(&mut lsgan(), (1..10).map(|i| at(i, 0.001)));
        assert_eq!(told, [(4, "d_won".to_owned())]);
        let told = said(&mut lsgan(), (1..12).map(|i| at(i, if i == 6 { 0.1 } else { 0.001 })));
        assert_eq!(told, [(4, "d_won".to_owned()), (10, "d_won".to_owned())]);
    }

    #[test]
    fn a_discriminator_that_does_not_learn_is_named() {
        let frozen = tick(0, &[("loss/d_b", 0.5), ("score/real_b", 0.01), ("score/fake_b", 0.01)]);
        let Event::Tick(frozen) = frozen else { unreachable!() };
        let told = said(&mut lsgan(), (1..6).map(|images| Event::Tick(Tick { images, ..frozen.clone() })));
        assert_eq!(told, [(4, "d_lost".to_owned())]);
        let critic = |i| tick(i, &[("loss/d", 0.1), ("score/real", -0.1), ("score/fake", 0.0)]);
        assert_eq!(said(&mut scores(), (1..6).map(critic)), [(4, "d_lost".to_owned())]);
        let well = |i| tick(i, &[("loss/d", -2.0), ("score/real", 1.0), ("score/fake", -1.0)]);
        assert_eq!(said(&mut scores(), (1..20).map(well)), []);
    }

    #[test]
    fn losses_that_swing_are_named_and_those_that_fall_are_not() {
        let swing = |i: u64| tick(i, &[("loss/g", if i.is_multiple_of(2) { 9.0 } else { 1.0 })]);
        assert_eq!(said(&mut lsgan(), (1..10).map(swing)), [(8, "oscillation".to_owned())]);
        let fall = |i: u64| tick(i, &[("loss/g", 20.0 / i as f64)]);
        assert_eq!(said(&mut lsgan(), (1..30).map(fall)), []);
        let noise = |i: u64| tick(i, &[("loss/g", if i.is_multiple_of(2) { 3.0 } else { 3.6 })]);
        assert_eq!(said(&mut lsgan(), (1..30).map(noise)), []);
        let broken = |i: u64| tick(i, &[("loss/g", f64::NAN)]);
        assert_eq!(said(&mut lsgan(), (1..10).map(broken)), [(8, "oscillation".to_owned())]);
    }

    #[test]
    fn evaluations_say_the_same_twice_before_it_counts() {
        for (metric, bad, good, verdict) in [
            (names::DIVERSITY, 0.95, 0.4, "collapse"),
            (names::CHANGE, 0.01, 0.1, "identity"),
            (names::LIKENESS, -0.6, 0.3, "inversion"),
            (names::CYCLE, 0.29, 0.05, "lost_way"),
        ] {
            let at = |i, value| quality(i, metric, value, 0.3, 0.3);
            assert_eq!(said(&mut lsgan(), [at(1, bad), at(2, good), at(3, bad)]), [], "{metric}");
            assert_eq!(said(&mut lsgan(), [at(0, bad), at(1, bad)]), [], "{metric}, untrained");
            assert_eq!(said(&mut lsgan(), [at(1, bad), at(2, bad), at(3, bad)]), [(2, verdict.to_owned())], "{metric}");
            assert_eq!(said(&mut lsgan(), (0..9).map(|i| at(i, good))), [], "{metric}");
        }
    }

    #[test]
    fn data_that_are_one_image_are_said_to_be_so() {
        for made in [0.995, 0.5] {
            let told = said(&mut lsgan(), (1..4).map(|i| quality(i, names::DIVERSITY, made, 1.0, 0.0)));
            assert_eq!(told, [(2, "one_image".to_owned())], "{made}");
        }
    }

    #[test]
    fn one_evaluation_that_is_said_twice_counts_once() {
        let at = |i| quality(i, names::CHANGE, 0.0, 0.0, 0.3);
        assert_eq!(said(&mut lsgan(), [at(5), at(5), at(3)]), []);
        assert_eq!(said(&mut lsgan(), [at(5), at(5), at(6)]), [(6, "identity".to_owned())]);
    }

    #[test]
    fn a_critic_whose_loss_hovers_around_0_does_not_swing() {
        let hover = |i: u64| tick(i, &[("loss/g", if i.is_multiple_of(2) { 1.0 } else { -1.0 })]);
        assert_eq!(said(&mut scores(), (1..30).map(hover)), []);
        let broken = |i: u64| tick(i, &[("loss/g", f64::INFINITY)]);
        assert_eq!(said(&mut scores(), (1..10).map(broken)), [(8, "oscillation".to_owned())]);
    }

    #[test]
    fn a_few_pixels_are_no_collapse() {
        let few = |i| {
            let at = |value| BTreeMap::from([(4, value)]);
            let metric = names::DIVERSITY.to_owned();
            Event::Quality(Quality { images: i, metric, levels: at(0.999), floor: at(0.99), ..Quality::default() })
        };
        assert_eq!(said(&mut lsgan(), (1..9).map(few)), []);
    }

    #[test]
    fn what_a_loss_means_follows_from_the_model() {
        let a: cyclegan::Architecture = serde_json::from_value(serde_json::json!({
            "resolution": 64, "g_width": 8, "g_blocks": 2, "d_width": 8, "d_layers": 2, "gan_loss": "vanilla", "lambda_a": 10.0,
            "lambda_b": 10.0, "lambda_identity": 0.5, "pool_size": 0
        }))
        .unwrap();
        assert!(matches!(Scale::of(&Model::CycleGan(a.clone())), Scale::Loss { guess, .. } if guess > 0.69));
        let wasserstein = cyclegan::Architecture { gan_loss: GanLoss::Wgangp, ..a };
        assert_eq!(Scale::of(&Model::CycleGan(wasserstein)), Scale::Scores);
    }

    #[test]
    fn a_verdict_says_of_what_and_what_to_try() {
        let mut health = lsgan();
        health.hear(&quality(1, names::CHANGE, 0.0, 0.0, 0.3));
        let verdicts = health.hear(&quality(2, names::CHANGE, 0.0, 0.0, 0.3));
        assert!(verdicts[0].evidence.starts_with("a2b: translations differ") && verdicts[0].advice.contains("lambda"));
    }
}
