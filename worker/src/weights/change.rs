//! What [`Change`] does to numbers, there and back.

use common::families::elsewhere::Change;
use tch::{Kind, Tensor};

/// Numbers that ought to be one may differ by this share of the largest.
const ALIKE: f64 = 1e-6;

/// Their tensor, made of ours.
pub fn there(change: Change, ours: &Tensor) -> Tensor {
    match change {
        Change::Same => ours.shallow_clone(),
        Change::Times(by) => ours * by,
        Change::Spread { positions, by } => ours.repeat_interleave_self_int(positions, 0i64, None::<i64>) * by,
        Change::LastChannel { by, last } => ours * factors(ours, by, last),
    }
}

/// Our tensor, made of theirs, which has the shape that [`Change::shape`] says.
///
/// # Errors
/// Theirs holds what ours cannot: says what.
pub fn back(change: Change, theirs: &Tensor) -> Result<Tensor, String> {
    match change {
        Change::Same => Ok(theirs.shallow_clone()),
        Change::Times(by) => Ok(theirs / by),
        Change::Spread { positions, by } => {
            let rows = theirs.reshape([-1, positions]);
            let first = rows.narrow(1, 0, 1);
            let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
            let (apart, size) = (largest(&(&rows - &first)), largest(&rows));
            match apart <= ALIKE * size {
                true => Ok(first.reshape([-1]) / by),
                false => Err(format!(
                    "differs by up to {apart:.2e} between the {positions} positions of one channel, and this network has one number for \
                     all of them: model.position_bias = true gives it as many"
                )),
            }
        }
        Change::LastChannel { by, last } => Ok(theirs / factors(theirs, by, last)),
    }
}

/// `[1, in, 1, 1]`: `by` for each input channel, `last` besides for the last.
fn factors(like: &Tensor, by: f64, last: f64) -> Tensor {
    let inputs = like.size().get(1).map_or(1, |&inputs| inputs as usize);
    let mut factors = vec![by; inputs];
    factors.iter_mut().rev().take(1).for_each(|factor| *factor *= last);
    Tensor::from_slice(&factors).view([1, -1, 1, 1]).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn what_is_done_is_undone() {
        let tensor = Tensor::from_slice(&(0..24).map(|i| i as f32 * 0.37 - 3.0).collect::<Vec<_>>());
        for (change, shape) in [
            (Change::Same, vec![24]),
            (Change::Times(0.25), vec![4, 6]),
            (Change::Spread { positions: 16, by: 16.0 }, vec![24]),
            (Change::LastChannel { by: 1.5, last: 0.75f64.sqrt() }, vec![2, 3, 2, 2]),
        ] {
            let ours = tensor.view(&shape[..]);
            let theirs = there(change, &ours);
            assert_eq!(theirs.size(), change.shape(&shape), "{change:?}");
            let again = back(change, &theirs).unwrap();
            assert_eq!(again.size(), shape, "{change:?}");
            assert!((again - ours).abs().max().double_value(&[]) < 1e-6, "{change:?}");
        }
    }

    #[test]
    fn each_number_goes_where_it_belongs() {
        let spread = there(Change::Spread { positions: 2, by: 10.0 }, &Tensor::from_slice(&[1.0f32, 2.0]));
        assert_eq!(Vec::<f32>::try_from(&spread).unwrap(), [10.0, 10.0, 20.0, 20.0]);
        let ones = Tensor::ones([1, 2, 1, 2], (Kind::Float, Device::Cpu));
        let last = there(Change::LastChannel { by: 2.0, last: 0.5 }, &ones).reshape([-1]);
        assert_eq!(Vec::<f32>::try_from(&last).unwrap(), [2.0, 2.0, 1.0, 1.0]);
    }

    #[test]
    fn a_bias_that_differs_by_position_is_refused() {
        let change = Change::Spread { positions: 2, by: 1.0 };
        let said = back(change, &Tensor::from_slice(&[1.0f32, 1.1, 2.0, 2.0])).unwrap_err();
        assert!(said.contains("between the 2 positions"), "{said}");
        assert!(back(change, &Tensor::from_slice(&[1.0f32, f32::NAN])).is_err());
        assert!(back(change, &Tensor::from_slice(&[0.0f32; 4])).is_ok());
    }
}
