use super::*;
use crate::checkpoint::snapshot;
use crate::models::{self, Role};
use collective::{Collective, Listener, Membership, Mesh, Solo};
use common::config::resolved::{Ema, Model, ReducePrecision};
use common::config::{Base, Layers, resolve};
use common::families::cyclegan::{Norm, Upscale};
use std::net::SocketAddr;
use std::time::Duration;

/// A run that grows 4 -> 8 -> 16 in 160 images each, small enough for milliseconds a step.
pub(crate) fn config(determinism: &str, more: &str) -> RunConfig {
    let text = format!(
        r#"
        name = "t"
        seed = 5
        [model]
        family = "progan"
        resolution = 16
        latent_size = 8
        fmap_base = 64
        fmap_max = 8
        [data]
        source = "images"
        [train]
        total_kimg = 1
        determinism = "{determinism}"
        {more}
        [train.growth]
        stable_kimg = 0.08
        fade_kimg = 0.08
        [train.minibatch]
        4 = 16
        8 = 16
        16 = 8
        [checkpoint]
        url = "memory://t"
        "#
    );
    resolved(&text)
}

/// A run of a family that neither grows nor has groups, and whose networks remember something besides their parameters.
fn sngan(determinism: &str) -> RunConfig {
    resolved(&format!(
        r#"
        name = "t"
        [model]
        family = "sngan"
        resolution = 8
        latent_size = 8
        width = 8
        [data]
        source = "images"
        [train]
        total_kimg = 1
        determinism = "{determinism}"
        minibatch = 10
        d_repeats = 2
        [checkpoint]
        url = "memory://t"
        "#
    ))
}

/// A run of a family with two domains, whose phases hand images over and remember them.
fn cyclegan(determinism: &str) -> RunConfig {
    resolved(&format!(
        r#"
        name = "t"
        [model]
        family = "cyclegan"
        resolution = 8
        g_width = 4
        g_blocks = 1
        d_width = 4
        d_layers = 1
        pool_size = 7
        [data]
        source = "images"
        load_size = 8
        [train]
        constant_epochs = 2
        decay_epochs = 4
        epoch_images = 20
        determinism = "{determinism}"
        minibatch = 5
        [checkpoint]
        url = "memory://t"
        "#
    ))
}

/// The same with less memory, and what else the authors' has not.
fn sparing(determinism: &str) -> RunConfig {
    let mut config = cyclegan(determinism);
    config.train.save_memory = true;
    let Model::CycleGan(architecture) = &mut config.model else { unreachable!("it was said") };
    (architecture.average, architecture.upscale, architecture.augment) = (true, Upscale::Nearest, 0.6);
    (architecture.g_norm, architecture.d_layers) = (Norm::None, vec![1, 0]);
    config.train.ema = Ema::Decay(0.9);
    config
}

/// A run of a family that trains on pairs, and drops activations.
fn pix2pix(determinism: &str) -> RunConfig {
    resolved(&format!(
        r#"
        name = "t"
        [model]
        family = "pix2pix"
        resolution = 64
        g_width = 1
        g_downs = 6
        d_width = 1
        d_layers = 1
        [data]
        source = "images"
        load_size = 64
        [train]
        total_kimg = 1
        determinism = "{determinism}"
        minibatch = 5
        [checkpoint]
        url = "memory://t"
        "#
    ))
}

pub(crate) fn resolved(text: &str) -> RunConfig {
    let folder = std::path::Path::new("/");
    let layers = Layers { base: Base::File { path: "t.toml", text, folder }, env: &[], set: &[], working_dir: folder };
    resolve(&layers, 1).unwrap_or_else(|e| panic!("{e}")).config
}

