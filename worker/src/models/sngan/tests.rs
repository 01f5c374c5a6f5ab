use super::*;

const STAGE: Stage = Stage {
    level: Level { lod: 0.0, resolution: 8 },
    minibatch: 8,
    group: 1,
    micro_batch: 8,
    learning_rate: 2e-4,
    ema_decay: 0.999,
    tick_images: 1000,
};

const DRAW: Draw = Draw { seed: 3, step: 40, kind: Kind::Double, device: Device::Cpu };

fn model() -> Sngan {
    let architecture = Architecture { resolution: 8, latent_size: 6, width: 4 };
    Sngan::new(architecture, 1, 7, Kind::Double, Device::Cpu)
}

fn batch(samples: std::ops::Range<u32>) -> Batch {
    let pixels: Vec<u8> = samples.clone().flat_map(|s| (0..192u32).map(move |i| (s * 31 + i * 7) as u8)).collect();
    let real = Tensor::from_data_size(&pixels, &[samples.len() as i64, 3, 8, 8], Kind::Uint8);
    Batch { real: vec![real], samples, total: 8, part: 0 }
}

fn objective(model: &Sngan, phase: usize, samples: std::ops::Range<u32>) -> Tensor {
    model.loss(&model.phases()[phase], &STAGE, &batch(samples), &DRAW).objective
}

/// The gradient of `phase` over `samples` of a minibatch of 8, flat.
fn gradient(model: &Sngan, phase: usize, samples: std::ops::Range<u32>) -> Tensor {
    let module = model.phases()[phase].module;
    let parameters = model.parameters(module);
    parameters.require_gradients(&model.active(module, &STAGE.level));
    let inputs: Vec<&Tensor> = parameters.tensors().iter().collect();
    let gradients = Tensor::run_backward(&[objective(model, phase, samples)], &inputs, false, false);
    Tensor::cat(&gradients.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0)
}

fn update(model: &Sngan, phase: usize) {
    let whole = Whole { stage: &STAGE, draw: &DRAW, handed: Tensor::zeros([8, 0], (Kind::Double, Device::Cpu)) };
    model.before_update(&model.phases()[phase], &whole);
}

fn directions(model: &Sngan) -> Vec<Tensor> {
    model.directions.tensors().iter().map(Tensor::copy).collect()
}

#[test]
fn tensors_have_the_specified_shapes_and_images_their_range() {
    let model = model();
    for parameters in [&model.g, &model.d, &model.directions] {
        for (spec, tensor) in parameters.specs().iter().zip(parameters.tensors()) {
            assert_eq!(spec.shape, tensor.size(), "{}", spec.name);
        }
    }
    let images = model.sample(&Tensor::randn([5, 6], (Kind::Double, Device::Cpu)), &STAGE.level);
    assert_eq!(images.size(), [5, 3, 8, 8]);
    assert!(images.abs().max().double_value(&[]) < 1.0);
    assert!(images.std(true).double_value(&[]) > 0.0);
}

/// Section 2.1: after enough steps sigma is the largest singular value, so that every layer of D has norm 1.
#[test]
fn the_power_iteration_finds_the_largest_singular_value() {
    let model = model();
    for _ in 0..300 {
        update(&model, 0);
    }
    for (layer, u) in model.discriminator.layers.iter().zip(directions(&model)) {
        let (u, v) = iterate(&layer.weight, &u);
        let sigma = u.dot(&layer.weight.mv(&v)).double_value(&[]);
        let largest = layer.weight.svd(true, true).1.max().double_value(&[]);
        assert!((sigma - largest).abs() < 1e-6 * largest, "{sigma} {largest}");
    }
}

#[test]
fn a_loss_and_a_step_of_g_leave_the_memory_alone_and_a_step_of_d_moves_it() {
    let model = model();
    let before = directions(&model);
    let _losses = (objective(&model, 0, 0..8), objective(&model, 1, 0..8));
    update(&model, 1);
    assert!(before.iter().zip(directions(&model)).all(|(a, b)| a.equal(&b)));
    update(&model, 0);
    // the last layer has one output and so one direction only, up to its sign
    assert!(before[..3].iter().zip(directions(&model)).all(|(a, b)| !a.equal(&b)));
}

/// Through the norm too, with u and v as constants: where those have settled, moving a weight moves them by nothing to
/// first order, and finite differences agree.
#[test]
fn gradients_agree_with_finite_differences() {
    let model = model();
    for _ in 0..300 {
        update(&model, 0);
    }
    for phase in [0, 1] {
        let flat = gradient(&model, phase, 0..8);
        let parameters = model.parameters(model.phases()[phase].module);
        let mut offset = 0;
        for (spec, tensor) in parameters.specs().iter().zip(parameters.tensors()) {
            let value = tensor.detach().flatten(0, -1);
            let h = 1e-6;
            let at = |delta: f64| {
                let moved = value.double_value(&[0]) + delta;
                let _same = value.narrow(0, 0, 1).fill_(moved);
                let loss = no_grad(|| objective(&model, phase, 0..8)).double_value(&[]);
                let _same = value.narrow(0, 0, 1).fill_(moved - delta);
                loss
            };
            let difference = (at(h) - at(-h)) / (2.0 * h);
            let expected = flat.double_value(&[offset]);
            assert!((difference - expected).abs() < 1e-6, "{}: {difference} {expected}", spec.name);
            offset += tensor.numel() as i64;
        }
    }
}

#[test]
fn shares_of_a_minibatch_add_up_to_its_gradient() {
    let model = model();
    for phase in [0, 1] {
        let whole = gradient(&model, phase, 0..8);
        let parts = gradient(&model, phase, 0..3) + gradient(&model, phase, 3..8);
        let worst = (&whole - parts).abs().max().double_value(&[]) / whole.abs().max().double_value(&[]);
        assert!(worst < 1e-12, "{worst:e}");
    }
}
