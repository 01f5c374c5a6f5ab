use super::*;
use crate::models::blocks::instance_norm;
use crate::models::testing::two_domains;
use common::families::cyclegan::{GanLoss, Norm as GNorm, Upscale};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const SIDE: u32 = 16;
const MINIBATCH: u32 = 6;

const STAGE: Stage = Stage {
    level: Level { lod: 0.0, resolution: SIDE },
    minibatch: MINIBATCH,
    group: 1,
    micro_batch: MINIBATCH,
    learning_rate: 2e-4,
    ema_decay: 0.999,
    tick_images: 1000,
};

fn architecture() -> Architecture {
    Architecture {
        resolution: SIDE,
        g_width: 4,
        g_blocks: 2,
        g_downs: 2,
        d_width: 4,
        d_layers: vec![2],
        gan_loss: GanLoss::Lsgan,
        lambda_a: 10.0,
        lambda_b: 7.0,
        lambda_identity: 0.5,
        pool_size: 50,
        g_norm: GNorm::Instance,
        upscale: Upscale::Transposed,
        residual: false,
        skips: false,
        average: false,
        augment: 0.0,
    }
}

fn model(architecture: Architecture) -> CycleGan {
    CycleGan::new(architecture, MINIBATCH, false, 7, Kind::Double, Device::Cpu)
}

fn draw(step: u64) -> Draw {
    Draw { seed: 3, step, kind: Kind::Double, device: Device::Cpu }
}

fn batch(samples: std::ops::Range<u32>) -> Batch {
    two_domains(samples, SIDE, MINIBATCH)
}

fn loss(model: &CycleGan, phase: usize, samples: std::ops::Range<u32>) -> Loss {
    loss_of(model, phase, &batch(samples))
}

fn loss_of(model: &CycleGan, phase: usize, batch: &Batch) -> Loss {
    let phase = &model.phases()[phase];
    for module in model.modules() {
        let active = if *module == phase.module { model.active(module, &STAGE.level) } else { vec![] };
        model.parameters(module).require_gradients(&active);
    }
    model.loss(phase, &STAGE, batch, &draw(40))
}

/// The gradient of `phase` over `samples`, flat.
fn gradient(model: &CycleGan, phase: usize, samples: std::ops::Range<u32>) -> Tensor {
    gradient_of(model, phase, loss(model, phase, samples).objective)
}

fn gradient_of(model: &CycleGan, phase: usize, objective: Tensor) -> Tensor {
    let parameters = model.parameters(model.phases()[phase].module);
    let inputs: Vec<&Tensor> = parameters.tensors().iter().collect();
    let grads = Tensor::run_backward(&[objective], &inputs, false, false);
    Tensor::cat(&grads.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0)
}

fn settle(model: &CycleGan, made: Tensor, images: u64) {
    let whole = Whole { stage: &STAGE, draw: &draw(images), handed: made };
    model.before_update(&model.phases()[0], &whole);
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1.0)
}

/// gan.md 19, item 3, and 2.1: fully convolutional, a map of 30x30 scores at 256.
#[test]
fn images_keep_their_size_and_scores_are_maps() {
    let narrow =
        Architecture { g_width: 1, g_blocks: 1, d_width: 1, d_layers: vec![3], resolution: 256, ..architecture() };
    let model = CycleGan::new(Architecture { pool_size: 0, ..narrow }, 1, false, 7, Kind::Float, Device::Cpu);
    let image = Tensor::rand([1, 3, 256, 256], (Kind::Float, Device::Cpu));
    assert_eq!(model.translate(0, &image).size(), [1, 3, 256, 256]);
    assert_eq!(model.judges[0].judges()[0].score(&image).size(), [1, 1, 30, 30]);
    let other = Tensor::rand([2, 3, 20, 44], (Kind::Float, Device::Cpu));
    let made = model.translate(1, &other);
    assert_eq!(made.size(), [2, 3, 20, 44]);
    assert!(made.abs().max().double_value(&[]) <= 1.0);
    for module in model.modules() {
        let parameters = model.parameters(module);
        for (spec, tensor) in parameters.specs().iter().zip(parameters.tensors()) {
            assert_eq!(spec.shape, tensor.size(), "{}", spec.name);
        }
    }
}