fn images(upcoming: &Upcoming) -> Vec<Tensor> {
    let side = i64::from(upcoming.stage.level.resolution);
    let shape = [upcoming.samples.len() as i64, 3, side, side];
    let domain = |domain: u64| {
        let pixels: Vec<u8> = (upcoming.samples.clone())
            .flat_map(|s| (0..3 * side * side).map(move |i| (u64::from(s) * 31 + i as u64 * (7 + domain)) as u8))
            .map(|b| b.wrapping_add((upcoming.images % 251) as u8))
            .collect();
        Tensor::from_data_size(&pixels, &shape, Kind::Uint8)
    };
    // families of one domain pass over the second
    if upcoming.reads_images { vec![domain(0), domain(1)] } else { Vec::new() }
}

pub(crate) fn trainer(config: &RunConfig, collective: Box<dyn Collective>) -> Trainer {
    tch::set_num_threads(1);
    let model = models::build(config, Kind::Float, Device::Cpu);
    Trainer::new(config.clone(), model, Communicator::new(collective), Device::Cpu)
}

pub(crate) fn take(trainer: &mut Trainer, steps: usize) {
    for _ in 0..steps {
        let next = trainer.upcoming(1).remove(0);
        trainer.step(&images(&next), Flags::default()).unwrap();
    }
}

