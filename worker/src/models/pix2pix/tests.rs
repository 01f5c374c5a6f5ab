use super::*;
use crate::models::testing::two_domains;

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const SIDE: u32 = 64;
const MINIBATCH: u32 = 4;

const STAGE: Stage = Stage {
    level: Level { lod: 0.0, resolution: SIDE },
    minibatch: MINIBATCH,
    group: 1,
    micro_batch: MINIBATCH,
    learning_rate: 2e-4,
    ema_decay: 0.999,
    tick_images: 1000,
};

const DRAW: Draw = Draw { seed: 3, step: 40, kind: Kind::Double, device: Device::Cpu };

fn model(g_downs: u32, direction: Direction) -> Pix2Pix {
    let architecture = Architecture {
        resolution: SIDE,
        g_width: 2,
        g_downs,
        dropout: true,
        d_width: 2,
        d_layers: 2,
        gan_loss: common::families::cyclegan::GanLoss::Vanilla,
        lambda_l1: 100.0,
        direction,
    };
    Pix2Pix::new(architecture, 7, Kind::Double, Device::Cpu)
}

fn batch(samples: std::ops::Range<u32>) -> Batch {
    two_domains(samples, SIDE, MINIBATCH)
}

fn loss(model: &Pix2Pix, phase: usize, samples: std::ops::Range<u32>) -> Loss {
    let phase = &model.phases()[phase];
    for module in model.modules() {
        let active = if *module == phase.module { model.active(module, &STAGE.level) } else { vec![] };
        model.parameters(module).require_gradients(&active);
    }
    model.loss(phase, &STAGE, &batch(samples), &DRAW)
}

/// The gradient of `phase` over `samples`, flat.
fn gradient(model: &Pix2Pix, phase: usize, samples: std::ops::Range<u32>) -> Tensor {
    let objective = loss(model, phase, samples).objective;
    let inputs: Vec<&Tensor> = model.parameters(model.phases()[phase].module).tensors().iter().collect();
    let grads = Tensor::run_backward(&[objective], &inputs, false, false);
    Tensor::cat(&grads.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0)
}

/// gan.md 19, item 3: down to one pixel, and any multiple of that.
#[test]
fn images_keep_their_size() {
    let model = model(6, Direction::A2b);
    for (height, width) in [(64, 64), (64, 128)] {
        let made = model.translate(0, &Tensor::rand([1, 3, height, width], F64));
        assert_eq!(made.size(), [1, 3, height, width]);
        assert!(made.abs().max().double_value(&[]) <= 1.0);
    }
    for module in model.modules() {
        let parameters = model.parameters(module);
        for (spec, tensor) in parameters.specs().iter().zip(parameters.tensors()) {
            assert_eq!(spec.shape, tensor.size(), "{}", spec.name);
        }
    }
}

/// Dropout and norms included.
#[test]
fn shares_of_a_minibatch_add_up_to_its_gradient() {
    let model = model(6, Direction::B2a);
    for phase in [0, 1] {
        let whole = gradient(&model, phase, 0..MINIBATCH);
        let parts = gradient(&model, phase, 0..1) + gradient(&model, phase, 1..4);
        let worst = (&whole - &parts).abs().max().double_value(&[]) / whole.abs().max().double_value(&[]);
        assert!(worst < 1e-10, "phase {phase}: {worst:e}");
    }
}

#[test]
fn both_phases_see_the_same_made_image_and_direction_turns_the_pair_round() {
    let (there, back) = (model(5, Direction::A2b), model(5, Direction::B2a));
    let batch = batch(0..MINIBATCH);
    let [source, target] = there.pair(&batch, &DRAW);
    assert!(there.make(&source, &batch, &DRAW).equal(&there.make(&source, &batch, &DRAW)));
    let [of_back, to_back] = back.pair(&batch, &DRAW);
    assert!(source.equal(&to_back) && target.equal(&of_back));
    assert_eq!((there.source(0), back.source(0)), (0, 1));
}

#[test]
fn half_of_what_may_be_dropped_is_dropped_and_each_sample_its_own() {
    let stream = |i: usize| Stream::new(1, Purpose::Dropout, 2, i as u64);
    let drawn = mask(&[2, 16, 32, 32], 5, stream, Kind::Double, Device::Cpu);
    assert!((drawn.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.02);
    assert!(!drawn.get(0).equal(&drawn.get(1)));
    assert!(!drawn.equal(&mask(&[2, 16, 32, 32], 6, stream, Kind::Double, Device::Cpu)));
}