/// One that adds nothing gives the image back, and white can still become another colour.
#[test]
fn a_generator_that_adds_to_its_input_begins_there() {
    let model = model(Architecture { residual: true, ..architecture() });
    let last = |kind: &str| model.g.get(&format!("g.a2b{}.{kind}", architecture().places().last)).detach();
    for kind in ["weight", "bias"] {
        let _zero = last(kind).zero_();
    }
    let [image, _] = reals(&batch(0..2), &draw(40));
    let apart = (model.generators[0].forward(&image) - &image * NEARLY).abs().max().double_value(&[]);
    assert!(apart < 1e-9, "{apart:e}");
    let _dark = last("bias").fill_(-9.0);
    let white = image.ones_like();
    assert!(model.generators[0].forward(&white).max().double_value(&[]) < -0.99);
}

/// Where nothing comes up, what was there before the first halving goes into the last layer; and gradients find their way by it.
#[test]
fn what_was_there_before_a_halving_is_added_after_it_is_undone() {
    for upscale in [Upscale::Transposed, Upscale::Nearest] {
        let model = model(Architecture { skips: true, upscale, ..architecture() });
        let places = architecture().places();
        let of = |place: u32, kind: &str| model.g.get(&format!("g.a2b{place}.{kind}"));
        for place in &places.up {
            let _zero = no_grad(|| of(*place, "weight").shallow_clone().zero_());
        }
        let [image, _] = reals(&batch(0..2), &draw(40));
        let made = model.generators[0].forward(&image);
        let conv =
            |x: &Tensor, place: u32| reflect(x, 3).conv2d(of(place, "weight"), Some(of(place, "bias")), 1, 0, 1, 1);
        let expected = conv(&instance_norm(&conv(&image, places.first)).relu(), places.last).tanh();
        let apart = (&made - expected).abs().max().double_value(&[]);
        assert!(apart < 1e-9, "{upscale:?}: {apart:e}");
        model.g.require_gradients(&model.active("g", &STAGE.level));
        model.generators[0].forward(&image).sum(Kind::Double).backward();
        assert!(of(places.first, "weight").grad().abs().max().double_value(&[]) > 0.0);
    }
}

/// As many pixels all the way, and no layer that makes more of them.
#[test]
fn a_generator_may_halve_nothing() {
    let a = Architecture { g_downs: 0, ..architecture() };
    assert_eq!((a.multiple(), a.places().down.len(), a.places().up.len()), (1, 0, 0));
    let made = model(a).generators[1].forward(&Tensor::rand([1, 3, 17, 23], (Kind::Double, Device::Cpu)));
    assert_eq!(made.size(), [1, 3, 17, 23]);
}

/// Without norms an image's brightness is not lost on the way, and what goes through neither dies out nor swells.
#[test]
fn without_norms_images_go_through_in_their_size() {
    let model = model(Architecture { g_norm: GNorm::None, g_width: 16, g_blocks: 6, ..architecture() });
    let generator = &model.generators[0];
    let [image, _] = reals(&batch(0..MINIBATCH), &draw(40));
    let spread = |x: &Tensor| x.std(true).double_value(&[]);
    let made = generator.forward(&image);
    assert!((0.1..0.5).contains(&spread(&made)), "{}", spread(&made));
    let darker = generator.forward(&(&image * 0.5));
    assert!((made - darker).abs().max().double_value(&[]) > 1e-2);
}

