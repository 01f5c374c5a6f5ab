use super::*;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tch::{Device, Kind};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Adam by hand (Kingma & Ba, algorithm 1), for one number.
fn adam_by_hand(grads: &[f64], adam: AdamConstants) -> f64 {
    let (mut x, mut m, mut v) = (1.0, 0.0, 0.0);
    for (i, g) in grads.iter().enumerate() {
        m = adam.beta1 * m + (1.0 - adam.beta1) * g;
        v = adam.beta2 * v + (1.0 - adam.beta2) * g * g;
        let t = i as i32 + 1;
        let m_hat = m / (1.0 - adam.beta1.powi(t));
        let v_hat: f64 = v / (1.0 - adam.beta2.powi(t));
        x -= adam.learning_rate * m_hat / (v_hat.sqrt() + adam.epsilon);
    }
    x
}

#[test]
fn fused_adam_is_adam_and_skips_where_the_flag_is_set() {
    let adam = AdamConstants { learning_rate: 0.1, beta1: 0.5, beta2: 0.99, epsilon: 1e-8 };
    let grads = [0.3, -0.7, 0.2];
    let (x, m, v) = (Tensor::ones([3], CPU), Tensor::zeros([3], CPU), Tensor::zeros([3], CPU));
    let fine = Tensor::zeros([1], CPU);
    let inf = Tensor::ones([1], CPU);
    let step = |g: f64, n: i64, flag: &Tensor| {
        let list = |t: &Tensor| vec![t.shallow_clone()];
        let g = Tensor::full([3], g, CPU);
        fused_adam(&list(&x), &[g], &list(&m), &list(&v), &Tensor::full([1], n, CPU), flag, adam).unwrap();
    };
    for (i, g) in grads.iter().enumerate() {
        step(f64::NAN, i as i64 + 1, &inf);
        step(*g, i as i64 + 1, &fine);
    }
    assert!((x.double_value(&[1]) - adam_by_hand(&grads, adam)).abs() < 1e-6);
}

#[test]
fn gradients_accumulate_into_the_given_view_and_the_hook_fires_once_each_backward() {
    let w = Tensor::ones([4], CPU).set_requires_grad(true);
    let flat = Tensor::zeros([10], CPU);
    set_gradient(&w, Some(&flat.narrow(0, 3, 4))).unwrap();
    let fired = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&fired);
    let hook = GradientHook::new(&w, move || {
        counter.fetch_add(1, Ordering::SeqCst);
    })
    .unwrap();
    // a penalty on the gradient of an input: its inner gradient must not fire the hook
    let x = Tensor::full([4], 2.0, CPU).set_requires_grad(true);
    let score = (&w * &x * &x).sum(Kind::Float);
    let inner = Tensor::run_backward(&[score], &[&x], true, true);
    assert_eq!(fired.load(Ordering::SeqCst), 0);
    (&inner[0] * &inner[0]).sum(Kind::Float).backward();
    assert_eq!(fired.load(Ordering::SeqCst), 1);
    // d/dw sum((2wx)^2) = 8 w x^2 = 32
    assert_eq!(Vec::<f32>::try_from(&flat).unwrap(), [0.0, 0.0, 0.0, 32.0, 32.0, 32.0, 32.0, 0.0, 0.0, 0.0]);
    (&w * 1.0).sum(Kind::Float).backward();
    assert_eq!((fired.load(Ordering::SeqCst), flat.double_value(&[3])), (2, 33.0));
    drop(hook);
    (&w * 1.0).sum(Kind::Float).backward();
    assert_eq!(fired.load(Ordering::SeqCst), 2);
}

#[test]
fn lerp_moves_every_average() {
    let averages = [Tensor::zeros([2], CPU), Tensor::ones([3], CPU)];
    let values = [Tensor::ones([2], CPU), Tensor::zeros([3], CPU)];
    foreach_lerp(&averages, &values, 0.25).unwrap();
    assert_eq!((averages[0].double_value(&[0]), averages[1].double_value(&[2])), (0.25, 0.75));
}

#[test]
fn host_slices_share_memory_and_refuse_what_is_no_slice() {
    let t = Tensor::zeros([2, 3], CPU);
    HostF32::new(&t).unwrap().as_mut_slice()[4] = 7.0;
    assert_eq!(t.double_value(&[1, 1]), 7.0);
    assert!(HostF32::new(&t.transpose(0, 1)).is_err());
    assert!(HostF32::new(&t.to_kind(Kind::Double)).is_err());
    assert!(HostF32::new(&Tensor::zeros([0], CPU)).unwrap().as_slice().is_empty());
}

