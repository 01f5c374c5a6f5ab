//! How far two sets of features are apart: the kernel distance (Binkowski et al., "Demystifying MMD GANs", ICLR 2018) and the Frechet
//! distance (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017). In double precision.

use tch::{Kind, Tensor, no_grad};

/// Features of each side that are compared at once; of more, the mean over such subsets.
const SUBSET: i64 = 1000;

/// Squared maximum mean discrepancy of `[n, d]` and `[m, d]` with the kernel `(x.y / d + 1)^3`, unbiased: of equal distributions 0 in the
/// mean, and as often below. `None` of fewer than two.
#[must_use]
pub fn kid(one: &Tensor, other: &Tensor) -> Option<f64> {
    let least = one.size()[0].min(other.size()[0]);
    if least < 2 {
        return None;
    }
    let subsets = (least / SUBSET).max(1);
    let part = |set: &Tensor, i: i64| {
        let size = if subsets == 1 && least <= SUBSET { set.size()[0].min(SUBSET) } else { SUBSET };
        set.narrow(0, i * size, size)
    };
    let sum: f64 = (0..subsets).map(|i| discrepancy(&part(one, i), &part(other, i))).sum();
    Some(sum / subsets as f64)
}

fn discrepancy(one: &Tensor, other: &Tensor) -> f64 {
    no_grad(|| {
        let (x, y) = (one.to_kind(Kind::Double), other.to_kind(Kind::Double));
        let (n, m, d) = (x.size()[0] as f64, y.size()[0] as f64, x.size()[1] as f64);
        let kernel = |a: &Tensor, b: &Tensor| (a.matmul(&b.tr()) / d + 1.0).pow_tensor_scalar(3);
        let sum = |t: Tensor| t.sum(Kind::Double).double_value(&[]);
        let (xx, yy) = (kernel(&x, &x), kernel(&y, &y));
        let within = |k: &Tensor, n: f64| (sum(k.shallow_clone()) - sum(k.diag(0))) / (n * (n - 1.0));
        within(&xx, n) + within(&yy, m) - 2.0 * sum(kernel(&x, &y)) / (n * m)
    })
}

/// `|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` of the normal distributions that have the means and covariances (divided by n - 1) of
/// `[n, d]` and `[m, d]`. It is too large where features are few, and comparable only at equal counts. `None` of fewer than two.
///
/// With `S1 = A'A` and `S2 = B'B`, the trace of the root is the sum of the singular values of `AB'`: no root of a matrix is taken.
#[must_use]
pub fn frechet(one: &Tensor, other: &Tensor) -> Option<f64> {
    if one.size()[0].min(other.size()[0]) < 2 {
        return None;
    }
    no_grad(|| {
        let (mean_x, a) = centred(one);
        let (mean_y, b) = centred(other);
        let squares = |t: &Tensor| t.square().sum(Kind::Double).double_value(&[]);
        let common = a.matmul(&b.tr()).nuclear_norm(false).double_value(&[]);
        Some(squares(&(mean_x - mean_y)) + squares(&a) + squares(&b) - 2.0 * common)
    })
}

