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

/// The fused kernel against the same function composed of libtorch's operations, in value and gradient; double and
/// strided tensors take the composed way inside.
#[test]
fn fused_activation_is_its_composition() {
    tch::manual_seed(1);
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::Double, 1e-12)] {
        // more pixels than one block, and a block that is not full
        let x = Tensor::randn([3, 5, 17, 19], (kind, Device::Cpu)).set_requires_grad(true);
        let weight = Tensor::randn([3, 5, 17, 19], (kind, Device::Cpu));
        let y = x.maximum(&(&x * 0.2));
        let composed = &y * ((&y * &y).mean_dim(&[1i64][..], true, None::<Kind>) + 1e-8).rsqrt();
        let fused = leaky_pixel_norm(&x, 0.2, 1e-8).unwrap();
        let gradient = |out: &Tensor| {
            let grads = Tensor::run_backward(&[(out * &weight).sum(kind)], &[&x], false, false);
            grads[0].shallow_clone()
        };
        let distance = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(distance(&fused, &composed) < tolerance, "{kind:?}");
        assert!(distance(&gradient(&fused), &gradient(&composed)) < tolerance * 10.0, "{kind:?}");
    }
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
