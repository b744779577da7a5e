//! Medians, quartiles, and how sure they are.

/// Median and quartiles of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// First and third quartile.
    pub(crate) quartiles: (f64, f64),
    pub(crate) count: usize,
}

/// An interval that holds a value with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Resamplings that an interval is made of.
const RESAMPLES: usize = 2000;

impl Summary {
    /// Of `values`, in any order; none of nothing.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            quartiles: (quantile(&sorted, 0.25)?, quantile(&sorted, 0.75)?),
            count: sorted.len(),
        })
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// By linear interpolation between the values next to it.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "indices of a few samples"
)]
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = sorted.len().checked_sub(1)? as f64 * share;
    let below = sorted[place as usize];
    let above = sorted[place.ceil() as usize];
    Some(below + (above - below) * place.fract())
}

/// How the median of `new` relates to that of `old`, by bootstrap: both are resampled with
/// replacement, the same way each time. None if either has fewer than three values.
pub(crate) fn ratio(new: &[f64], old: &[f64]) -> Option<Interval> {
    if new.len() < 3 || old.len() < 3 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(42);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| Some(resampled(new, &mut random)? / resampled(old, &mut random)?))
        .collect();
    ratios.sort_by(f64::total_cmp);
    Some(Interval {
        low: quantile(&ratios, 0.025)?,
        high: quantile(&ratios, 0.975)?,
    })
}

fn resampled(values: &[f64], random: &mut fastrand::Rng) -> Option<f64> {
    let drawn: Vec<f64> = values
        .iter()
        .map(|_| values[random.usize(..values.len())])
        .collect();
    quantile(&sorted(&drawn), 0.5)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quartiles_lie_between_the_values_next_to_them() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(
            (summary.median, summary.quartiles, summary.count),
            (2.5, (1.75, 3.25), 4)
        );
        assert_eq!(Summary::of(&[7.0]).unwrap().quartiles, (7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_difference_is_told_from_noise() {
        let old: Vec<f64> = (0..10).map(|n| 1.0 + f64::from(n) * 0.01).collect();
        let same: Vec<f64> = old.iter().rev().copied().collect();
        let slower: Vec<f64> = old.iter().map(|value| value * 1.5).collect();
        let none = ratio(&same, &old).unwrap();
        assert!(none.low <= 1.0 && none.high >= 1.0, "{none:?}");
        let some = ratio(&slower, &old).unwrap();
        assert!(some.low > 1.3 && some.high < 1.7, "{some:?}");
        assert_eq!(ratio(&old, &old[..2]), None);
    }
}