/// gan.md 2.3, pass by pass; identity weighs lambda * lambda_identity.
#[test]
fn the_objective_of_g_is_the_sum_of_its_terms() {
    for (lambda_identity, upscale, g_downs, g_norm, d_layers) in [
        (0.5, Upscale::Transposed, 2, GNorm::Instance, vec![2]),
        (0.0, Upscale::Nearest, 1, GNorm::None, vec![1, 0, 2]),
    ] {
        let model = model(Architecture { lambda_identity, upscale, g_downs, g_norm, d_layers, ..architecture() });
        let [a, b] = reals(&batch(0..MINIBATCH), &draw(40));
        let [a2b, b2a] = &model.generators;
        let [judge_a, judge_b] = &model.judges;
        let whole = |x: Tensor| x.mean(Kind::Double).double_value(&[]);
        let l1 = |x: &Tensor, y: &Tensor| whole((x - y).abs());
        let (fake_b, fake_a) = (a2b.forward(&a), b2a.forward(&b));
        let gan = |panel: &Panel, x: &Tensor| {
            let of_each = panel.judges().iter().map(|judge| whole((judge.score(x) - 1.0).square()));
            of_each.sum::<f64>() / panel.judges().len() as f64
        };
        let expected = gan(judge_b, &fake_b)
            + gan(judge_a, &fake_a)
            + 10.0 * l1(&b2a.forward(&fake_b), &a)
            + 7.0 * l1(&a2b.forward(&fake_a), &b)
            + lambda_identity * (7.0 * l1(&a2b.forward(&b), &b) + 10.0 * l1(&b2a.forward(&a), &a));
        let loss = loss(&model, 0, 0..MINIBATCH);
        let got = loss.objective.double_value(&[]);
        assert!(close(got, expected), "{got} {expected}");
        // and what is handed over are the images that were made
        let handed = loss.handed.unwrap().view([6, 2, 3, 16, 16]);
        assert!((handed.select(1, 0) - fake_a).abs().max().double_value(&[]) < 1e-12);
        assert!((handed.select(1, 1) - fake_b).abs().max().double_value(&[]) < 1e-12);
    }
}

/// gan.md 19, item 17.
#[test]
fn a_step_of_g_leaves_d_without_gradients_and_d_loses_half_of_both_errors() {
    let model = model(Architecture { d_layers: vec![2, 1], ..architecture() });
    let of_g = loss(&model, 0, 0..MINIBATCH);
    of_g.objective.backward();
    assert!(model.d.tensors().iter().all(|tensor| !tensor.grad().defined()));
    settle(&model, of_g.handed.unwrap(), 0);
    let [a, b] = reals(&batch(0..MINIBATCH), &draw(40));
    let whole = |x: Tensor| x.mean(Kind::Double).double_value(&[]);
    let of_d = loss(&model, 1, 0..MINIBATCH);
    let mut sum = 0.0;
    for (domain, (real, name)) in [(a, "loss/d_a"), (b, "loss/d_b")].iter().enumerate() {
        let judges = model.judges[domain].judges().iter();
        let of_each = judges
            .map(|judge| whole((judge.score(real) - 1.0).square()) + whole(judge.score(model.shown(domain)).square()));
        let errors = of_each.sum::<f64>() / 2.0;
        let told = of_d.statistics.iter().find(|(told, _)| told == name).unwrap().1.double_value(&[]);
        assert!(close(told, errors / 2.0), "{name}: {told} {errors}");
        sum += told;
    }
    assert!(close(of_d.objective.double_value(&[]), sum));
}

#[test]
fn shares_of_a_minibatch_add_up_to_its_gradient() {
    for gan_loss in [GanLoss::Lsgan, GanLoss::Vanilla, GanLoss::Wgangp] {
        let model = model(Architecture { gan_loss, d_layers: vec![2, 0], ..architecture() });
        settle(&model, loss(&model, 0, 0..MINIBATCH).handed.unwrap(), 0);
        for phase in [0, 1] {
            let whole = gradient(&model, phase, 0..MINIBATCH);
            let parts = gradient(&model, phase, 0..1) + gradient(&model, phase, 1..4) + gradient(&model, phase, 4..6);
            let worst = (&whole - &parts).abs().max().double_value(&[]) / whole.abs().max().double_value(&[]);
            assert!(worst < 1e-10, "{gan_loss:?}, phase {phase}: {worst:e}");
        }
    }
}