/// The mean, and a root of the covariance: what is centred, or, of many features, the smaller triangle that has the same products.
fn centred(features: &Tensor) -> (Tensor, Tensor) {
    let x = features.to_kind(Kind::Double);
    let mean = x.mean_dim(&[0i64][..], true, None::<Kind>);
    let (n, d) = x.size2().unwrap_or((2, 1));
    let root = (x - &mean) / ((n - 1) as f64).sqrt();
    let root = if n > d { Tensor::linalg_qr(&root, "r").1 } else { root };
    (mean, root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::seed::{Purpose, Stream};

    /// `n` draws of `d` independent normals with these deviations, around `mean`.
    fn normals(seed: u64, n: usize, deviations: &[f32], mean: f32) -> Tensor {
        let mut values = vec![0.0f32; n * deviations.len()];
        Stream::new(seed, Purpose::Metric, 0, 0).normals(&mut values);
        for row in values.chunks_exact_mut(deviations.len()) {
            row.iter_mut().zip(deviations).for_each(|(value, deviation)| *value = mean + *value * deviation);
        }
        Tensor::from_slice(&values).view([n as i64, deviations.len() as i64])
    }

    /// gan.md 19, item 25.
    #[test]
    fn equal_features_are_not_apart() {
        for n in [5, 40] {
            let x = normals(1, n, &[1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.1], 0.3);
            assert!(frechet(&x, &x).unwrap().abs() < 1e-9);
        }
    }

    /// gan.md 19, item 25: of normals with diagonal covariances the distance is `sum (m1 - m2)^2 + (s1 - s2)^2`.
    #[test]
    fn the_frechet_distance_is_that_of_the_formula() {
        let (s1, s2) = ([1.0, 2.0, 0.5, 1.5], [2.0, 2.0, 1.0, 0.5]);
        let (x, y) = (normals(2, 200_000, &s1, 0.0), normals(3, 200_000, &s2, 0.7));
        let expected: f64 = s1.iter().zip(&s2).map(|(a, b)| f64::from((a - b) * (a - b) + 0.49)).sum();
        let found = frechet(&x, &y).unwrap();
        assert!((found - expected).abs() < 0.03, "{found}, expected {expected}");
    }

    /// More features than samples, against the covariances themselves.
    #[test]
    fn few_samples_of_many_features_agree_with_the_covariances() {
        let d = 12;
        let deviations: Vec<f32> = (0..d).map(|i| 0.5 + i as f32 / 4.0).collect();
        let (x, y) = (normals(4, 7, &deviations, 0.0), normals(5, 9, &deviations, 0.2));
        let covariance = |t: &Tensor| {
            let t = t.to_kind(Kind::Double);
            let c = &t - t.mean_dim(&[0i64][..], true, None::<Kind>);
            c.tr().matmul(&c) / (t.size()[0] - 1) as f64
        };
        let root = |s: &Tensor| {
            let (values, vectors) = s.linalg_eigh("L");
            vectors.matmul(&values.clamp_min(0.0).sqrt().diag(0)).matmul(&vectors.tr())
        };
        let (s1, s2) = (covariance(&x), covariance(&y));
        let half = root(&s1);
        let trace = |t: Tensor| t.trace().double_value(&[]);
        let means =
            (x.mean_dim(&[0i64][..], false, None::<Kind>) - y.mean_dim(&[0i64][..], false, None::<Kind>)).square();
        let expected =
            means.sum(Kind::Double).double_value(&[]) + trace(s1.shallow_clone()) + trace(s2.shallow_clone())
                - 2.0 * trace(root(&half.matmul(&s2).matmul(&half)));
        let found = frechet(&x, &y).unwrap();
        assert!((found - expected).abs() < 1e-4 * expected, "{found}, expected {expected}");
    }

    #[test]
    fn the_kernel_distance_is_none_between_equals_and_grows_with_the_difference() {
        let set = |seed, mean| normals(seed, 300, &[1.0; 16], mean);
        let x = set(6, 0.0);
        let [same, near, far] = [(7, 0.0), (8, 0.3), (9, 1.0)].map(|(seed, mean)| kid(&x, &set(seed, mean)).unwrap());
        assert!(same.abs() < 0.02 && near > same.abs() && far > near, "{same} {near} {far}");
        assert!((kid(&x, &set(9, 1.0)).unwrap() - kid(&set(9, 1.0), &x).unwrap()).abs() < 1e-12);
        assert_eq!(kid(&x, &set(1, 0.0).narrow(0, 0, 1)), None);
    }

    /// The kernel distance by its definition, pair by pair.
    #[test]
    fn the_kernel_distance_is_that_of_the_formula() {
        let (x, y) = (normals(10, 4, &[1.0; 3], 0.0), normals(11, 5, &[1.0; 3], 0.5));
        let rows = |t: &Tensor| -> Vec<Vec<f64>> {
            (0..t.size()[0]).map(|i| (0..3).map(|j| t.double_value(&[i, j])).collect()).collect()
        };
        let (a, b) = (rows(&x), rows(&y));
        let k = |p: &[f64], q: &[f64]| (p.iter().zip(q).map(|(p, q)| p * q).sum::<f64>() / 3.0 + 1.0).powi(3);
        let within = |s: &[Vec<f64>]| {
            let pairs = (0..s.len()).flat_map(|i| (0..s.len()).map(move |j| (i, j))).filter(|(i, j)| i != j);
            pairs.map(|(i, j)| k(&s[i], &s[j])).sum::<f64>() / (s.len() * (s.len() - 1)) as f64
        };
        let across = a.iter().flat_map(|p| b.iter().map(|q| k(p, q))).sum::<f64>() / (a.len() * b.len()) as f64;
        assert!((kid(&x, &y).unwrap() - (within(&a) + within(&b) - 2.0 * across)).abs() < 1e-9);
    }
}