#[test]
fn failures_carry_libtorchs_words() {
    let error = leaky_relu(Tensor::zeros([2], (Kind::Int64, Device::Cpu)), 0.2).unwrap_err();
    assert!(error.to_string().starts_with("libtorch: leaky_relu: "), "{error}");
}

/// A fused function and the same composed of libtorch's own operations.
struct Pair {
    fused: fn(&[Tensor]) -> Tensor,
    composed: fn(&[Tensor]) -> Tensor,
    /// Of x, and of the weights.
    shapes: &'static [&'static [i64]],
    /// Whether the gradient of x may be differentiated.
    twice: bool,
}

fn leaky(x: &Tensor) -> Tensor {
    x.maximum(&(x * 0.2))
}

const SAME: Geometry = Geometry { stride: 1, padding: 1, transposed: false };
const HALVING: Geometry = Geometry { stride: 2, padding: 1, transposed: false };
const DOUBLING: Geometry = Geometry { stride: 2, padding: 1, transposed: true };

const PAIRS: &[Pair] = &[
    Pair {
        fused: |t| convolution(&t[0], &t[1], &t[2], SAME, Some(0.2)).unwrap(),
        composed: |t| leaky(&t[0].conv2d(&t[1], Some(&t[2]), 1, 1, 1, 1)),
        shapes: &[&[3, 5, 6, 7], &[4, 5, 3, 3], &[4]],
        twice: true,
    },
    Pair {
        fused: |t| convolution(&t[0], &t[1], &t[2], HALVING, None).unwrap(),
        composed: |t| t[0].conv2d(&t[1], Some(&t[2]), 2, 1, 1, 1),
        shapes: &[&[3, 5, 6, 8], &[4, 5, 4, 4], &[4]],
        twice: true,
    },
    Pair {
        fused: |t| convolution(&t[0], &t[1], &t[2], DOUBLING, Some(0.2)).unwrap(),
        composed: |t| leaky(&t[0].conv_transpose2d(&t[1], Some(&t[2]), 2, 1, 0, 1, 1)),
        shapes: &[&[3, 5, 6, 7], &[5, 4, 4, 4], &[4]],
        twice: true,
    },
    Pair {
        fused: |t| leaky_downscale(&t[0], 0.2).unwrap(),
        composed: |t| leaky(&t[0]).avg_pool2d(2, 2, 0, false, true, None),
        shapes: &[&[3, 5, 6, 8]],
        twice: true,
    },
    Pair {
        fused: |t| leaky_pixel_norm(&t[0], 0.2, 1e-8).unwrap(),
        composed: |t| {
            let y = leaky(&t[0]);
            &y * ((&y * &y).mean_dim(&[1i64][..], true, None::<Kind>) + 1e-8).rsqrt()
        },
        shapes: &[&[3, 5, 17, 19]],
        twice: false,
    },
];

/// In value, in gradient, and in the gradient of the gradient's norm, as a penalty asks for it. Float tensors take the loops
/// of the shim, double ones are composed of libtorch's operations there too.
#[test]
fn fused_layers_are_their_compositions() {
    for (i, pair) in PAIRS.iter().enumerate() {
        for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::Double, 1e-12)] {
            tch::manual_seed(1);
            let inputs: Vec<Tensor> = (pair.shapes.iter())
                .map(|shape| Tensor::randn(*shape, (kind, Device::Cpu)).set_requires_grad(true))
                .collect();
            let ask = (pair.composed)(&inputs).randn_like();
            let answers = |function: fn(&[Tensor]) -> Tensor| {
                let out = function(&inputs);
                // the square makes the incoming gradient depend on x, as the rest of a network does
                let score = (&out * &out * &ask).sum(kind);
                let mut answers = vec![out.detach()];
                answers.extend(Tensor::run_backward(&[&score], &inputs, true, false));
                if pair.twice {
                    let slope = Tensor::run_backward(&[&score], &inputs[..1], true, true);
                    let penalty = (slope[0].square().sum(kind).sqrt() - 1.0).square();
                    answers.push(slope[0].detach());
                    // the bias moves the slope through the square alone
                    answers.extend(Tensor::run_backward(&[penalty], &inputs, false, false));
                }
                answers
            };
            for (n, (fused, composed)) in answers(pair.fused).iter().zip(answers(pair.composed)).enumerate() {
                assert_eq!(fused.size(), composed.size());
                let distance = (fused - &composed).abs().max().double_value(&[]);
                let scale = composed.abs().max().double_value(&[]).max(1.0);
                assert!(distance < tolerance * scale, "pair {i}, {kind:?}, answer {n}: {distance} of {scale}");
            }
        }
    }
}