/// Everything that decides how training goes on, as one digest.
pub(crate) fn state(trainer: &Trainer) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in snapshot::live(trainer) {
        let (_, entry) = snapshot::copy(&[&part])[0].encode().unwrap();
        for tensor in entry.tensors {
            hasher.update(tensor.name.as_bytes());
            hasher.update(tensor.hash.as_ref());
        }
    }
    hasher.update(format!("{:?}", trainer.position()).as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// Runs `f` on every rank of a world of `world`, each in its own thread; the answers in rank order.
pub(crate) fn on_ranks<T: Send + 'static>(
    world: u32,
    config: &RunConfig,
    f: impl Fn(Trainer) -> T + Clone + Send + 'static,
) -> Vec<T> {
    if world == 1 {
        return vec![f(trainer(config, Box::new(Solo::new(1))))];
    }
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listeners: Vec<Listener> = (0..world).map(|_| Listener::bind(any).unwrap()).collect();
    let peers: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
    let threads: Vec<_> = (listeners.into_iter().enumerate())
        .map(|(rank, mut listener)| {
            let (peers, config, f) = (peers.clone(), config.clone(), f.clone());
            std::thread::spawn(move || {
                let membership = Membership { generation: 1, rank: rank as u32, peers, secret: [7; 32] };
                let tcp = Mesh::connect(&mut listener, membership, Duration::from_secs(20)).unwrap();
                f(trainer(&config, Box::new(tcp)))
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

/// Gradients that travel in bfloat16.
const HALVED: &str = "reduce_precision = \"bf16\"";

fn halved(mut config: RunConfig) -> RunConfig {
    config.train.reduce_precision = ReducePrecision::Bf16;
    config
}

const STEPS: usize = 44; // cycles of 8: two at 4x4, one fading to 8x8, one at 8x8, the rest fading to 16x16

#[test]
fn bitwise_runs_of_every_world_end_in_the_same_bits() {
    let end = |mut t: Trainer| {
        take(&mut t, STEPS);
        (t.stage().level, state(&t))
    };
    for (config, resolution) in [
        (config("bitwise", ""), 16),
        (sngan("bitwise"), 8),
        (cyclegan("bitwise"), 8),
        (sparing("bitwise"), 8),
        (pix2pix("bitwise"), 64),
    ] {
        let expected = on_ranks(1, &config, end).remove(0);
        assert_eq!(expected.0.resolution, resolution);
        assert_eq!(expected.0.fading(), config.model.grows());
        for world in [2, 3, 4] {
            for (rank, end) in on_ranks(world, &config, end).into_iter().enumerate() {
                assert_eq!(end, expected, "{}, rank {rank} of {world}", config.model.family());
            }
        }
    }
}

/// gan.md 19, item 20: with 32-bit arithmetic, through the real reduction.
#[test]
fn fast_gradients_of_every_world_equal_one_worker_s_but_for_rounding() {
    // at the first step of D and of G, and of both in a fade: the flat reduced gradient is what the first moment holds
    // after one step from zero (beta1 = 0)
    for before in [0, 1, 18, 19] {
        let config = |reduce: &str| config("fast", &format!("reduce_precision = \"{reduce}\""));
        let gradient = move |mut t: Trainer| {
            // the same weights everywhere: advance the schedule, not the networks
            for _ in 0..before {
                let (_, phase) = t.phase_at(t.position);
                t.advance(&phase);
            }
            let (_, phase) = t.phase_at(t.position);
            take(&mut t, 1);
            let module = t.model().modules().iter().position(|m| *m == phase.module).unwrap();
            let moments: Vec<Tensor> =
                t.optimizers()[module].first().tensors().iter().map(|m| m.flatten(0, -1)).collect();
            Vec::<f32>::try_from(&Tensor::cat(&moments, 0)).unwrap()
        };
        let alone = on_ranks(1, &config("fp32"), gradient).remove(0);
        let largest = alone.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        assert!(largest > 0.0);
        for (reduce, least, most) in [("fp32", 0.0, 1e-6), ("bf16", 1e-5, 1.0 / 64.0)] {
            for world in [2, 4] {
                for theirs in on_ranks(world, &config(reduce), gradient) {
                    let worst = alone.iter().zip(&theirs).fold(0.0f32, |w, (a, b)| w.max((a - b).abs())) / largest;
                    println!(
                        "step {before}, world {world}, {reduce}: largest difference {worst:.1e} of the largest gradient"
                    );
                    assert!((least..most).contains(&worst), "step {before}, world {world}, {reduce}: {worst:e}");
                }
            }
        }
    }
}

/// gan.md 19, item 21: through a resolution change, with accumulation, with more ranks than groups.
#[test]
fn ranks_stay_equal_in_fast_mode_too() {
    let progan = |world, more: &str| (world, config("fast", more));
    let runs =
        [progan(2, ""), progan(3, ""), progan(4, "max_per_worker = 4"), (2, cyclegan("fast")), (3, cyclegan("fast"))]
            .into_iter()
            .chain([
                progan(3, HALVED),
                progan(2, "reduce_precision = \"bf16\"\nmax_per_worker = 4"),
                (2, halved(sngan("fast"))),
                (2, halved(cyclegan("fast"))),
            ]);
    for (world, config) in runs {
        let hashes = on_ranks(world, &config, |mut t| {
            let mut hashes = Vec::new();
            for _ in 0..12 {
                take(&mut t, 5);
                hashes.push(state(&t));
            }
            hashes
        });
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{}, world {world}", config.model.family());
    }
}

/// Also after gradients were laid anew, because the networks have grown.
#[test]
fn sums_begin_while_backward_still_runs() {
    for more in ["", HALVED] {
        let early = on_ranks(2, &config("fast", more), |mut t| {
            let mut early = Vec::new();
            for _ in 0..STEPS {
                take(&mut t, 1);
                early.push(t.gradients.iter().flatten().map(Gradients::early).min());
            }
            early
        });
        assert!(early.iter().flatten().all(|least| least.is_some_and(|least| least > 0)), "{early:?}");
    }
}

/// gan.md 19, item 22, in memory: stable, fading, at a knee.
#[test]
fn a_run_put_back_into_place_goes_on_to_the_same_bits() {
    let families: [fn(&str) -> RunConfig; 4] = [|determinism| config(determinism, ""), sngan, cyclegan, pix2pix];
    for config in families.into_iter().flat_map(|family| [family("fast"), family("bitwise")]) {
        let mut whole = trainer(&config, Box::new(Solo::new(1)));
        take(&mut whole, STEPS);
        for cut in [6, 16, 19, 24, 29, 37] {
            let mut first = trainer(&config, Box::new(Solo::new(1)));
            take(&mut first, cut);
            let mut second = trainer(&config, Box::new(Solo::new(1)));
            for (from, to) in snapshot::live(&first).iter().zip(snapshot::live(&second)) {
                snapshot::restore(&to, &snapshot::copy(&[from])[0].encode().unwrap().0).unwrap();
            }
            second.restore(first.position(), first.mark().steps, first.knee(), first.skipped_updates());
            let steps: Vec<u64> = first.optimizers().iter().map(Optimizer::steps).collect();
            for (optimizer, steps) in second.optimizers_mut().iter_mut().zip(steps) {
                optimizer.set_steps(steps);
            }
            take(&mut second, STEPS - cut);
            assert_eq!(state(&second), state(&whole), "{config:?}, cut at {cut}");
        }
    }
}

/// gan.md 19, item 23: what is not finite anywhere is skipped everywhere, and counted.
#[test]
fn a_gradient_that_is_not_finite_skips_the_same_update_on_every_rank() {
    for (determinism, more) in [("fast", ""), ("fast", HALVED), ("bitwise", "")] {
        let config = config(determinism, more);
        let answers = on_ranks(2, &config, |mut t| {
            take(&mut t, 4);
            let before =
                Vec::<f32>::try_from(&t.model().parameters("d").get("d.4.conv.weight").flatten(0, -1)).unwrap();
            // the weight that multiplies every score of this step; put back afterwards
            let bias = t.model().parameters("d").get("d.4.dense1.bias").detach();
            let kept = bias.copy();
            if t.communicator().rank() == 1 {
                let _nan = bias.shallow_clone().fill_(f64::NAN);
            }
            take(&mut t, 1);
            bias.shallow_clone().copy_(&kept);
            let after = Vec::<f32>::try_from(&t.model().parameters("d").get("d.4.conv.weight").flatten(0, -1)).unwrap();
            assert_eq!(before, after);
            let skipped = t.skipped_updates();
            take(&mut t, 3);
            (skipped, t.skipped_updates(), state(&t))
        });
        assert_eq!((answers[0].0, answers[0].1), (1, 1), "{determinism}");
        assert_eq!(answers[0], answers[1], "{determinism}");
    }
}

#[test]
fn flags_are_counted_over_the_ranks() {
    for (determinism, more) in [("fast", ""), ("fast", HALVED), ("bitwise", "")] {
        let config = config(determinism, more);
        let agreed = on_ranks(3, &config, |mut t| {
            let next = t.upcoming(1).remove(0);
            let mine = Flags { stop: true, checkpoint: t.communicator().rank() > 0, ..Flags::default() };
            t.step(&images(&next), mine).unwrap()
        });
        assert!(agreed.iter().all(|sum| *sum == Agreed { stop: 3, checkpoint: 2, ..Agreed::default() }), "{agreed:?}");
    }
}

#[test]
fn statistics_are_means_over_the_minibatch_whatever_the_world() {
    let config = config("fast", "");
    let means = |world| {
        on_ranks(world, &config, |mut t| {
            take(&mut t, 6);
            t.take_statistics().unwrap()
        })
        .remove(0)
    };
    let (one, three) = (means(1), means(3));
    for name in ["loss/d", "loss/g", "score/real", "gradient_norm/d", "gradient_norm/mix"] {
        assert!(
            (one[name] - three[name]).abs() < 1e-4 * one[name].abs().max(1.0),
            "{name}: {} {}",
            one[name],
            three[name]
        );
    }
}

#[test]
fn a_lost_rank_is_an_error_on_the_others_and_leaves_their_step_untaken() {
    let config = config("fast", "");
    let answers = on_ranks(2, &config, |mut t| {
        take(&mut t, 3);
        if t.communicator().rank() == 1 {
            return None;
        }
        let before = (state(&t), t.position());
        let next = t.upcoming(1).remove(0);
        let error = t.step(&images(&next), Flags::default()).unwrap_err();
        assert!(matches!(error, StepError::Collective(CollectiveError::PeerLost { rank: 1, .. })), "{error}");
        Some(before == (state(&t), t.position()))
    });
    assert_eq!(answers[0], Some(true));
}

/// gan.md 19, item 13.
#[test]
fn the_average_converges_on_constant_weights_and_is_not_reset() {
    let config = config("fast", "ema_decay = 0.9");
    let mut t = trainer(&config, Box::new(Solo::new(1)));
    let weights = t.model().parameters("g").get("g.4.conv.weight").detach();
    let average = |t: &Trainer| t.model().average().unwrap().1.get("g.4.conv.weight").copy();
    let start = average(&t);
    let moved = &start + 1.0;
    for n in 1..40 {
        weights.shallow_clone().copy_(&moved);
        take(&mut t, 1);
        if t.position().step == 1 {
            let d_steps = (n + 1) / 2;
            let gap = (average(&t) - &start).mean(Kind::Float).double_value(&[]);
            assert!((gap - (1.0 - 0.9f64.powi(d_steps))).abs() < 1e-4, "after {d_steps} steps of D: {gap}");
        }
    }
}

/// Images of a CycleGAN are made by the average of its generators, where it keeps one.
#[test]
fn an_averaged_translator_translates_with_its_average() {
    let mut t = trainer(&sparing("fast"), Box::new(Solo::new(1)));
    take(&mut t, 2);
    let Role::Translator(translator) = t.model().role() else { panic!("a CycleGAN translates") };
    let image = Tensor::linspace(-1, 1, 3 * 8 * 8, (Kind::Float, Device::Cpu)).view([1, 3, 8, 8]);
    let made = translator.translate(0, &image);
    let (of, average) = t.model().average().unwrap();
    let weights = t.model().parameters(of);
    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(apart(&weights.get("g.a2b1.weight").detach(), average.get("g.a2b1.weight")) > 0.0);
    for (weight, average) in weights.tensors().iter().zip(average.tensors()) {
        weight.detach().copy_(average);
    }
    assert_eq!(apart(&translator.translate(0, &image), &made), 0.0);
    for average in average.tensors() {
        let _zero = average.shallow_clone().zero_();
    }
    assert!(apart(&translator.translate(0, &image), &made) > 0.0);
}

/// Halved precision trains: parameters stay in single precision and move, and ranks agree.
#[test]
fn a_run_in_bfloat16_trains_alike_on_every_rank() {
    let mut config = cyclegan("fast");
    config.train.precision = Precision::Bf16;
    for save_memory in [false, true] {
        config.train.save_memory = save_memory;
        let answers = on_ranks(2, &config, |mut t| {
            let before = t.model().parameters("g").tensors()[0].copy();
            take(&mut t, 4);
            let after = &t.model().parameters("g").tensors()[0];
            assert!(after.kind() == Kind::Float && (after - before).abs().max().double_value(&[]) > 1e-6);
            assert_eq!(t.skipped_updates(), 0);
            state(&t)
        });
        assert_eq!(answers[0], answers[1]);
    }
}

/// Gradients may be rounded on their way; what losses hand over, here the images of the pools, may not.
#[test]
fn what_is_handed_over_travels_whole() {
    for inexact in on_ranks(2, &halved(cyclegan("fast")), |mut t| {
        take(&mut t, 4);
        let pools = t.model().memory().unwrap().tensors();
        let kept: Vec<Tensor> = pools.iter().map(|pool| pool.to_kind(Kind::Float).flatten(0, -1)).collect();
        let kept = Tensor::cat(&kept, 0);
        (&kept - kept.to_kind(Kind::BFloat16).to_kind(Kind::Float)).count_nonzero(0).int64_value(&[])
    }) {
        assert!(inexact > 0);
    }
}
