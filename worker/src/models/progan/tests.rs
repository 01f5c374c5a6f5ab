use super::*;
use crate::models::testing::image;

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

fn narrow(resolution: u32, upscale: Upscale) -> Architecture {
    Architecture {
        resolution,
        latent_size: 16,
        fmap_base: 128,
        fmap_max: 16,
        upscale,
        position_bias: false,
        minibatch_stddev_group: 4,
        gp_norm: GpNorm::Active,
        gp_weight: 10.0,
        gp_target: 1.0,
        drift: 0.001,
    }
}

fn model(architecture: Architecture) -> ProGan {
    ProGan::new(architecture, 1, 7, Kind::Double, Device::Cpu)
}

fn stage(lod: f64, resolution: u32) -> Stage {
    Stage {
        level: Level { lod, resolution },
        minibatch: 8,
        group: 4,
        micro_batch: 8,
        learning_rate: 1e-3,
        ema_decay: 0.999,
        tick_images: 1000,
    }
}

fn draw() -> Draw {
    Draw { seed: 3, step: 40, kind: Kind::Double, device: Device::Cpu }
}

fn bytes(samples: &std::ops::Range<u32>, resolution: u32) -> Tensor {
    // each sample's bytes depend on its global index alone
    let images: Vec<Tensor> = samples.clone().map(|i| image(1000 + u64::from(i), resolution)).collect();
    Tensor::stack(&images, 0)
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

/// The gradient of `phase` over `samples` of a minibatch of 8, flat.
fn gradient(model: &ProGan, phase: usize, stage: &Stage, samples: std::ops::Range<u32>) -> Tensor {
    let phase = &model.phases()[phase];
    for module in model.modules() {
        let active = if *module == phase.module { model.active(module, &stage.level) } else { vec![] };
        model.parameters(module).require_gradients(&active);
    }
    let real = phase.reads_images.then(|| bytes(&samples, stage.level.resolution)).into_iter().collect();
    let loss = model.loss(phase, stage, &Batch { real, samples, total: 8, part: 0 }, &draw());
    let parameters = model.parameters(phase.module);
    let inputs: Vec<&Tensor> =
        model.active(phase.module, &stage.level).into_iter().map(|i| &parameters.tensors()[i]).collect();
    let grads = Tensor::run_backward(&[loss.objective], &inputs, false, false);
    Tensor::cat(&grads.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0)
}

/// gan.md 19, items 1 and 20: what the tensors hold is what the table says, and the image is not squashed.
#[test]
fn parameters_have_the_specified_shapes_and_images_the_active_resolution() {
    for upscale in [Upscale::Fused, Upscale::Unfused] {
        let model = model(narrow(32, upscale));
        for module in model.modules() {
            let parameters = model.parameters(module);
            for (spec, tensor) in parameters.specs().iter().zip(parameters.tensors()) {
                assert_eq!(spec.shape, tensor.size(), "{}", spec.name);
            }
        }
        for (lod, resolution) in [(3.0, 4), (2.5, 8), (2.0, 8), (1.0, 16), (0.25, 32), (0.0, 32)] {
            let level = Level { lod, resolution };
            let side = i64::from(resolution);
            let images = model.sample(&Tensor::randn([8, 16], F64), &level);
            assert_eq!(images.size(), [8, 3, side, side]);
            assert_eq!(model.discriminator.at(&level).score(&images, 4).size(), [8]);
        }
    }
}

/// gan.md 19, item 6: nothing jumps where a resolution enters.
#[test]
fn growing_is_continuous_at_both_ends_of_a_fade() {
    for upscaling in [Upscale::Fused, Upscale::Unfused] {
        let model = model(narrow(16, upscaling));
        let z = Tensor::randn([4, 16], F64);
        let x = Tensor::randn([4, 3, 16, 16], F64);
        let old = Level { lod: 1.0, resolution: 8 };
        let begins = Level { lod: 1.0 - 1e-12, resolution: 16 };
        let ends = Level { lod: 1e-12, resolution: 16 };
        let new = Level { lod: 0.0, resolution: 16 };
        let g = |level: &Level| model.sample(&z, level);
        assert!(distance(&g(&begins), &upscale(&g(&old))) < 1e-9);
        assert!(distance(&g(&ends), &g(&new)) < 1e-9);
        let d = |x: &Tensor, level: &Level| model.discriminator.at(level).score(x, 4);
        assert!(distance(&d(&x, &begins), &d(&downscale(&x), &old)) < 1e-9);
        assert!(distance(&d(&x, &ends), &d(&x, &new)) < 1e-9);
    }
}

#[test]
fn image_layers_of_other_resolutions_take_no_gradient() {
    let model = model(narrow(16, Upscale::Unfused));
    let names = |module: &str, level: &Level| -> Vec<String> {
        let active = model.active(module, level);
        active.into_iter().map(|i| model.parameters(module).specs()[i].name.clone()).collect()
    };
    let stable = Level { lod: 0.0, resolution: 16 };
    assert!(!names("g", &stable).iter().any(|n| n.starts_with("g.8.rgb")));
    let fading = Level { lod: 0.5, resolution: 16 };
    assert!(names("g", &fading).iter().any(|n| n.starts_with("g.8.rgb")));
    // and every parameter that takes part does get one
    for (phase, stage) in [(0, stage(0.5, 16)), (1, stage(0.5, 16)), (0, stage(0.0, 16)), (1, stage(0.0, 16))] {
        assert!(gradient(&model, phase, &stage, 0..8).isfinite().all().int64_value(&[]) == 1);
    }
}

/// gan.md 19, item 7.
#[test]
fn reals_fade_like_fakes() {
    let model = model(narrow(16, Upscale::Unfused));
    let x = bytes(&(0..2), 16);
    let range = x.to_kind(Kind::Double) / 127.5 - 1.0;
    let faded = |lod| model.reals(&x, &Level { lod, resolution: 16 });
    assert!(distance(&faded(0.0), &range) < 1e-12);
    assert!(distance(&faded(1.0 - 1e-12), &upscale(&downscale(&range))) < 1e-9);
    assert!(distance(&faded(0.75), &(&range * 0.25 + upscale(&downscale(&range)) * 0.75)) < 1e-12);
}

/// gan.md 19, item 9: std of the effective weights is the gain over the root of fan-in, and activations keep their size.
#[test]
fn equalized_layers_start_at_unit_variance() {
    let a = Architecture { fmap_base: 1024, fmap_max: 128, latent_size: 128, ..narrow(16, Upscale::Unfused) };
    let model = model(a);
    for (name, parameters) in
        [("g.8.conv0.weight", &model.g), ("d.8.conv1.weight", &model.d), ("g.4.dense.weight", &model.g)]
    {
        let std = parameters.get(name).std(true).double_value(&[]);
        assert!((std - 1.0).abs() < 0.02, "{name}: {std}");
    }
    let image = model.sample(&Tensor::randn([64, 128], F64), &Level { lod: 0.0, resolution: 16 });
    let rms = image.square().mean(Kind::Double).sqrt().double_value(&[]);
    assert!((0.5..2.0).contains(&rms), "{rms}");
}

/// gan.md 19, item 11: on `D(x) = <w, x>` the penalty is known exactly. Here by its definition, against finite
/// differences: the slope of D in the direction of its own gradient is the gradient's norm.
#[test]
fn the_penalty_sees_the_gradient_of_the_score() {
    let model = model(narrow(8, Upscale::Unfused));
    let stage = stage(0.0, 8);
    let x = Tensor::randn([4, 3, 8, 8], F64).set_requires_grad(true);
    let d = |x: &Tensor| model.discriminator.at(&stage.level).score(x, 4);
    let slope = Tensor::run_backward(&[d(&x).sum(Kind::Double)], &[&x], false, false)[0].shallow_clone();
    let h = 1e-5;
    let direction = &slope / slope.square().sum(Kind::Double).sqrt();
    let (ahead, behind) = (d(&(&x + &direction * h)), d(&(&x - &direction * h)));
    let difference = ((ahead - behind).sum(Kind::Double) / (2.0 * h)).double_value(&[]);
    let norm = slope.square().sum(Kind::Double).sqrt().double_value(&[]);
    assert!((difference - norm).abs() < 1e-6 * norm.max(1.0), "{difference} {norm}");
}

/// gan.md 19, item 11, last part.
#[test]
fn full_and_active_norms_differ_by_the_scale_of_the_image() {
    let norm = |gp_norm| {
        let model = model(Architecture { gp_norm, ..narrow(16, Upscale::Unfused) });
        let phase = &model.phases()[0];
        let samples = 0..8;
        let batch = Batch { real: vec![bytes(&samples, 4)], samples, total: 8, part: 0 };
        let loss = model.loss(phase, &stage(2.0, 4), &batch, &draw());
        let (_, value) = loss.statistics.into_iter().find(|(name, _)| *name == "gradient_norm/mix").expect("named");
        value.double_value(&[])
    };
    let (active, full) = (norm(GpNorm::Active), norm(GpNorm::Full));
    assert!((active / full - 4.0).abs() < 1e-9, "{active} {full}");
}

/// gan.md 19, item 20, and 18.1: whatever the division into groups, the gradients add up to the whole minibatch's.
#[test]
fn shares_of_a_minibatch_add_up_to_its_gradient() {
    let model = model(narrow(16, Upscale::Fused));
    for phase in [0, 1] {
        for stage in [stage(0.0, 16), stage(0.5, 16), stage(1.0, 8)] {
            let whole = gradient(&model, phase, &stage, 0..8);
            let parts = gradient(&model, phase, &stage, 0..4) + gradient(&model, phase, &stage, 4..8);
            let relative = distance(&whole, &parts) / whole.abs().max().double_value(&[]);
            assert!(relative < 1e-10, "phase {phase}, lod {}: {relative:e}", stage.level.lod);
        }
    }
}

/// The gradient of D's whole loss, penalty included, against finite differences.
#[test]
fn the_gradient_of_d_is_the_slope_of_its_loss() {
    let model = model(narrow(8, Upscale::Fused));
    let stage = stage(0.5, 8);
    let analytic = gradient(&model, 0, &stage, 0..8);
    let parameters = model.parameters("d");
    let loss = || {
        let samples = 0..8;
        let batch = Batch { real: vec![bytes(&samples, 8)], samples, total: 8, part: 0 };
        model.loss(&model.phases()[0], &stage, &batch, &draw()).objective.double_value(&[])
    };
    let mut offset = 0;
    for i in model.active("d", &stage.level) {
        let weight = parameters.tensors()[i].detach();
        let h = 1e-5;
        let mut first = weight.flatten(0, -1).narrow(0, 0, 1);
        let _moved = first.g_add_scalar_(h);
        let ahead = loss();
        let _moved = first.g_add_scalar_(-2.0 * h);
        let behind = loss();
        let _moved = first.g_add_scalar_(h);
        let (numeric, exact) = ((ahead - behind) / (2.0 * h), analytic.double_value(&[offset]));
        assert!(
            (numeric - exact).abs() < 1e-5 * exact.abs().max(1.0),
            "{}: {numeric} {exact}",
            parameters.specs()[i].name
        );
        offset += weight.numel() as i64;
    }
}

#[test]
fn a_forward_pass_changes_nothing() {
    let model = model(narrow(8, Upscale::Fused));
    let sum = || {
        model.g.tensors().iter().chain(model.d.tensors()).map(|t| t.sum(Kind::Double).double_value(&[])).sum::<f64>()
    };
    let before = sum();
    let _grad = gradient(&model, 0, &stage(0.5, 8), 0..8);
    let _grad = gradient(&model, 1, &stage(0.5, 8), 0..8);
    assert_eq!(before.to_bits(), sum().to_bits());
}