/// gan.md 19, item 16. Images are numbered by their first pixel.
#[test]
fn a_pool_gives_back_new_images_half_the_time_once_it_is_full() {
    let numbered = |first: i64| {
        let numbers = Tensor::arange_start(first, first + i64::from(MINIBATCH), F64) / 1e5;
        numbers.view([-1, 1]).expand([-1, 2 * 3 * i64::from(SIDE).pow(2)], true)
    };
    let model = model(architecture());
    let (mut new, mut asked, mut oldest) = (0, 0, u64::MAX);
    for step in 0..1000u64 {
        let first = step * u64::from(MINIBATCH);
        settle(&model, numbered(first as i64), first);
        for domain in [0, 1] {
            let shown = model.shown(domain).select(1, 0).select(1, 0).select(1, 0) * 1e5;
            assert!(!shown.requires_grad());
            for (sample, number) in Vec::<f64>::try_from(&shown).unwrap().into_iter().enumerate() {
                let (number, now) = (number.round() as u64, first + sample as u64);
                assert!(number <= now);
                if now < 50 {
                    assert_eq!(number, now, "a pool that is not full shows what it is given");
                } else {
                    asked += 1;
                    new += u64::from(number == now);
                    oldest = oldest.min(number);
                }
            }
        }
    }
    let share = new as f64 / asked as f64;
    assert!(asked > 10_000 && (share - 0.5).abs() < 0.02, "{share} of {asked}");
    assert!(oldest < 50, "the first images come back too");

    let none = self::model(Architecture { pool_size: 0, ..architecture() });
    settle(&none, numbered(90), 90);
    assert!((none.shown(1).get(5).max() * 1e5 - 95.0).abs().double_value(&[]) < 1e-9);
}

#[test]
fn what_overflowed_never_stays_in_a_pool() {
    let model = model(architecture());
    let made = Tensor::full([i64::from(MINIBATCH), 2 * 3 * i64::from(SIDE).pow(2)], f64::NAN, F64);
    settle(&model, made, 0);
    assert!(model.pools.tensors().iter().all(|images| images.isfinite().all().int64_value(&[]) == 1));
}

/// Both ways one after the other, with blocks that remember nothing, are both ways at once.
#[test]
fn less_memory_gives_the_same_gradient() {
    for g_norm in [GNorm::Instance, GNorm::Layer, GNorm::None] {
        sparing_is_plain(&Architecture { g_norm, d_layers: vec![2, 1], ..architecture() });
    }
}

fn sparing_is_plain(architecture: &Architecture) {
    let plain = model(architecture.clone());
    let sparing = CycleGan::new(architecture.clone(), MINIBATCH, true, 7, Kind::Double, Device::Cpu);
    let phase = &sparing.phases()[0].clone();
    assert_eq!((plain.parts(phase), sparing.parts(phase), sparing.parts(&sparing.phases()[1])), (1, 2, 1));
    let whole = loss(&plain, 0, 1..4);
    let parts: Vec<Loss> = (0..2).map(|part| loss_of(&sparing, 0, &Batch { part, ..batch(1..4) })).collect();
    let handed = parts.iter().map(|part| part.handed.as_ref().unwrap().shallow_clone()).reduce(|a, b| a + b).unwrap();
    assert!((handed - whole.handed.as_ref().unwrap()).abs().max().double_value(&[]) < 1e-12);
    let number = |told: &[(&str, Tensor)], name: &str| {
        told.iter().filter(|(told, _)| *told == name).map(|(_, value)| value.double_value(&[])).sum::<f64>()
    };
    let told: Vec<_> =
        parts.iter().flat_map(|part| part.statistics.iter().map(|(n, t)| (*n, t.shallow_clone()))).collect();
    for (name, value) in &whole.statistics {
        assert!(close(number(&told, name), value.double_value(&[])), "{name}");
    }
    let expected = gradient_of(&plain, 0, whole.objective);
    let found = parts.into_iter().map(|part| gradient_of(&sparing, 0, part.objective)).reduce(|a, b| a + b).unwrap();
    let largest = expected.abs().max().double_value(&[]);
    assert!((found - expected).abs().max().double_value(&[]) < 1e-12 * largest.max(1.0));
}