#[test]
fn a_derivative_too_many_is_refused() {
    let x = Tensor::randn([1, 2, 4, 4], CPU).set_requires_grad(true);
    let refused = |out: Tensor| {
        let error = Tensor::f_run_backward(&[out.square().sum(Kind::Float)], &[&x], true, true).map(|_| ());
        error.unwrap_err().to_string().contains("no further derivative")
    };
    assert!(refused(leaky_pixel_norm(&x, 0.2, 1e-8).unwrap()));
    let once = leaky_downscale(&x, 0.2).unwrap().square().sum(Kind::Float);
    let slope = Tensor::run_backward(&[once], &[&x], true, true);
    assert!(refused(slope[0].shallow_clone()));
}

#[test]
fn memory_can_be_kept() {
    keep_memory().unwrap();
}

#[test]
fn a_machine_without_a_driver_says_so() {
    if !Path::new("/dev/nvidiactl").exists() {
        assert_eq!(cuda::load(&[]), cuda::Cuda::NoDriver);
    }
}

/// libtorch's default is TF32 in convolutions and not in matrix products: neither of what an experiment file can ask for.
#[test]
fn tf32_is_allowed_everywhere_or_nowhere() {
    for allowed in [true, false] {
        allow_tf32(allowed).unwrap();
        assert_eq!(tf32_allowed().unwrap(), (allowed, allowed));
    }
}

#[test]
fn convolutions_are_in_bfloat16_while_it_lasts_and_their_gradients_are_not() {
    let weight = Tensor::ones([2, 3, 3, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let x = Tensor::ones([1, 3, 8, 8], (Kind::Float, Device::Cpu));
    let convolve = || x.conv2d(&weight, None::<&Tensor>, 1, 1, 1, 1);
    assert_eq!(convolve().kind(), Kind::Float);
    let halved = Autocast::begin(Device::Cpu).unwrap();
    let out = convolve();
    assert_eq!(out.kind(), Kind::BFloat16);
    drop(halved);
    assert_eq!(convolve().kind(), Kind::Float);
    out.to_kind(Kind::Float).sum(Kind::Float).backward();
    assert_eq!((weight.grad().kind(), weight.grad().size()), (Kind::Float, vec![2, 3, 3, 3]));
}

/// A residual block that remembers nothing, beside the same of libtorch's own operations.
#[test]
fn a_residual_block_has_the_derivatives_of_its_parts() {
    tch::manual_seed(4);
    let options = (Kind::Double, Device::Cpu);
    let leaf = |shape: &[i64]| Tensor::randn(shape, options).set_requires_grad(true);
    let inputs = [leaf(&[2, 4, 6, 5]), leaf(&[4, 4, 3, 3]), leaf(&[4]), leaf(&[4, 4, 3, 3]), leaf(&[4])];
    let [x, w1, b1, w2, b2] = &inputs;
    let none = None::<&Tensor>;
    for kind in [BlockNorm::None, BlockNorm::Instance, BlockNorm::Layer] {
        let norm = |t: Tensor| match kind {
            BlockNorm::None => t,
            BlockNorm::Instance => t.instance_norm(none, none, none, none, true, 0.0, 1e-5, false),
            BlockNorm::Layer => {
                let centred = &t - t.mean_dim(&[1i64, 2, 3][..], true, None::<Kind>);
                let variance = centred.square().mean_dim(&[1i64, 2, 3][..], true, None::<Kind>);
                centred / (variance + 1e-5).sqrt()
            }
        };
        let conv =
            |t: &Tensor, w: &Tensor, b: &Tensor| norm(t.reflection_pad2d([1, 1, 1, 1]).conv2d(w, Some(b), 1, 0, 1, 1));
        let expected = x + conv(&conv(x, w1, b1).relu(), w2, b2);
        let found = residual(x, [w1, b1, w2, b2], kind).unwrap();
        let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(apart(&found, &expected) < 1e-12);
        let up = Tensor::randn([2, 4, 6, 5], options);
        let gradients = |of: &Tensor, wanted: &[&Tensor]| {
            Tensor::run_backward(&[(of * &up).sum(Kind::Double)], wanted, true, false)
        };
        let all: Vec<&Tensor> = inputs.iter().collect();
        for (one, other) in gradients(&found, &all).iter().zip(gradients(&expected, &all)) {
            assert!(apart(one, &other) < 1e-10);
        }
        // what collects no gradients gets none
        let frozen = residual(&x.detach(), [w1, &b1.detach(), w2, b2], kind).unwrap();
        assert!(apart(&gradients(&frozen, &[w2])[0], &gradients(&expected, &[w2])[0]) < 1e-10);
    }
}
